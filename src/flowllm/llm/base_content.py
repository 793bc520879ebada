"""What a base model consists of: equal contents mean equal weights and an equal tokenizer.

A name on the hub or a folder may have other weights later. An adapter, and the checkpoints of an
unfinished training, fit only the weights that they were trained on. `finetune_llm` therefore
records the content, and resumes only with the same one; `merge_adapter` compares it.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flowllm.config.sections.llm import FinetuneLlm
from flowllm.io.file_errors import check_form, read_json
from flowllm.io.start_files import MODEL_RECORD, start_files
from flowllm.llm.base_model import bundled_file
from flowllm.llm.hub import PATTERNS, fetch_model
from flowllm.llm.model_files import BUNDLED, check_model_folder, weight_files
from flowllm.llm.model_record import read_record
from flowllm.runtime.provenance import digest
from flowllm.runtime.threads import usable_cores

FETCHED = "base_model.json"
"""Name of the file in which `fetch_model` records a model's commit, beside the adapter's folder."""

_COMMIT, _SHA256 = "commit ", "sha256 "


class _Fetched(BaseModel):
    """The content of `FETCHED`."""

    model_config = ConfigDict(strict=True)

    base_model: str
    commit: str | None


def base_content(name: str, commit: str | None = None) -> str:
    """Return the content of a base model, as text.

    It is the commit of a model on the hub, and the digest of the files of any other model. All
    bytes of these files are read, several files at once: a 70B model has 140 GB, which are read
    once more when the model is loaded.

    Args:
        name: `smollm2-135m`, a folder, or a name on the Hugging Face hub.
        commit: commit of a model on the hub, None for its newest one.

    Raises:
        FlowllmError: the model does not exist, or its folder is rejected by `check_model_folder`.
    """
    if name == BUNDLED:
        return _SHA256 + digest(bundled_file())
    folder = Path(name)
    if not folder.is_dir():
        return _COMMIT + fetch_model(name, commit).name
    check_model_folder(folder)
    weights = weight_files(folder, "fetch the model again")
    others = [path for path in start_files(name) if path.suffix != ".safetensors"]
    files = [*weights, *(path for path in others if any(map(path.match, PATTERNS)))]
    with ThreadPoolExecutor(usable_cores()) as pool:
        digests = list(pool.map(digest, files))
    lines = (f"{path.name}:{one}\n" for path, one in zip(files, digests, strict=True))
    return _SHA256 + hashlib.sha256("".join(lines).encode()).hexdigest()


def commit_of(content: str | None) -> str | None:
    """Return the commit in the content of a model on the hub; None for any other content."""
    if content is None or not content.startswith(_COMMIT):
        return None
    return content.removeprefix(_COMMIT)


def commit_to_train(section: FinetuneLlm, adapter: Path) -> str | None:
    """Return the commit of a base model on the hub that a fine-tuning loads.

    It is that of the adapter that the fine-tuning continues from, otherwise the fetched one.

    Args:
        section: base model, method and start.
        adapter: folder of the run's adapter, which need not exist.

    Returns:
        None for the newest commit, and for a model that is not on the hub.

    Raises:
        FlowllmError: a record is damaged.
    """
    name = section.base_model
    if section.start is not None and section.method == "lora":
        found = trained_commit(Path(section.start), name)
        if found is not None:
            return found
    return fetched_commit(adapter, name)


def trained_commit(adapter: Path, name: str) -> str | None:
    """Return the commit of the base model that an earlier adapter was trained on.

    Args:
        adapter: folder of the adapter.
        name: name of the base model.

    Returns:
        None if there is no record of an adapter of this model, or if the model is not on the hub.

    Raises:
        FlowllmError: the record is damaged.
    """
    if not (adapter / MODEL_RECORD).exists():
        return None
    record = read_record(adapter)
    return commit_of(record.base_content) if record.base_model == name else None


def fetched_commit(adapter: Path, name: str) -> str | None:
    """Return the commit that `fetch_model` has recorded for a run.

    Args:
        adapter: folder of the run's adapter, which need not exist.
        name: name of the base model.

    Returns:
        None if nothing is recorded of this model, which was then not fetched by a workflow, or if
        it is not a model on the hub.

    Raises:
        FlowllmError: the record is damaged.
    """
    path = adapter.with_name(FETCHED)
    if not path.exists():
        return None
    cure = "delete it and run fetch_model again"
    values = read_json(path, cure)
    check_form(values, _Fetched, path, cure)
    found = _Fetched.model_validate(values)
    return found.commit if found.base_model == name else None
