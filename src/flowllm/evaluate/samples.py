"""One record per generated crystal, joined from the files of all stages before the metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import IMPLAUSIBLE_ENERGY, EnergySource
from flowllm.io import schemas
from flowllm.io.tables import column_names, crystal_of, read_metadata, read_table, read_tables


@dataclass(frozen=True)
class Sample:
    """A draw of the language model, and its results at all later stages.

    Attributes:
        name: id of the draw.
        source_name: name in its source, for a sample of another model; None for our own.
        base_status: status of the language model's crystal.
        attempts: number of drafts; 0 where the file does not state it, or has another model's
            samples.
        rejections: reasons for the rejection of each earlier draft.
        generated_status: status after flow matching.
        generated: the crystal after flow matching, None where there is none.
        relaxed_status: status after relaxation; `missing` if none was computed, and
            `implausible_energy` if stability rejected its energy.
        relaxed: the relaxed crystal, None where there is none.
        converged: whether the relaxation converged.
        initial_energy: energy before relaxation by the potential, eV per atom; None for DFT.
        final_energy: energy after relaxation, eV per atom.
        num_steps: number of relaxation steps.
        num_elements: number of distinct elements of the generated crystal.
        e_above_hull: eV per atom, None without a reference or an energy.
        stable: result of the stage stability.
        metastable: result of the stage stability.
        taken_as: why DFT is run (`selected`, `candidate` or `control`); None if it is not.
        inclusion_probability: probability of being taken for DFT; None where it is not known.
        leads_class: whether the potential's crystal is novel and the nearest to the hull of its
            class; None if dft_inputs did not compare it.
        check_e_above_hull: by the second potential, eV per atom; None without one.
        hull_compounds: number of the hull's compounds among the crystal's elements; None for a
            crystal of one element or without a row of stability.
        formation_energy: eV per atom from the elements of the hull, None if unknown.
        asked: conditions of the draw as text by name; None for a base without conditions.
        known: energies that the source gives, eV per atom, None where it gives none: by the keys of
            `external_samples`; None for a row without such keys.
    """

    name: str
    source_name: str | None
    base_status: str
    attempts: int
    rejections: tuple[str, ...]
    generated_status: str
    generated: Crystal | None
    relaxed_status: str
    relaxed: Crystal | None
    converged: bool
    initial_energy: float | None
    final_energy: float | None
    num_steps: int | None
    num_elements: int | None
    e_above_hull: float | None
    stable: bool
    metastable: bool
    taken_as: str | None = None
    inclusion_probability: float | None = None
    leads_class: bool | None = None
    check_e_above_hull: float | None = None
    hull_compounds: int | None = None
    formation_energy: float | None = None
    asked: Mapping[str, str] | None = None
    known: Mapping[str, float | None] | None = None


@dataclass(frozen=True)
class Sources:
    """Origin of the numbers of a set of samples, recorded with the results.

    Attributes:
        kind: source of the energies: `potential` (estimates) or `dft`.
        energy_sources: names of the energies, from the stability table.
        hull_sources: names of the reference hulls.
        hull_compositions: number of compositions for which the reference has entries.
        hull_not_converged: number of entries of the reference whose energies are upper bounds.
        correction_schemes: correction schemes of DFT energies; empty for a potential.
        stability_rule: section `stability` of the configuration.
        base_row: the configuration's row of the base; empty where the file does not state it.
        base_section: section `sample_base`; empty where the file does not state it.
        method_row: the configuration's row of the method; empty where the file does not state it.
        external_row: the configuration's row of another model's samples; empty for our own.
        check_sources: names of the second potentials; empty without one.
    """

    kind: EnergySource
    energy_sources: tuple[str, ...]
    hull_sources: tuple[str, ...]
    hull_compositions: int
    hull_not_converged: int
    correction_schemes: tuple[str, ...]
    stability_rule: dict[str, Any]
    base_row: dict[str, Any]
    base_section: dict[str, Any]
    method_row: dict[str, Any]
    external_row: dict[str, Any]
    check_sources: tuple[str, ...] = ()


def read_samples(
    base: Sequence[Path], generated: Sequence[Path], relaxed: Sequence[Path], stability: Path
) -> tuple[list[Sample], Sources]:
    """Join the shards of all stages by id.

    Returns:
        One sample per draw of the base, sorted by id, and the origin of the numbers.

    Raises:
        FlowllmError: a file is missing or has another schema, a draw is not among the generated
            crystals, or a later file has an id that is not among the draws.
    """
    kind = _kind(relaxed[0])
    schema = schemas.RELAXED if kind == "potential" else schemas.DFT_RESULTS
    base_rows = _by_id(read_tables(base, schemas.BASE))
    generated_rows = _by_id(read_tables(generated, schemas.GENERATED))
    relaxed_table = read_tables(relaxed, schema)
    relaxed_rows = _by_id(relaxed_table)
    stability_table = read_table(stability, schemas.STABILITY)
    stability_rows = _by_id(stability_table)
    check_ids(base_rows, generated_rows, generated[0], complete=True)
    check_ids(base_rows, relaxed_rows, relaxed[0], complete=kind == "potential")
    check_ids(base_rows, stability_rows, stability, complete=kind == "potential")
    rule = _section(stability, "stability")
    about_hull = read_metadata(stability)
    if not rule or not {"hull_compositions", "hull_not_converged"} <= set(about_hull):
        raise FlowllmError(
            f"{stability}: the footer does not state the thresholds and the hull. Run the stage "
            "stability again."
        )
    names, asked = _source_names(generated), _asked(base)
    samples = [
        join_rows(
            base_rows[name],
            generated_rows[name],
            relaxed_rows.get(name),
            stability_rows.get(name),
            names.get(name),
            asked.get(name),
        )
        for name in sorted(base_rows)
    ]
    if _section(base[0], "external"):  # import_samples counts one attempt per sample
        samples = [replace(sample, attempts=0) for sample in samples]
    if known := _known(generated):
        samples = [replace(sample, known=known[sample.name]) for sample in samples]
    dft = kind == "dft"
    sources = Sources(
        kind=kind,
        energy_sources=_distinct(stability_table, "energy_source"),
        hull_sources=_distinct(stability_table, "hull_source"),
        hull_compositions=about_hull["hull_compositions"],
        hull_not_converged=about_hull["hull_not_converged"],
        correction_schemes=_distinct(relaxed_table, "correction_scheme") if dft else (),
        stability_rule=rule,
        base_row=_section(base[0], "base"),
        base_section=_section(base[0], "sample_base"),
        method_row=_section(generated[0], "method") or _section(generated[0], "setting"),
        external_row=_section(generated[0], "external"),
        check_sources=_distinct(stability_table, "check_energy_source"),
    )
    return samples, sources


def _kind(path: Path) -> EnergySource:
    """Return the source of the energies of relaxed crystals, by the columns of their file.

    Raises:
        FlowllmError: the file is missing or is not Parquet.
    """
    is_dft = "corrected_energy_per_atom" in column_names(path)
    return "dft" if is_dft else "potential"


def _source_names(generated: Sequence[Path]) -> dict[str, str]:
    """Return the names of another model's samples in their source by id; empty for our own."""
    columns = ["id", "source_name"]
    return {
        row["id"]: row["source_name"]
        for path in generated
        if "source_name" in column_names(path)
        for row in read_table(path, schemas.IMPORTED, columns).to_pylist()
    }


def _known(generated: Sequence[Path]) -> dict[str, dict[str, float | None]]:
    """Return the energies that the source of samples gives by id; empty where it gives none."""
    names = ["known_e_above_hull", "known_formation_energy"]
    return {
        row["id"]: {name: row[name] for name in names}
        for path in generated
        if names[0] in column_names(path)
        for row in read_table(path, schemas.SAMPLES_WITH_ENERGIES, ["id", *names]).to_pylist()
    }


def _asked(base: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Return the conditions of the draws by id; empty for a base without conditions."""
    return {
        row["id"]: dict(row["asked"])
        for path in base
        if "asked" in column_names(path)
        for row in read_table(path, schemas.REQUESTED_BASE, ["id", "asked"]).to_pylist()
    }


def _by_id(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in table.to_pylist()}


def check_ids(drawn: Iterable[str], found: Iterable[str], path: Path, *, complete: bool) -> None:
    """Refuse files of different runs, whose ids differ.

    Args:
        drawn: ids of the base crystals.
        found: ids in the file.
        path: the file.
        complete: whether the file must have every base crystal.

    Raises:
        FlowllmError: the file has an id that is not among the base crystals, or lacks one that it
            must have.
    """
    foreign = sorted(set(found) - set(drawn))
    missing = sorted(set(drawn) - set(found))
    if foreign:
        raise FlowllmError(
            f"{path}: id {foreign[0]!r} ({len(foreign)} such ids) is not among the base crystals. "
            "The files are from different runs: give the files of one run, or run the stage that "
            "made this file again."
        )
    if complete and missing:
        raise FlowllmError(
            f"{path}: {len(missing)} of the base crystals are missing, first {missing[0]!r}. A "
            "shard is missing or is from another run: give all shards of one run."
        )


def join_rows(
    base: Mapping[str, Any],
    generated: Mapping[str, Any],
    relaxed: Mapping[str, Any] | None,
    stability: Mapping[str, Any] | None,
    source_name: str | None,
    asked: dict[str, str] | None,
) -> Sample:
    """Return the sample of the rows that the stages wrote for one draw, None for no row."""
    crystal = crystal_of(generated) if generated["status"] == "ok" else None
    relaxed = relaxed or {"status": "missing", "lengths": None}
    stability = stability or {}
    relaxed = without_implausible(relaxed, stability)
    return Sample(
        name=base["id"],
        source_name=source_name,
        base_status=base["status"],
        attempts=base["attempts"] or 0,
        rejections=tuple(base["rejections"] or ()),
        generated_status=generated["status"],
        generated=crystal,
        relaxed_status=relaxed["status"],
        # The row of an unfinished DFT relaxation contains its last structure.
        relaxed=crystal_of(relaxed),
        converged=bool(relaxed.get("converged", relaxed.get("converged_ionic"))),
        initial_energy=relaxed.get("initial_energy_per_atom"),
        final_energy=relaxed.get("final_energy_per_atom", relaxed.get("corrected_energy_per_atom")),
        num_steps=relaxed.get("num_steps"),
        num_elements=None if crystal is None else len(set(crystal.atomic_numbers.tolist())),
        e_above_hull=stability.get("e_above_hull"),
        stable=bool(stability.get("stable")),
        metastable=bool(stability.get("metastable")),
        taken_as=relaxed.get("taken_as"),
        inclusion_probability=relaxed.get("inclusion_probability"),
        leads_class=relaxed.get("leads_class"),
        check_e_above_hull=stability.get("check_e_above_hull"),
        hull_compounds=stability.get("hull_compounds"),
        formation_energy=stability.get("formation_energy_per_atom"),
        asked=asked,
    )


def without_implausible(
    relaxed: Mapping[str, Any], stability: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the row of a relaxation, without its results if stability found them implausible."""
    if stability.get("status") != IMPLAUSIBLE_ENERGY:
        return relaxed
    about_draw = ("id", "formula", "taken_as", "inclusion_probability", "leads_class")
    kept = {name: value for name, value in relaxed.items() if name in about_draw}
    reason = {name: stability[name] for name in ("status", "error")}
    return {**dict.fromkeys(relaxed), **kept, **reason}


def _distinct(table: pa.Table, column: str) -> tuple[str, ...]:
    return tuple(sorted({value for value in table.column(column).to_pylist() if value is not None}))


def _section(path: Path, name: str) -> dict[str, Any]:
    """Return a section of the settings in the footer of a file; empty without it."""
    return dict(read_metadata(path).get("settings", {}).get(name, {}))
