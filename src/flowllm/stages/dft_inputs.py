"""Select relaxed crystals and write a folder of DFT inputs for each."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pymatgen.core import Composition

from flowllm import dft, seeds
from flowllm.config.sections.energies import Dft, DftInputs
from flowllm.config.stage_settings import StageSettings
from flowllm.dft.inputs import (
    folder_name,
    input_set_of,
    input_set_version,
    missing_pseudopotentials,
    write_folder,
)
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.io.files import write_text
from flowllm.io.shards import Shards
from flowllm.runtime.descent import check_computed_from, generated_digests
from flowllm.runtime.log import Progress
from flowllm.runtime.provenance import stage_run

Record = Mapping[str, Any]


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    dft: Dft
    dft_inputs: DftInputs


def run(settings: Settings, *, relaxed: Shards, stability: Path, out: Path) -> None:
    """Select relaxed crystals and write one folder of DFT inputs for each.

    A row without a folder has the reason as its status: the failure of an earlier stage,
    `no_pseudopotential`, or `not_selected`.

    Args:
        settings: sections `dft` and `dft_inputs`.
        relaxed: Shards of relaxed crystals: files, or FOLDER=COUNT. Repeat the option for each.
        stability: Table of stability with the potential's energies.
        out: Manifest to write (manifest.parquet), one row per relaxed row; the folders are written
            beside it.

    Raises:
        FlowllmError: the inputs do not belong together, or the output is an existing folder.
    """
    section: DftInputs = settings.dft_inputs
    if out.is_dir():
        raise FlowllmError(f"{out}: is a folder, but the manifest is written there; move it away")
    input_set = input_set_of(settings.dft.code, section)
    with stage_run(
        settings,
        inputs={"relaxed": relaxed, "stability": stability},
        output=out,
    ) as run:
        rows = tables.read_tables(relaxed, schemas.RELAXED).to_pylist()
        distances = _distances(stability, rows)
        check_computed_from([stability], "energies", relaxed)
        folder = relaxed[0].parent
        manifest = [_first_row(row, input_set, folder) for row in rows]
        chosen = _select(manifest, distances, section, settings.seed)
        progress = Progress("dft_inputs", len(chosen))
        for number, place in enumerate(chosen):
            directory = f"{number // section.folders_per_directory:05d}"
            path = Path(directory) / folder_name(rows[place]["id"])
            crystal = tables.required_crystal(rows[place], folder)
            # An earlier manifest does not describe other inputs.
            written = write_folder(
                crystal, input_set, section, out.parent / path, partial(out.unlink, missing_ok=True)
            )
            manifest[place] |= {
                "path": path.as_posix(),
                "input_set": input_set,
                "input_set_version": input_set_version(),
                "potcar_symbols": written.potcar_symbols,
                "structure_hash": written.structure_hash,
            }
            progress.advance()
        for place in set(range(len(rows))) - set(chosen):
            if manifest[place]["status"] == "ok":
                manifest[place] |= _why_not(distances[rows[place]["id"]], section)
        _write_scripts(out.parent, manifest)
        metadata = run.metadata() | generated_digests(relaxed)
        tables.write_table(out, manifest, schemas.DFT_MANIFEST, metadata)
        run.count(rows_in=len(rows), rows_out=len(chosen), rows_failed=0, **_counts(manifest))


def _write_scripts(folder: Path, manifest: Sequence[Record]) -> None:
    """Write the list of folders, one per line, and the scripts that run them on a cluster."""
    paths = [row["path"] for row in manifest if row.get("path")]
    write_text(folder / "folders.txt", "".join(f"{path}\n" for path in paths))
    for name in ("job_array.sh", "gpaw_static.py"):
        write_text(folder / name, (Path(dft.__file__).parent / name).read_text())


def _distances(stability: Path, rows: Sequence[Record]) -> dict[str, float | None]:
    """Return E_above_hull with the potential by id, None where there is none."""
    columns = ("id", "e_above_hull")
    table = tables.read_table(stability, schemas.STABILITY, columns).to_pylist()
    distances = {row["id"]: row["e_above_hull"] for row in table}
    missing = [row["id"] for row in rows if row["id"] not in distances]
    if missing:
        raise FlowllmError(
            f"{stability}: no row for id {missing[0]} and {len(missing) - 1} more; "
            "it was made from other crystals; run stability again"
        )
    return distances


def _first_row(row: Record, input_set: str, folder: Path) -> dict[str, Any]:
    """Return a row of the manifest before the selection.

    Its status is that of an earlier failure, no_pseudopotential, or ok.
    """
    first = {name: row[name] for name in ("id", "formula", "status", "error")}
    if row["status"] == "ok":
        missing = missing_pseudopotentials(tables.required_crystal(row, folder), input_set)
        if missing:
            detail = f"{input_set} has no pseudopotential for {', '.join(missing)}"
            first |= {"status": "no_pseudopotential", "error": detail}
    return first


def _select(
    manifest: Sequence[Record],
    distances: Mapping[str, float | None],
    section: DftInputs,
    seed: int,
) -> list[int]:
    """Return the indices of the rows that get a folder, in ascending order."""
    places = [place for place, row in enumerate(manifest) if row["status"] == "ok"]
    ids = {place: manifest[place]["id"] for place in places}
    if section.selection == "e_above_hull":
        known = [(distances[ids[place]], ids[place], place) for place in places]
        # Nearest to the hull first where there are more than max_crystals.
        near = sorted(
            (distance, name, place)
            for distance, name, place in known
            if distance is not None and distance <= section.max_e_above_hull
        )
        places = [place for _, _, place in near]
    elif section.selection in ("random", "n_ary"):
        formulas = [manifest[place]["formula"] for place in places]
        weights = n_ary_weights(formulas) if section.selection == "n_ary" else [1.0] * len(places)
        keys = {
            place: _draw_key(seed, ids[place], weight)
            for place, weight in zip(places, weights, strict=True)
        }
        places.sort(key=keys.__getitem__)
    if section.selection != "all":
        places = places[: section.max_crystals]
    return sorted(places)


def n_ary_weights(formulas: Sequence[str]) -> list[float]:
    """Return weights with which each number of elements has the same total probability."""
    numbers = [len(Composition(formula)) for formula in formulas]
    counts = Counter(numbers)
    return [1 / counts[number] for number in numbers]


def _draw_key(seed: int, crystal_id: str, weight: float) -> float:
    """Sort key of a weighted draw without replacement (Efraimidis and Spirakis 2006).

    It depends on the crystal alone, so that a larger sample holds the smaller one.
    """
    uniform = seeds.generator(seed, "dft_inputs", crystal_id).random()
    return -math.log1p(-uniform) / weight


def _why_not(distance: float | None, section: DftInputs) -> dict[str, str]:
    """Status of a crystal that could have had a folder."""
    shown = "unknown" if distance is None else f"{distance:.3f} eV/atom"
    detail = f"selection {section.selection}, e_above_hull {shown}"
    return {"status": "not_selected", "error": detail}


def _counts(manifest: Sequence[Record]) -> dict[str, Any]:
    statuses = [row["status"] for row in manifest]
    reasons = {name: statuses.count(name) for name in sorted(set(statuses)) if name != "ok"}
    return {"without_folder": reasons}
