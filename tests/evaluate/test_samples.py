"""Samples joined from the rows of the stages."""

from crystals import rocksalt
from energy_rows import generated_row, relaxed_row
from flowllm.evaluate.samples import join_rows

BASE = {"id": "a", "status": "ok", "attempts": 1, "rejections": []}
PLACED = {"status": "ok", "error": None, "e_above_hull": -0.1, "stable": True, "metastable": True}
NOT_PLACED = {
    **{"status": "implausible_energy", "error": "formation energy -38.5 eV/atom, below -5"},
    **{"e_above_hull": None, "stable": False, "metastable": False},
}


def joined(relaxed, stability):
    return join_rows(BASE, generated_row(rocksalt(), "a"), relaxed, stability, None, None)


def test_a_crystal_with_a_plausible_energy_is_relaxed():
    sample = joined(relaxed_row(rocksalt(), "a", -3.6), PLACED)
    assert (sample.relaxed_status, sample.final_energy, sample.num_steps) == ("ok", -3.6, 2)
    assert sample.relaxed is not None
    assert sample.converged
    assert sample.stable


def test_a_crystal_with_an_implausible_energy_counts_as_not_relaxed():
    sample = joined(relaxed_row(rocksalt(), "a", -40.0), NOT_PLACED)
    assert sample.generated is not None
    assert sample.relaxed_status == "implausible_energy"
    assert sample.relaxed is None
    assert (sample.initial_energy, sample.final_energy, sample.num_steps) == (None, None, None)
    assert not sample.converged
    assert not sample.stable


def test_the_draw_of_a_dft_run_is_kept():
    """The estimates of rates over all crystals need it."""
    run = {"taken_as": "control", "inclusion_probability": 0.2, "leads_class": False}
    sample = joined(relaxed_row(rocksalt(), "a", -40.0, **run), NOT_PLACED)
    assert (sample.taken_as, sample.inclusion_probability) == ("control", 0.2)
    assert sample.leads_class is False
