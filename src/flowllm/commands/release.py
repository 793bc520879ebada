"""Release the models of a finished run as a small folder with digests and a model card."""

from pathlib import Path

import torch
from cyclopts.types import PositiveFloat

from flowllm.commands.generate_run import FinishedRun, open_run
from flowllm.commands.options import MethodName, RunConfigFiles
from flowllm.commands.release_card import card
from flowllm.commands.release_facts import About, facts_of, read_about
from flowllm.commands.release_parts import write_config, write_crystals, write_hull, write_models
from flowllm.errors import FlowllmError
from flowllm.io.files import atomic_folder, check_folder
from flowllm.io.release import CARD, RELEASE, write_release
from flowllm.rfm.model import load_model
from flowllm.runtime.log import log, setup_logging

MEGABYTE = 1_000_000


def run(
    *,
    run: Path,
    out: Path,
    about: Path,
    max_megabytes: PositiveFloat = 8.0,
    config: RunConfigFiles = None,
    name: MethodName = None,
) -> None:
    """Release the models of a finished run as a folder that `flowllm generate` uses.

    The folder has the layout of a run's folder: the merged language model and the method's flow
    with matrices in float16, the hull, the known crystals, the configuration, SHA-256 digests of
    all files (flowllm-release.json) and a model card (README.md). The same run gives the same
    bytes.

    Args:
        run: Folder of a finished run (run_dir).
        out: Folder to write; an earlier release there is replaced.
        about: YAML file with title, license, data, attribution, limits and commands of the card.
        max_megabytes: Largest size of the folder in 10^6 bytes.
        config: Configuration file. Repeat the option to overlay further files. [the run's own
            config.yaml]
        name: Name of the method (its base, flow and steps). [the first with a flow]

    Raises:
        FlowllmError: the run lacks a part, the text is incomplete, or the folder is too large or
            has other content.
    """
    setup_logging(None)
    text = read_about(about)
    opened = open_run(run, config, name, drafts=True)
    opened.check(drafts=True, chain=True)
    check_target(out, run)
    size = release(opened, text, out, max_megabytes)
    log.info("release: %s, %.2f MB", out, size / MEGABYTE)


def check_target(out: Path, run: Path) -> None:
    """Refuse a folder that is not an earlier release, or is within the run.

    Raises:
        FlowllmError: the message names the folder and says what to do.
    """
    if out.resolve().is_relative_to(run.resolve()):
        raise FlowllmError(f"--out {out}: in the folder of the run; name a folder outside of it")
    if out.is_dir() and any(out.iterdir()) and not (out / RELEASE).exists():
        raise FlowllmError(
            f"--out {out}: has content and is no earlier release (no {RELEASE}); name a new folder"
        )
    check_folder(out)


def release(run: FinishedRun, about: About, out: Path, max_megabytes: float) -> int:
    """Write the folder, and return its size in bytes.

    Args:
        run: the finished run.
        about: text of the card.
        out: the folder.
        max_megabytes: largest size in 10^6 bytes.

    Raises:
        FlowllmError: a part of the run is damaged, or the folder is too large.
    """
    if run.flow is not None:
        load_model(run.flow, torch.device("cpu"))  # refuses a damaged flow
    facts = facts_of(run)
    with atomic_folder(out) as folder:
        write_models(run, folder)
        write_hull(run, folder)
        write_crystals(run, folder)
        write_config(run, folder)
        sizes = _sizes(folder)
        write_release(folder, about.model_dump(mode="json") | facts)
        (folder / CARD).write_text(card(about, facts, sizes))
        size = sum(_sizes(folder).values())
        if size > max_megabytes * MEGABYTE:
            largest = sorted(sizes.items(), key=lambda one: -one[1])[:3]
            shown = ", ".join(f"{name} {each:,}" for name, each in largest)
            raise FlowllmError(
                f"--out {out}: {size:,} bytes would exceed --max-megabytes {max_megabytes:g} "
                f"(largest: {shown}); release smaller models, or raise it"
            )
    return size


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of the files of a folder, by name."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
