"""benchmarks/bench_candidates.py: DFT runs per S.U.N. crystal that the candidates save."""

import importlib.util
from pathlib import Path

import pytest

from flowllm.config.load import load_config
from flowllm.dft.selection import Relaxed

ROOT = Path(__file__).parents[2]
DRAWN, CLASSES = 100, 50
"""Each class has two crystals, of which the first is nearer to the hull."""

CRYSTALS = [
    Relaxed(
        name=f"{index:03d}",
        formula="Na1Cl1",
        e_above_hull=0.01 * index - 0.2,
        group=f"{index % CLASSES:03d}",
        novel=index % 5 > 0,
        known_as="a training crystal" if index % 5 == 0 else None,
    )
    for index in range(DRAWN)
]
STABLE = {one.name: one.e_above_hull < 0 for one in CRYSTALS}
"""20 crystals, all of different classes, of which 4 are known."""


@pytest.fixture(scope="module")
def bench():
    path = ROOT / "benchmarks" / "bench_candidates.py"
    spec = importlib.util.spec_from_file_location("bench_candidates", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(bench, seeds=1, **changes):
    """Runs, S.U.N. crystals found, and runs per S.U.N. crystal of a selection."""
    section = load_config([ROOT / "config.yaml"]).dft_inputs.model_copy(update=changes)
    runs, line = bench.measure(CRYSTALS, STABLE, section, seeds)
    cells = [cell.strip() for cell in line.split("|")]
    assert int(cells[0]) == runs
    return runs, float(cells[2]), float(cells[4])


def test_a_potential_that_is_right_needs_one_run_per_sun_crystal(bench):
    assert measured(bench, selection="all") == (100, 16, 6.25)
    chosen = {"selection": "candidates", "max_e_above_hull": -0.005}
    assert measured(bench, **chosen, control_share=0.0) == (16, 16, 1.0)


def test_the_control_sample_costs_its_runs(bench):
    """Half of the 84 other crystals, of which none is both stable and a candidate."""
    chosen = {"selection": "candidates", "max_e_above_hull": -0.005, "control_share": 0.5}
    runs, found, _ = measured(bench, seeds=3, **chosen)
    assert (runs, found) == (16 + 42, 16)


def test_random_runs_find_their_share(bench):
    runs, found, per_crystal = measured(bench, seeds=300, selection="random", max_crystals=50)
    assert runs == 50
    assert found == pytest.approx(8, abs=0.5)
    assert per_crystal == pytest.approx(6.25, abs=0.4)
