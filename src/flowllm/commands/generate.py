"""Generate crystals on request: from a wish to a short list of candidates (`flowllm generate`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt
from cyclopts.validators import Number

from flowllm.commands.generate_chain import follow, open_hull
from flowllm.commands.generate_drafts import draft_rows, given_rows
from flowllm.commands.generate_files import (
    CRYSTALS,
    DRAFTS,
    check_output,
    printed_table,
    warnings_of,
    write_drafts,
    write_folder,
)
from flowllm.commands.generate_run import FinishedRun, folder_of_models, open_run
from flowllm.commands.generate_table import table_rows
from flowllm.commands.options import MethodName, RunConfigFiles
from flowllm.config.stage_settings import StageSettings
from flowllm.data.wishes import ElementsMode, Words, read_wishes
from flowllm.errors import FlowllmError
from flowllm.runtime.log import log, progress_bars, setup_logging
from flowllm.runtime.provenance import StageRun, recorded

Row = dict[str, Any]

SpaceGroup = Annotated[int, Parameter(name="--space-group", validator=Number(gte=1, lte=230))]

VERSION = 2
"""Of the command's results, as `Stage.version`."""


ONLY_GIVEN = (
    "--from starts from given crystals: it takes no conditions, no --count and no --drafts-only"
)
"""Refusal of options that apply to drafts."""


def run(
    *,
    run: Path | None = None,
    out: Path,
    formula: str | None = None,
    elements: str | None = None,
    elements_mode: ElementsMode | None = None,
    num_atoms: PositiveInt | None = None,
    space_group_number: SpaceGroup | None = None,
    formation_energy_per_atom: float | None = None,
    band_gap: float | None = None,
    e_above_hull: float | None = None,
    wishes: Path | None = None,
    given: Annotated[Path | None, Parameter(name="--from")] = None,
    count: PositiveInt | None = None,
    drafts_only: Annotated[bool, Parameter(negative=())] = False,
    gpus: NonNegativeInt = 0,
    config: RunConfigFiles = None,
    name: MethodName = None,
) -> None:
    """Generate crystals on request: draft, refine, relax, and rank them by energy above the hull.

    Without --run, the small models that come with FlowLLM are used. Without a condition the prompt
    has none. The folder receives the crystals by energy above the
    hull as table (crystals.parquet), CIF files (cif/) and page (index.html), and the drafts.

    Args:
        run: Folder of a run whose models are trained (run_dir). [the small models]
        out: New folder to write.
        formula: Formula of the cell, e.g. Na4Cl4.
        elements: Elements of the crystal, e.g. Na,Cl.
        elements_mode: Whether all of the elements must occur (exact), or at least one (subset).
            [exact]
        num_atoms: Number of atoms per cell.
        space_group_number: Number of the space group.
        formation_energy_per_atom: Formation energy in eV per atom.
        band_gap: Band gap in eV.
        e_above_hull: Energy above the hull in eV per atom.
        wishes: CSV file with one column per condition and one row per wish.
        given: Folder of CIF files, or another file of crystals, to start from in place of drafts.
        count: Drafts per wish. [1]
        drafts_only: Stop after the drafts.
        gpus: Number of GPUs of the language model, 0 for the CPU.
        config: Configuration file. Repeat the option to overlay further files. [the run's own
            config.yaml]
        name: Name of the method (its base, flow and steps). [the first with a flow]

    Raises:
        FlowllmError: the run lacks a part, conditions are invalid or given twice, or the folder has
            content.
    """
    setup_logging(None)
    words = _words(
        formula=formula,
        elements=elements,
        elements_mode=elements_mode,
        num_atoms=num_atoms,
        space_group_number=space_group_number,
        formation_energy_per_atom=formation_energy_per_atom,
        band_gap=band_gap,
        e_above_hull=e_above_hull,
    )
    if wishes is not None and words:
        raise FlowllmError("Give conditions either as options or as a file, not both.")
    if given is not None and (wishes is not None or words or count or drafts_only):
        raise FlowllmError(ONLY_GIVEN)
    folder = folder_of_models(run)
    opened = open_run(folder, config, name, drafts=given is None)
    check_output(out, folder)
    opened.check(drafts=given is None, chain=not drafts_only)
    asked = tuple(read_wishes(wishes, opened.own_conditions())) if wishes else (words,)
    request = Request(() if given else asked, count or 1, gpus, given, drafts_only)
    with progress_bars():
        rows = generate(opened, request, out)
    print("\n".join(printed_table(rows, out)) if rows else out / DRAFTS)


def _words(**options: object) -> dict[str, str]:
    """Return the conditions that were given as options, as text."""
    return {name: str(value) for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Request:
    """What is generated.

    Attributes:
        asked: wishes as the user writes them; empty for given crystals.
        count: drafts per wish.
        gpus: GPUs of the language model, 0 for the CPU.
        given: files of crystals in place of drafts; None for drafts.
        drafts_only: whether nothing follows the drafts.
    """

    asked: tuple[Words, ...]
    count: int
    gpus: int = 0
    given: Path | None = None
    drafts_only: bool = False

    def drafts(self, run: FinishedRun) -> list[Row]:
        """Sample the drafts, or read the given crystals; rows of `schemas.BASE`."""
        if self.given is not None:
            return given_rows(self.given, run.config.prepare.cell)
        settings = run.draft_settings()
        asked, count, gpus = self.asked, self.count, self.gpus
        return draft_rows(settings, model=run.model, asked=asked, count=count, gpus=gpus)


def generate(run: FinishedRun, request: Request, out: Path) -> list[Row]:
    """Generate crystals and write their folder.

    Args:
        run: the run whose models, hull and training crystals are used.
        request: what is generated.
        out: the folder.

    Returns:
        Rows of `schemas.ON_REQUEST`, by energy above the hull; none for drafts alone.

    Raises:
        FlowllmError: the run lacks a part, or a wish or the given crystals cannot be used.
    """
    about = _record(run, request)
    with recorded(about, out / (DRAFTS if request.drafts_only else CRYSTALS)):
        hull = None if request.drafts_only else open_hull(run)
        drafts = request.drafts(run)
        failed = sum(row["status"] != "ok" for row in drafts)
        about.count(rows_in=len(drafts), rows_out=len(drafts) - failed, rows_failed=failed)
        if hull is None:
            write_drafts(out, drafts, about.metadata())
            return []
        names = {row["id"]: row["source_name"] for row in drafts if "source_name" in row}
        rows = table_rows(follow(drafts, run, hull), names)
        relaxed = sum(row["rank"] is not None for row in rows)
        about.count(rows_out=relaxed, rows_failed=len(rows) - relaxed)
        write_folder(out, drafts, rows, hull, run.config.report.color, about.metadata())
    for said in warnings_of(rows, hull):
        log.warning("generate: %s", said)
    return rows


def _record(run: FinishedRun, request: Request) -> StageRun:
    """Return the record of a request: settings of all its stages, and the files that it uses."""
    settings: list[StageSettings] = []
    inputs: dict[str, Path | Sequence[Path]] = {}
    if request.given is None:
        settings.append(run.draft_settings())
        inputs["model"] = run.model
    else:
        inputs["given"] = request.given
    if not request.drafts_only:
        settings += run.chain_settings().stages
        inputs |= {"hull": run.hull, **run.splits}
        if run.flow is not None:
            inputs["flow"] = run.flow
    values = {name: value for stage in settings for name, value in stage.values.items()}
    work = {"asked": [dict(words) for words in request.asked], "count": request.count}
    return StageRun("generate", VERSION, values, run.config.seed, inputs, work)
