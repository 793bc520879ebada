"""Select relaxed crystals and write a folder of DFT inputs for each."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flowllm import dft
from flowllm.config.sections.energies import Dft, DftInputs
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.dft.inputs import (
    folder_name,
    input_set_of,
    input_set_version,
    missing_pseudopotentials,
    write_folder,
)
from flowllm.dft.selection import Choice, Relaxed, choose
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import IMPLAUSIBLE_ENERGY
from flowllm.io import schemas, tables
from flowllm.io.files import write_text
from flowllm.io.shards import Shards
from flowllm.runtime.descent import check_computed_from, generated_digests
from flowllm.runtime.log import Progress, log
from flowllm.runtime.provenance import stage_run

Record = Mapping[str, Any]


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    dft: Dft
    dft_inputs: DftInputs


def run(
    settings: Settings,
    *,
    relaxed: Shards,
    stability: Path,
    out: Path,
    per_crystal: Sequence[Path] = (),
) -> None:
    """Select relaxed crystals and write one folder of DFT inputs for each.

    A row without a folder has the reason as its status: the failure of an earlier stage,
    `no_pseudopotential`, or `not_selected`.

    Args:
        settings: sections `dft` and `dft_inputs`.
        relaxed: Shards of relaxed crystals: files, or FOLDER=COUNT. Repeat the option for each.
        stability: Table of stability with the potential's energies.
        out: Manifest to write (manifest.parquet), one row per relaxed row; the folders are written
            beside it.
        per_crystal: Metrics per crystal with the potential's energies
            (metrics/potential/{method}.parquet), from which the selection candidates takes
            uniqueness and novelty.

    Raises:
        FlowllmError: the inputs do not belong together, or the output is an existing folder.
    """
    section: DftInputs = settings.dft_inputs
    if out.is_dir():
        raise FlowllmError(f"{out}: is a folder, but the manifest is written there; move it away")
    input_set = input_set_of(settings.dft.code, section)
    compared = _compared(section, per_crystal)
    with stage_run(
        settings,
        inputs={"relaxed": relaxed, "stability": stability, "per_crystal": compared},
        output=out,
    ) as run:
        rows = tables.read_tables(relaxed, schemas.RELAXED).to_pylist()
        energies = _energies(stability, rows)
        check_computed_from([stability], "energies", relaxed)
        folder = relaxed[0].parent
        manifest = [_first_row(row, energies[row["id"]], input_set, folder) for row in rows]
        check_computed_from(compared, "stability", [stability])
        matches = _matches(compared, rows)
        choices = choose(_known(manifest, energies, matches), section, settings.seed)
        taken = {name for name, choice in choices.items() if choice.taken_as is not None}
        chosen = [place for place, row in enumerate(rows) if row["id"] in taken]
        crystals = {place: tables.required_crystal(rows[place], folder) for place in chosen}
        _write_folders(manifest, crystals, input_set, section, out)
        manifest = [_with_choice(row, choices.get(row["id"])) for row in manifest]
        _write_scripts(out.parent, manifest)
        metadata = run.metadata() | generated_digests(relaxed)
        tables.write_table(out, manifest, schemas.DFT_MANIFEST, metadata)
        run.count(rows_in=len(rows), rows_out=len(chosen), rows_failed=0, **_counts(manifest))


def _compared(section: DftInputs, per_crystal: Sequence[Path]) -> Sequence[Path]:
    """Return the metrics per crystal where the selection needs them."""
    if section.selection != "candidates":
        return ()
    if len(per_crystal) != 1:
        raise FlowllmError(
            "dft_inputs.selection candidates needs --per-crystal, the method's "
            "metrics/potential/METHOD.parquet; give it once, or choose another selection"
        )
    return per_crystal


def _write_folders(
    manifest: Sequence[dict[str, Any]],
    crystals: Mapping[int, Crystal],
    input_set: str,
    section: DftInputs,
    out: Path,
) -> None:
    """Write the folder of each crystal, by its place in the manifest, and complete its row."""
    # An earlier manifest does not describe other inputs.
    forget = partial(out.unlink, missing_ok=True)
    progress = Progress("dft_inputs", len(crystals))
    for place, crystal in crystals.items():
        # By the place among all crystals, so that another selection leaves the folders in place.
        directory = out.parent / f"{place // section.folders_per_directory:05d}"
        path = directory / folder_name(manifest[place]["id"])
        written = write_folder(crystal, input_set, section, path, forget)
        manifest[place] |= {
            "path": path.relative_to(out.parent).as_posix(),
            "input_set": input_set,
            "input_set_version": input_set_version(),
            "potcar_symbols": written.potcar_symbols,
            "structure_hash": written.structure_hash,
        }
        progress.advance()


def _write_scripts(folder: Path, manifest: Sequence[Record]) -> None:
    """Write the list of folders, one per line, and the scripts that run them on a cluster.

    A script that is there and differs was edited, or is of another version, and stays. The script
    of this version is then written beside it, with the suffix `.new`.
    """
    paths = [row["path"] for row in manifest if row.get("path")]
    write_text(folder / "folders.txt", "".join(f"{path}\n" for path in paths))
    for name in ("job_array.sh", "gpaw_static.py"):
        path, text = folder / name, (Path(dft.__file__).parent / name).read_text()
        if path.exists() and path.read_text() != text:
            path = path.with_name(f"{name}.new")
            log.warning("dft_inputs: %s: kept, since it was edited; see %s", folder / name, path)
        write_text(path, text)


def _energies(stability: Path, rows: Sequence[Record]) -> dict[str, Record]:
    """Return E_above_hull by the potential, the hull's compounds, and the status by id."""
    columns = ("id", "e_above_hull", "hull_compounds", "status", "error")
    table = tables.read_table(stability, schemas.STABILITY, columns).to_pylist()
    found = {row["id"]: row for row in table}
    _check_ids(stability, "stability", rows, found)
    return found


def _matches(compared: Sequence[Path], rows: Sequence[Record]) -> dict[str, Record]:
    """Return class, novelty and the known crystal of each row by id; empty without the metrics."""
    found: dict[str, Record] = {}
    columns = ("id", "duplicate_group", "novel", "matched_material_id")
    for path in compared:
        table = tables.read_table(path, schemas.METRICS_PER_CRYSTAL, columns).to_pylist()
        found |= {row["id"]: row for row in table}
        _check_ids(path, "metrics", rows, found)
    return found


def _check_ids(path: Path, stage: str, rows: Sequence[Record], found: Mapping[str, object]) -> None:
    """Check that a table of another stage has all crystals.

    Raises:
        FlowllmError: a row is missing.
    """
    missing = [row["id"] for row in rows if row["id"] not in found]
    if missing:
        raise FlowllmError(
            f"{path}: no row for id {missing[0]} and {len(missing) - 1} more; "
            f"it was made from other crystals; run {stage} again"
        )


def _known(
    manifest: Sequence[Record],
    energies: Mapping[str, Record],
    matches: Mapping[str, Record],
) -> list[Relaxed]:
    """Return what is known of the crystals that can be computed."""
    found = []
    for row in manifest:
        if row["status"] == "ok":
            name = row["id"]
            match = matches.get(name, {})
            found.append(
                Relaxed(
                    name=name,
                    formula=row["formula"],
                    e_above_hull=energies[name]["e_above_hull"],
                    bare_hull=energies[name]["hull_compounds"] == 0,
                    group=match.get("duplicate_group"),
                    novel=match.get("novel"),
                    known_as=match.get("matched_material_id"),
                )
            )
    return found


def _with_choice(row: Record, choice: Choice | None) -> dict[str, Any]:
    """Return a row of the manifest with why it is computed or not."""
    if choice is None:
        return {**row, "reason": f"{row['status']}: {row['error']}"}
    completed = {
        **row,
        "taken_as": choice.taken_as,
        "inclusion_probability": choice.probability,
        "leads_class": choice.leads_class,
        "reason": choice.reason,
    }
    if choice.taken_as is None:
        completed |= {"status": "not_selected", "error": choice.reason}
    return completed


def _first_row(row: Record, placed: Record, input_set: str, folder: Path) -> dict[str, Any]:
    """Return a row of the manifest before the selection.

    Its status is that of an earlier failure, implausible_energy, no_pseudopotential, or ok.

    Args:
        row: row of `schemas.RELAXED`.
        placed: the crystal's row of `schemas.STABILITY`.
        input_set: name of the input set.
        folder: of the relaxed crystals, for messages.
    """
    first = {name: row[name] for name in ("id", "formula", "status", "error")}
    if placed["status"] == IMPLAUSIBLE_ENERGY:
        first |= {name: placed[name] for name in ("status", "error")}
    elif row["status"] == "ok":
        missing = missing_pseudopotentials(tables.required_crystal(row, folder), input_set)
        if missing:
            detail = f"{input_set} has no pseudopotential for {', '.join(missing)}"
            first |= {"status": "no_pseudopotential", "error": detail}
    return first


def _counts(manifest: Sequence[Record]) -> dict[str, Any]:
    statuses = [row["status"] for row in manifest]
    reasons = {name: statuses.count(name) for name in sorted(set(statuses)) if name != "ok"}
    taken = [row["taken_as"] for row in manifest if row.get("taken_as")]
    return {
        "without_folder": reasons,
        "taken_as": {name: taken.count(name) for name in sorted(set(taken))},
    }
