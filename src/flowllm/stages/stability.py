"""Compute E_above_hull of every generated crystal, with the potential or with DFT."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pymatgen.core import Composition

from flowllm.config.sections.energies import Stability
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import (
    IMPLAUSIBLE_ENERGY,
    EnergySource,
    HullFile,
    ImplausibleEnergy,
    MissingReference,
    ReferenceHull,
    dft_label,
    measured_against,
    read_hull,
    read_second,
)
from flowllm.io import schemas, tables
from flowllm.io.shards import Shards
from flowllm.runtime.descent import check_computed_from
from flowllm.runtime.log import Progress
from flowllm.runtime.provenance import stage_run

Record = Mapping[str, Any]


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    stability: Stability


def run(
    settings: Settings,
    *,
    energies: Shards,
    hull: Path,
    kind: EnergySource,
    out: Path,
    second: Path | None = None,
    second_hull: Path | None = None,
) -> None:
    """Compute E_above_hull of every generated crystal of one method.

    Args:
        settings: section `stability`.
        energies: Shards of relaxed crystals (kind potential), or the table of DFT results (kind
            dft): files, or FOLDER=COUNT. Repeat the option for each.
        hull: Reference entries of the same kind (hull/{kind}.parquet).
        kind: Source of the energies.
        out: Table to write, one row per row of the energies, in their order.
        second: Energies of the same crystals by the second potential (kind potential).
        second_hull: Energies of the hull's entries by it.

    Raises:
        FlowllmError: the energies and those of the hull cannot be compared, or the second energies
            are of other crystals.
    """
    section: Stability = settings.stability
    readers: dict[EnergySource, Callable[[Sequence[Path]], Iterator[dict[str, Any]]]]
    readers = {"potential": _potential_rows, "dft": _dft_rows}
    if kind not in readers:
        raise FlowllmError(f"The kind of energies is {kind!r}; expected potential or dft.")
    inputs: dict[str, Path | Sequence[Path]] = {"energies": energies, "hull": hull}
    inputs |= _second_inputs(second, second_hull, kind)
    with stage_run(settings, inputs=inputs, work={"kind": kind}, output=out) as run:
        if second is not None and second_hull is not None:
            check_computed_from([second], "relaxed", energies)
            check_computed_from([second_hull], "hull", [hull])
        reference = read_hull(hull, kind, second_hull)
        given = with_second(list(readers[kind](energies)), second)
        labels = {row["energy_source"] for row in given if row["energy_per_atom"] is not None}
        check_same_energies(labels, reference.sources, hull)
        check_same_judge(given, reference)
        rows = stability_rows(given, reference, section)
        about_hull = {
            "hull_compositions": len(reference.hull),
            "hull_not_converged": reference.not_converged,
        }
        tables.write_table(out, rows, schemas.STABILITY, run.metadata() | about_hull)
        failed = sum(row["status"] != "ok" for row in rows)
        run.count(
            rows_in=len(rows),
            rows_out=len(rows),
            rows_failed=failed,
            stable=sum(row["stable"] for row in rows),
            metastable=sum(row["metastable"] for row in rows),
        )


def _potential_rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of relaxed crystals with their energy and its source."""
    columns = ["id", "formula", "final_energy_per_atom", "potential", "status", "error"]
    for row in tables.read_tables(paths, schemas.RELAXED, columns).to_pylist():
        yield with_energy(row)


def with_energy(row: Record) -> dict[str, Any]:
    """Return a row of `schemas.RELAXED` with its energy and the energy's source."""
    return {
        **row,
        "energy_per_atom": row["final_energy_per_atom"],
        "energy_source": row["potential"],
    }


def _dft_rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of DFT results with their corrected energy and its correction scheme."""
    columns = ["id", "formula", "corrected_energy_per_atom", "correction_scheme"]
    columns += ["status", "error"]
    for row in tables.read_tables(paths, schemas.DFT_RESULTS, columns).to_pylist():
        scheme = row["correction_scheme"]
        yield row | {
            "energy_per_atom": row["corrected_energy_per_atom"],
            "energy_source": dft_label(scheme) if scheme else None,
        }


def check_same_energies(labels: Collection[str], sources: Sequence[str], hull: Path) -> None:
    """Reject energies of another potential, relaxation criterion, code or correction.

    Args:
        labels: names of the energies.
        sources: names of the hull's energies.
        hull: file of the hull, for the message.

    Raises:
        FlowllmError: the energies cannot be compared with those of the hull.
    """
    if any(set(sources) - measured_against(label) for label in labels):
        raise FlowllmError(
            f"{hull}: the hull is of {' + '.join(sources)} and the energies are of "
            f"{', '.join(sorted(labels))}; make both with the same potential and criterion of "
            "relaxation (potential, prerelax) or the same correction (dft_collect)"
        )


def stability_rows(
    rows: Sequence[Record], reference: HullFile, section: Stability
) -> list[dict[str, Any]]:
    """Return the rows of `schemas.STABILITY` of rows with an energy, see `with_energy`."""
    progress = Progress("stability", len(rows))
    placed = []
    for row in rows:
        placed.append(_stability(row, reference, section))
        progress.advance()
    return placed


def with_second(rows: Sequence[Record], second: Path | None) -> list[dict[str, Any]]:
    """Return rows with an energy, with their energy by the second potential.

    Raises:
        FlowllmError: the table of the second potential has other ids.
    """
    if second is None:
        return [dict(row) for row in rows]
    energies, labels = read_second(second, [row["id"] for row in rows])
    label = " + ".join(sorted(labels)) or None
    return [
        {**row, "check_potential": label, "check_energy_per_atom": energy}
        for row, energy in zip(rows, energies, strict=True)
    ]


def _second_inputs(
    second: Path | None, second_hull: Path | None, kind: EnergySource
) -> dict[str, Path]:
    """Return the tables of the second potential by role; both are needed."""
    given = {"second": second, "second_hull": second_hull}
    found = {role: path for role, path in given.items() if path is not None}
    if found and (len(found) < len(given) or kind != "potential"):
        raise FlowllmError("give --second and --second-hull together, for --kind potential")
    return found


def check_same_judge(rows: Sequence[Record], reference: HullFile) -> None:
    """Reject a hull of another second potential than that of the crystals."""
    labels = {row["check_potential"] for row in rows if row.get("check_potential")}
    if not labels <= reference.check_sources:
        raise FlowllmError(
            f"potential.check is {' + '.join(sorted(labels))} for the crystals and "
            f"{' + '.join(sorted(reference.check_sources)) or 'none'} for the hull; run "
            "second_energies again for both"
        )


def _stability(row: Record, reference: HullFile, section: Stability) -> dict[str, Any]:
    """Return the row of one crystal; without a plausible energy or a reference it is not stable.

    The energy of an unfinished DFT relaxation is an upper bound, and so is its distance to the
    hull: a crystal that is stable with it is stable. The row keeps the status of the relaxation.
    """
    amounts = Composition(row["formula"]).get_el_amt_dict() if row["formula"] else {}
    status, error, distance, formation = row["status"], row["error"], None, None
    if row["energy_per_atom"] is not None:
        try:
            distance, formation = reference.hull.place(amounts, row["energy_per_atom"])
        except MissingReference as missing:
            status, error = "no_reference", str(missing)
        except ImplausibleEnergy as implausible:
            status, error = IMPLAUSIBLE_ENERGY, str(implausible)
    compounds = reference.hull.num_compounds(amounts) if len(amounts) > 1 else None
    enough = len(amounts) >= section.min_elements
    return {
        "id": row["id"],
        "formula": row["formula"],
        "num_elements": len(amounts) or None,
        "energy_per_atom": row["energy_per_atom"],
        "energy_source": row["energy_source"],
        "hull_source": " + ".join(reference.sources),
        "e_above_hull": distance,
        "check_e_above_hull": _check_distance(row, amounts, reference.check_hull),
        "check_energy_source": row.get("check_potential"),
        "hull_compounds": compounds,
        "formation_energy_per_atom": formation,
        "stable": distance is not None and enough and is_stable(distance, section),
        "metastable": distance is not None and enough and distance < section.metastable_below,
        "status": status,
        "error": error,
    }


def _check_distance(row: Record, amounts: Mapping[str, float], hull: ReferenceHull) -> float | None:
    """Return the distance to the hull by the second potential, None without one."""
    energy = row.get("check_energy_per_atom")
    if energy is None:
        return None
    try:
        return hull.place(amounts, energy)[0]
    except (MissingReference, ImplausibleEnergy):
        return None


def is_stable(e_above_hull: float, section: Stability) -> bool:
    """Return whether a distance to the hull in eV per atom is stable (paper, appendix D)."""
    if section.inclusive:
        return e_above_hull <= section.stable_below
    return e_above_hull < section.stable_below
