"""Compare predicted crystals with those of the test split: match rate and distance."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

from cyclopts.types import PositiveInt

from flowllm.config.sections.evaluation import Metrics
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.evaluate.matching import LOOSE
from flowllm.evaluate.parallel import ordered_map
from flowllm.evaluate.prediction import Target, compare, prediction_numbers, with_polymorphs
from flowllm.evaluate.samples import check_ids
from flowllm.io import schemas
from flowllm.io.files import write_text
from flowllm.io.schemas import CSP_FORMAT
from flowllm.io.shards import Shards
from flowllm.io.tables import (
    crystal_of,
    read_metadata,
    read_table,
    read_tables,
    required_crystal,
    write_table,
)
from flowllm.runtime.descent import check_computed_from
from flowllm.runtime.log import log
from flowllm.runtime.provenance import stage_run


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    metrics: Metrics


def run(
    settings: Settings,
    *,
    base: Shards,
    generated: Shards,
    crystals: Path,
    out: Path,
    workers: PositiveInt = 1,
) -> None:
    """Compare predicted crystals with those of the test split: match rate and distance.

    Args:
        settings: section `metrics`.
        base: Shards of sample_csp: files, or FOLDER=COUNT. Repeat the option for each.
        generated: Shards of refine, of the same draws, likewise.
        crystals: The test split (crystals/test.parquet).
        out: JSON file to write ({method}.json); one row per test crystal is written to the same
            name with .parquet.
        workers: Number of worker processes; the result does not depend on it.

    Raises:
        FlowllmError: an input is missing, has another schema, or belongs to another run.
    """
    section: Metrics = settings.metrics
    inputs: dict[str, Path | Sequence[Path]]
    inputs = {"base": base, "generated": generated, "crystals": crystals}
    with stage_run(settings, inputs=inputs, output=out) as run:
        targets = _targets(base, generated, crystals)
        check_computed_from(base, "crystals", [crystals])
        check_computed_from(generated, "base", base)
        rows = ordered_map(
            partial(compare, oxidation_states=section.oxidation_states),
            targets,
            workers=workers,
            what="predictions, test crystals",
        )
        made_by = read_metadata(generated[0]).get("settings", {})
        drawn_by = read_metadata(base[0]).get("settings", {}).get("sample_base", {})
        numbers = {
            "format": CSP_FORMAT,
            "setting": out.stem,
            "sampling": made_by.get("method") or made_by.get("setting", {}),
            "reject_close_atoms": bool(
                drawn_by.get("reject_close_atoms") or drawn_by.get("min_distance")
            ),
            "matcher": {"name": "pymatgen StructureMatcher", **asdict(LOOSE)},
            "oxidation_states": section.oxidation_states,
            "pymatgen": version("pymatgen"),
            **prediction_numbers(rows),
        }
        failed = sum(row["error"] is not None for row in rows)
        run.count(rows_in=len(rows), rows_out=len(rows), rows_failed=failed)
        write_table(out.with_suffix(".parquet"), rows, schemas.CSP, run.metadata())
        write_text(out, json.dumps(numbers, indent=1) + "\n")
        found = numbers["rates"]["match_rate"]
        log.info("match_rate: %d of %d", found["numerator"], found["denominator"])


def _targets(base: Sequence[Path], generated: Sequence[Path], crystals: Path) -> list[Target]:
    """Join predictions and test crystals; the draws of one crystal keep their order."""
    drawn = read_tables(base, schemas.CSP_BASE, ["id", "material_id"]).to_pylist()
    columns = ["id", "atomic_numbers", "frac_coords", "lengths", "angles"]
    made = {
        row["id"]: row for row in read_tables(generated, schemas.GENERATED, columns).to_pylist()
    }
    check_ids([row["id"] for row in drawn], made, generated[0], complete=True)
    known = {row["id"]: row for row in read_table(crystals, schemas.CRYSTALS, columns).to_pylist()}
    attempts: dict[str, list[Crystal | None]] = {}
    for row in drawn:
        attempts.setdefault(row["material_id"], []).append(crystal_of(made[row["id"]]))
    targets = []
    for material_id, predictions in attempts.items():
        if material_id not in known:
            raise FlowllmError(
                f"{crystals}: no crystal has the id {material_id}, which {base[0]} predicts; "
                "run sample_csp again"
            )
        crystal = required_crystal(known[material_id], crystals)
        targets.append(Target(material_id, crystal, tuple(predictions)))
    return with_polymorphs(targets)
