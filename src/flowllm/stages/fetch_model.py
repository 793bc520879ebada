"""Download and check the base model before any job needs it: a local step with internet."""

import json
from pathlib import Path

from flowllm.config.sections.scratch import SCRATCH
from flowllm.config.stage_settings import StageSettings
from flowllm.io.files import write_text
from flowllm.llm.base_content import trained_commit
from flowllm.llm.base_model import check_architecture, load_config
from flowllm.llm.hub import fetch_model
from flowllm.llm.model_files import BUNDLED, check_model_folder
from flowllm.runtime.provenance import stage_run


def run(settings: StageSettings, *, base_model: str, out: Path, start: Path | None = None) -> None:
    """Download the base model, so that compute nodes need no internet, and check its files.

    A local folder, the bundled model and a model with random weights need no download.

    Args:
        settings: no sections; the workflow gives the name alone, so that no other value of
            `finetune_llm` downloads the model again.
        base_model: The configuration's finetune_llm.base_model.
        out: JSON file to write, with the name and, for a model on the hub, its commit.
        start: Record (flowllm.json) of the earlier adapter that the fine-tuning continues from,
            whose commit of the base model is fetched; none for the newest commit.

    Raises:
        FlowllmError: the model cannot be fetched; its files are damaged or contain code or
            pickles; or its architecture is not that of a causal language model.
    """
    inputs = {} if start is None else {"start": start}
    known = None if start is None else trained_commit(start.parent, base_model)
    with stage_run(settings, inputs=inputs, output=out, work={"base_model": base_model}):
        is_made = base_model in (BUNDLED, SCRATCH)
        is_local = is_made or Path(base_model).is_dir()
        folder = Path(base_model) if is_local else fetch_model(base_model, known)
        if not is_made:
            check_model_folder(folder)
            check_architecture(load_config(str(folder)))
        fetched = {"base_model": base_model, "commit": None if is_local else folder.name}
        write_text(out, json.dumps(fetched, indent=1) + "\n")
