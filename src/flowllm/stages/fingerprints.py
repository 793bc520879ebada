"""Fingerprints of the generated crystals and of the test split, for coverage."""

from collections import Counter
from pathlib import Path
from typing import Any

from cyclopts.types import PositiveInt

from flowllm.config.sections.evaluation import Fingerprints
from flowllm.config.stage_settings import StageSettings
from flowllm.evaluate.fingerprints import fingerprint, without_fingerprint
from flowllm.evaluate.parallel import Limits, limited_map
from flowllm.io import schemas
from flowllm.io.shards import Shards
from flowllm.io.tables import crystal_of, read_tables
from flowllm.runtime.provenance import stage_run
from flowllm.runtime.resume import write_in_parts

ROWS_PER_PART = 500
"""Crystals per saved part: the most that a killed job loses."""

MAX_MEMORY = 1536 << 20
"""Most bytes of memory per crystal. A cell of 200 atoms needs 20 MB; a job of the shipped
configuration has 2,000 MB per process."""

_COLUMNS = ("id", "atomic_numbers", "frac_coords", "lengths", "angles")


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    fingerprints: Fingerprints


def run(
    settings: Settings,
    *,
    crystals: Shards,
    out: Path,
    workers: PositiveInt = 1,
) -> None:
    """Compute the fingerprints of crystals, from which coverage is computed.

    A crystal whose fingerprint cannot be computed, or exceeds the limits of time or memory, becomes
    a row with the reason.

    Args:
        settings: section `fingerprints`.
        crystals: The test split, or the generated shards of one method: files, or FOLDER=COUNT.
            Repeat the option for each.
        out: Table of fingerprints to write, one row per row of the inputs, in their order.
        workers: Number of worker processes. The limit on the time per crystal is wall time, so that
            a crystal may exceed it where there are more workers than cores; else the result does
            not depend on their number.

    Raises:
        FlowllmError: an input is missing or has another schema.
    """
    section: Fingerprints = settings.fingerprints
    with stage_run(settings, inputs={"crystals": crystals}, output=out) as run:
        rows = read_tables(crystals, schemas.GENERATED, _COLUMNS).to_pylist()

        def make_rows(items: range) -> list[dict[str, Any]]:
            return limited_map(
                fingerprint,
                [(rows[index]["id"], crystal_of(rows[index])) for index in items],
                limits=Limits(section.max_seconds, MAX_MEMORY),
                failed=without_fingerprint,
                workers=workers,
                what=f"fingerprints {items.start} to {items.stop}",
            )

        table = write_in_parts(out, run, schemas.FINGERPRINTS, len(rows), ROWS_PER_PART, make_rows)
        status = Counter(table.column("status").to_pylist())
        done = status["ok"] + status["no_crystal"]
        run.count(
            rows_in=len(rows),
            rows_out=status["ok"],
            rows_failed=len(rows) - done,
            timeouts=status["timeout"],
        )
