"""The benchmark of models and texts: its numbers, its steps, and the tables of the docs."""

from argparse import Namespace
from pathlib import Path

import ablation_cell
import ablation_models
import ablation_table
import numpy as np
import pytest
import yaml
from scipy.spatial.distance import jensenshannon

from flowllm.crystal import Crystal

PAGE = Path(__file__).parents[2] / "docs" / "language_model.md"


def cell(**changes) -> dict:
    """A finished cell with the same share and number everywhere."""
    number = {"value": 0.25, "low": 0.125, "high": 0.5, "count": 8}
    training = {"tokens_per_cpu_second": 3500.4, "tokens": 12600000, "steps": 3100}
    return {
        "model": "scratch-3m",
        "text": "symmetric",
        "training": training,
        "shares": {name: [3, 4] for name in ablation_table.SHARES},
        "statistics": dict.fromkeys(ablation_table.STATISTICS, number),
        **changes,
    }


def rows(text: str) -> dict[str, list[str]]:
    """The cells of a table by the first one of their row."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {first.strip(): [one.strip() for one in others] for first, *others in lines}


def test_the_tables_of_the_docs_are_those_of_the_results():
    page = PAGE.read_text(encoding="utf-8")
    found = ablation_table.tables(ablation_table.read_cells(ablation_table.RESULTS))
    assert ablation_table.with_tables(page, found) == page


def test_every_cell_of_the_results_is_named_by_its_model_and_text():
    for path in ablation_table.RESULTS.glob("*.json"):
        ((model, text),) = [
            key for key in ablation_table.read_cells(path.parent) if path.stem == "-".join(key)
        ]
        assert model in ablation_cell.MODELS
        assert text in ablation_cell.TEXTS


def test_no_tables_without_a_cell():
    assert "|" not in ablation_table.tables({})


def test_a_cell_is_in_the_column_of_its_model_and_others_are_not_run():
    found = ablation_table.tables({("scratch-3m", "symmetric"): cell()})
    coordinates, symmetric = found.split("\n\n")
    assert all(set(row) == {"not run"} for row in list(rows(coordinates).values())[2:])
    # Wilson's interval of 3 of 4 by its formula.
    z, p, n = 1.959964, 0.75, 4
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    share = f"75.0 % ({100 * (middle - half):.1f} to {100 * (middle + half):.1f})"
    table = rows(symmetric)
    assert table["novel, of accepted"] == ["not run", "not run", share, "not run"]
    assert table["energy released, median, eV/atom"][2] == "0.250 (0.125 to 0.500)"
    assert table["training tokens"][2] == "12,600,000"


def test_a_number_that_was_not_measured_is_a_dash():
    statistics = dict.fromkeys(ablation_table.STATISTICS)
    found = ablation_table.tables({("scratch-3m", "symmetric"): cell(statistics=statistics)})
    assert found.count("–") == len(statistics)


def test_divergence_is_that_of_scipy():
    one, other = np.array([3, 0, 5, 2]), np.array([1, 4, 0, 5])
    expected = jensenshannon(one, other, base=2) ** 2
    assert ablation_cell.divergence(one, other) == pytest.approx(expected)


def test_minimum_distance_includes_images_of_the_atom_itself():
    crystal = Crystal(
        np.array([1, 1]),
        np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]),
        np.array([0.4, 5.0, 5.0]),
        np.array([90.0, 90.0, 90.0]),
    )
    assert ablation_cell.min_distance(crystal) == pytest.approx(0.4, abs=1e-5)


def test_steps_follow_from_the_budget_and_the_time_that_was_measured_before(tmp_path):
    (tmp_path / "scratch-3m-symmetric-step.json").write_text('{"cpu_seconds_per_step": 1.5}')
    given = Namespace(out=tmp_path, cpu_minutes=60.0)
    path = ablation_models.write_steps(given, "scratch-3m-symmetric", tmp_path / "none.yaml")
    assert yaml.safe_load(path.read_text())["finetune_llm"]["max_steps"] == 2400
