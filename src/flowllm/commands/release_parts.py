"""The parts of a released folder: models in half precision, compact tables, configuration."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from pymatgen.core import Composition
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowllm.commands.generate_run import FinishedRun
from flowllm.config.load import check_config
from flowllm.config.recorded import RECORDED_CONFIG, recorded_text
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import plausible_places
from flowllm.io import schemas
from flowllm.io.release import KNOWN
from flowllm.io.start_files import FLOW_DESCRIPTION, start_files
from flowllm.io.tables import read_metadata, read_table, write_table
from flowllm.llm.model_files import MERGE_AGAIN, WEIGHTS, check_model_folder
from flowllm.llm.written_model import CURVE
from flowllm.rfm.model import WEIGHTS as FLOW_WEIGHTS

HALF = torch.float16
"""Precision of the released matrices. Weights of trained models are below 100 and mostly above
1e-4, where float16 has three more bits than bfloat16."""

DECIMALS = {"frac_coords": 4, "lengths": 4, "angles": 3}
"""Decimals of the known crystals: fractions of the cell, angstrom, degrees."""

LARGEST = torch.finfo(HALF).max


def write_models(run: FinishedRun, folder: Path) -> None:
    """Write the merged language model and the method's flow with matrices in half precision.

    Raises:
        FlowllmError: a model is damaged, in several files, or has weights beyond half precision.
    """
    check_model_folder(run.model, MERGE_AGAIN)
    if not (run.model / WEIGHTS).exists():
        raise FlowllmError(
            f"{run.model}: its weights are in several files, and only a model in one file is "
            "released; publish a large model's folder llm/model as it is"
        )
    target = folder / run.model.relative_to(run.folder)
    target.mkdir(parents=True)
    for path in start_files(str(run.model)):
        if path.name == WEIGHTS:
            halve(path, target / WEIGHTS)
        elif path.name != CURVE:
            shutil.copyfile(path, target / path.name)
    if run.flow is not None:
        target = folder / run.flow.relative_to(run.folder)
        target.mkdir(parents=True)
        halve(run.flow / FLOW_WEIGHTS, target / FLOW_WEIGHTS)
        description = without_paths(json.loads((run.flow / FLOW_DESCRIPTION).read_text()))
        text = json.dumps(description, indent=2, sort_keys=True)
        (target / FLOW_DESCRIPTION).write_text(text + "\n")


def halve(source: Path, target: Path) -> None:
    """Write a safetensors file whose float32 matrices are rounded to half precision.

    Vectors (biases, norms, statistics) are few and stay as they are. The readers of both models
    convert the values to the precision of their network, so that they compute in float32.

    Raises:
        FlowllmError: a weight is too large for half precision.
    """
    tensors = load_file(source)
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    for name, value in tensors.items():
        if value.dtype is torch.float32 and value.ndim > 1:
            if not value.abs().amax() <= LARGEST:
                raise FlowllmError(
                    f"{source}: {name} has weights that are not finite or beyond {LARGEST:g}, the "
                    "largest number of half precision; train the model again"
                )
            tensors[name] = value.to(HALF)
    save_file(tensors, target, metadata)


def write_hull(run: FinishedRun, folder: Path) -> None:
    """Write the reference entries that decide the hull: the lowest plausible of each composition.

    All energies above the hull are exactly those of the whole table.
    """
    table = read_table(run.hull, schemas.HULL_ENTRIES)
    rows = table.to_pylist()
    names, energies = ([row[key] for row in rows] for key in ("entry_id", "energy_per_atom"))
    amounts = [Composition(row["formula"]).get_el_amt_dict() for row in rows]
    lowest: dict[str, tuple[float, int]] = {}
    for place in plausible_places(run.hull, names, amounts, energies):
        row = rows[place]
        formula = Composition(row["formula"]).reduced_formula
        found = row["energy_per_atom"], place
        lowest[formula] = min(found, lowest.get(formula, found))
    kept = table.take(sorted(place for _, place in lowest.values()))
    target = folder / run.hull.relative_to(run.folder)
    write_table(target, kept, schemas.HULL_ENTRIES, _metadata(run.hull), compact=True)


def write_crystals(run: FinishedRun, folder: Path) -> None:
    """Write the known crystals, with which generated ones are compared, without other columns.

    Their numbers are rounded, far below the tolerances of the comparison (0.3 times the mean
    distance of atoms, 5 degrees), which halves the files.
    """
    tables = {path.relative_to(run.folder).as_posix(): path for path in run.splits.values()}
    if (known := run.config.metrics.known_crystals) is not None:
        tables[KNOWN] = Path(known)
    for name, path in tables.items():
        rows = read_table(path, schemas.KNOWN_CRYSTALS).to_pylist()
        for row in rows:
            for column, decimals in DECIMALS.items():
                row[column] = np.round(np.asarray(row[column], dtype=float), decimals).tolist()
            row["frac_coords"] = (np.asarray(row["frac_coords"]) % 1).tolist()
        write_table(folder / name, rows, schemas.KNOWN_CRYSTALS, _metadata(path), compact=True)


def write_config(run: FinishedRun, folder: Path) -> None:
    """Write the run's configuration with the released method alone, and without foreign paths.

    A second potential is left out, since the folder has no energies by it. The path of further
    known crystals is one in the folder (`generate_run.open_run`).
    """
    values = run.config.model_dump(mode="json")
    method, base, flow = run.method.name, run.method.base, run.method.flow
    values["methods"] = [row for row in values["methods"] if row["name"] == method]
    values["bases"] = [
        {**row, "conditions": None} for row in values["bases"] if row["name"] == base
    ]
    values["flows"] = [row for row in values["flows"] if row["name"] == flow] or values["flows"][:1]
    values |= {"external_samples": [], "csp_bases": [], "csp_methods": []}
    values["potential"]["check"] = None
    values["finetune_llm"]["start"] = values["train_rfm"]["start"] = None
    if values["metrics"]["known_crystals"] is not None:
        values["metrics"]["known_crystals"] = KNOWN
    values = {**without_paths(values), "prompts": values["prompts"]}
    (folder / RECORDED_CONFIG).write_text(recorded_text(check_config(values)))


def without_paths(values: Any) -> Any:
    """Return values in which each path that leaves the working directory is its last part."""
    if isinstance(values, Mapping):
        return {key: without_paths(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_paths(value) for value in values]
    if isinstance(values, str):
        path = PurePosixPath(values)
        if path.is_absolute() or ".." in path.parts:
            return path.name or "."
    return values


def _metadata(path: Path) -> dict[str, Any]:
    """Return what a table was made of, without paths of this machine."""
    found = without_paths(read_metadata(path))
    found.pop("schema_version", None)  # write_table adds it; other programs' tables have none
    return dict(found)
