"""What a released folder says of its models: a person's text, and the numbers of the run."""

import csv
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from flowllm.commands.generate_run import FinishedRun
from flowllm.commands.release_parts import without_paths
from flowllm.config.problems import list_problems
from flowllm.config.sections.base import Section
from flowllm.config.sections.llm import CONDITIONS
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import read_hull
from flowllm.io.start_files import FLOW_DESCRIPTION
from flowllm.io.tables import count_rows
from flowllm.io.weights_file import count_numbers
from flowllm.llm.model_files import WEIGHTS
from flowllm.llm.model_record import read_record
from flowllm.report.metrics_files import read_results
from flowllm.rfm.model import CURVE
from flowllm.runtime.provenance import read_provenance

RATES = ("validity", "relaxed", "metastability_rate", "stability_rate", "sun_rate", "match_rate")
"""Rates of the stage metrics that a release states."""

Facts = dict[str, Any]


class About(Section):
    """What the records of a run do not say, written by the person who releases it."""

    title: str = Field(min_length=1, description="heading of the model card")
    license: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        description="license of the folder as an SPDX identifier in lower case, e.g. cc-by-4.0",
    )
    data: str = Field(min_length=1, description="the training data: origin, selection, license")
    attribution: tuple[str, ...] = Field(
        min_length=1, description="whom a user must name, one entry per source"
    )
    limits: tuple[str, ...] = Field(description="limits beside those that the records show")
    commands: str = Field(min_length=1, description="the commands that made the folder")


def read_about(path: Path) -> About:
    """Read the text of a release.

    Raises:
        FlowllmError: the file is missing, is not YAML, or a key is missing or unknown.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return About.model_validate(values)
    except OSError as error:
        raise FlowllmError(f"{path}: {error.strerror}; name the text of the release") from error
    except yaml.YAMLError as error:
        raise FlowllmError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        raise FlowllmError(f"{path}:\n{list_problems(error, 'about')}") from error


def facts_of(run: FinishedRun) -> Facts:
    """Return the numbers of a finished run that a release states, from its records.

    Raises:
        FlowllmError: a record is damaged.
    """
    record = read_provenance(run.model)
    facts: Facts = {
        "method": run.method.model_dump(mode="json"),
        "seed": run.config.seed,
        "flowllm": {"version": record.get("package_version"), "commit": record.get("commit")},
        "crystals": {name: count_rows(path) for name, path in run.splits.items()},
        "language_model": _language_model(run),
        "flow": _flow(run),
        "hull": _hull(run),
        "results": _results(run),
    }
    return facts


def _language_model(run: FinishedRun) -> Facts:
    record = read_record(run.model)
    counts = read_provenance(run.folder / "llm" / "adapter").get("counts", {})
    known = {*CONDITIONS, *run.config.prompts.properties}
    return {
        "base_model": without_paths(record.base_model),
        "method": record.method,
        "parameters": count_numbers(run.model / WEIGHTS),
        "steps": counts.get("steps"),
        "tokens": counts.get("tokens"),
        "training_seconds": counts.get("training_seconds"),
        "val_loss": record.val_loss,
        "crystal_text": run.config.prompts.crystal_text,
        "conditions": [name for name in record.prompts if name in known],
        "elements": list(record.elements),
        "max_atoms": record.max_atoms,
    }


def _flow(run: FinishedRun) -> Facts | None:
    if run.flow is None:
        return None
    found = json.loads((run.flow / FLOW_DESCRIPTION).read_text())
    kept = ("num_parameters", "steps", "best_step", "validation_loss", "constant_field_loss")
    facts = {"name": run.method.flow, **{name: found.get(name) for name in kept}}
    facts["start"] = without_paths(found.get("settings", {}).get("train_rfm", {}).get("start"))
    facts["pairs"] = found.get("counts", {}).get("pairs", {}).get("pairs")
    facts["training_seconds"] = _last_seconds(run.flow / CURVE)
    return facts


def _last_seconds(curve: Path) -> float | None:
    if not curve.exists():
        return None
    with curve.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    return float(rows[-1]["seconds"])


def _hull(run: FinishedRun) -> Facts:
    hull = read_hull(run.hull, "potential")
    return {
        "energies": list(hull.sources),
        "compositions": len(hull.hull),
        "not_converged": hull.not_converged,
    }


def _results(run: FinishedRun) -> list[Facts]:
    """Return the rates of the method, and of the drafts without the flow if they were measured."""
    rows = [
        row
        for row in run.config.methods
        if row == run.method or (row.base == run.method.base and row.flow is None)
    ]
    paths = [run.folder / "metrics" / "potential" / f"{row.name}.json" for row in rows]
    return [
        {
            "method": result.method,
            "drawn": result.numbers["counts"]["drawn"],
            "hull_compositions": result.numbers["protocol"]["hull_compositions"],
            "rates": {
                name: {
                    key: result.numbers["rates"][name][key]
                    for key in ("numerator", "denominator", "low", "high")
                }
                for name in RATES
            },
        }
        for result in read_results([path for path in paths if path.exists()])
    ]
