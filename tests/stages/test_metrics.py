"""The metrics stage: counts worked by hand, failures in every denominator, identical bytes."""

import itertools
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from scipy.stats import binomtest

from crystals import (
    caesium_chloride,
    fcc,
    perovskite,
    rattled,
    rocksalt,
    small_mp_20_sample,
    translated_and_permuted,
)
from evaluated_run import HULL_COMPOSITIONS, Draw, stage_settings, write_run
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.evaluate import parallel
from flowllm.evaluate.protocols import protocol_rates
from flowllm.evaluate.statistics import rate, summary
from flowllm.io import schemas, tables
from flowllm.io.tables import read_metadata, read_table, write_table
from flowllm.stages import metrics


def run_metrics(run, workers=1, **changes):
    metrics.run(stage_settings("metrics", **changes), **run.paths(), out=run.out, workers=workers)
    numbers = json.loads(run.out.read_text())
    flags = read_table(run.out.with_suffix(".parquet"), schemas.METRICS_PER_CRYSTAL)
    return numbers, flags.to_pandas().set_index("id")


def ten_draws():
    """Ten draws whose every rate is known: see the comments."""
    salt, moved = rocksalt(), translated_and_permuted(rocksalt(), 1)
    caesium = caesium_chloride()
    oxide = perovskite()
    clash = Crystal.from_arrays([11, 17], [[0, 0, 0], [0.05, 0, 0]], [4] * 3, [90] * 3)
    return [
        Draw(salt, salt, -0.1),  # 0: stable, known in train
        Draw(moved, moved, -0.1),  # 1: the same as 0
        Draw(caesium, caesium, -0.05),  # 2: stable, novel: S.U.N.
        Draw(translated_and_permuted(caesium, 2), caesium, -0.04),  # 3: the same as 2
        Draw(oxide, rattled(oxide, 0.02, 1), 0.05, num_steps=30),  # 4: metastable, known in val
        Draw(fcc(), fcc(), -0.2),  # 5: below the hull, but one element
        Draw(clash, salt, 0.2, energies=(9.0, -3.5)),  # 6: atoms too close; relaxes to salt
        Draw(rocksalt("Na", "Ar"), None, relaxed_status="timeout"),  # 7: argon, not relaxed
        Draw(None, rejections=["bad_number", "truncated"]),  # 8: given up by the LLM
        Draw(rocksalt("Mg", "O", 4.2), rocksalt("Mg", "O", 4.2), None),  # 9: no reference
    ]


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    splits = {
        "train": {"mp-1": rocksalt(a=5.7), "mp-0": fcc("Au")},
        "val": {"mp-7": perovskite()},
        "test": {"mp-3": rocksalt(), "mp-4": perovskite(), "mp-5": fcc()},
    }
    run = write_run(tmp_path_factory.mktemp("ten"), ten_draws(), splits)
    return run_metrics(run)


@pytest.mark.parametrize(
    ("name", "numerator", "denominator"),
    [
        ("generated", 9, 10),
        ("structural_validity", 8, 10),  # not 6, 8
        ("compositional_validity", 8, 10),  # not 7, 8
        ("validity", 7, 10),
        ("relaxed", 8, 10),
        ("placed_on_hull", 7, 10),
        ("metastability_rate", 5, 10),  # 0 to 4
        ("stability_rate", 4, 10),  # 0 to 3
        ("uniqueness", 5, 10),  # salt, CsCl, SrTiO3, Cu, MgO
        ("novelty", 5, 10),  # 2, 3, 4, 5, 9: train holds NaCl and Au
        ("novelty_train_val", 4, 10),  # 4 is in val
        ("sun_rate", 1, 10),
        ("metastable_sun_rate", 2, 10),  # CsCl and SrTiO3
        ("novel_of_stable", 2, 4),
        ("unique_of_stable_novel", 1, 2),
        ("match_rate", 7, 10),  # the clash of 6 is another crystal
        ("match_rate_of_relaxed", 7, 8),
        ("sun_rate_greedy", 1, 10),
    ],
)
def test_rates_worked_by_hand(ten, name, numerator, denominator):
    found = ten[0]["rates"][name]
    assert (found["numerator"], found["denominator"]) == (numerator, denominator)
    assert found["value"] == pytest.approx(numerator / denominator)


@pytest.mark.parametrize(
    ("protocol", "name", "numerator", "denominator"),
    [
        ("MatterGen", "stability_rate", 6, 10),  # 0 to 5: copper too, and 0.05 above the hull
        ("MatterGen", "sun_rate", 3, 10),  # 2, 4, 5
        ("LeMat-GenBench", "stability_rate", 5, 7),  # not 4; 6, 7, 8 are not valid
        ("LeMat-GenBench", "sun_rate", 2, 7),  # 2, 5
        ("LeMat-GenBench", "metastability_rate", 1, 7),
        ("LeMat-GenBench", "metastable_sun_rate", 1, 7),  # 4
    ],
)
def test_protocols_worked_by_hand(ten, protocol, name, numerator, denominator):
    found = ten[0]["protocols"][protocol][name]
    assert (found["numerator"], found["denominator"]) == (numerator, denominator)


def test_thresholds_of_the_protocols_are_inclusive():
    valid = {"structurally_valid": True, "compositionally_valid": True, "fingerprinted": True}
    rows = [
        {"id": name, "duplicate_group": name, "novel": True, "e_above_hull": energy, **valid}
        for name, energy in zip("abcd", (0.0, 1e-9, 0.1, 0.1 + 1e-9), strict=True)
    ]
    found = protocol_rates(rows)
    for protocol, kind, stable in (
        ("MatterGen", "stability_rate", 3),
        ("MatterGen", "sun_rate", 3),
        ("LeMat-GenBench", "stability_rate", 1),
        ("LeMat-GenBench", "sun_rate", 1),
        ("LeMat-GenBench", "metastability_rate", 2),
        ("LeMat-GenBench", "metastable_sun_rate", 2),
    ):
        assert found[protocol][kind]["numerator"] == stable


def test_lemat_genbench_looks_at_valid_crystals_alone(tmp_path):
    """The first of a class is not valid as generated; the second counts in its place."""
    salt = rocksalt()
    clash = Crystal.from_arrays([11, 17], [[0, 0, 0], [0, 0, 0.01]], salt.lengths, salt.angles)
    run = write_run(tmp_path, [Draw(clash, salt, -0.1), Draw(salt, salt, -0.1)], {})
    found = run_metrics(run)[0]["protocols"]
    for name, numerator, denominator in (("MatterGen", 1, 2), ("LeMat-GenBench", 1, 1)):
        sun = found[name]["sun_rate"]
        assert (sun["numerator"], sun["denominator"]) == (numerator, denominator)
    assert found["MatterGen"]["stability_rate"]["numerator"] == 2
    assert found["LeMat-GenBench"]["stability_rate"]["numerator"] == 1


def test_sun_by_the_authors_code_is_greedy_in_the_order_of_the_draws(tmp_path):
    """Crystals of which each matches its neighbors alone; the third is known, the sixth above."""
    cells = [
        Crystal.from_arrays([55, 17], [[0, 0, 0], [0.5] * 3], [4.12] * 3, [90, 90, angle])
        for angle in range(90, 119, 4)
    ]
    draws = [Draw(one, one, 0.05 if place == 5 else -0.1) for place, one in enumerate(cells)]
    found = run_metrics(write_run(tmp_path, draws, {"val": {"mp-1": cells[2]}}))[0]["rates"]
    assert found["sun_rate"]["numerator"] == 1
    assert found["sun_rate_greedy"]["numerator"] == 4
    found = run_metrics(write_run(tmp_path, draws, {"train": {"mp-1": cells[2]}}))[0]["rates"]
    assert found["sun_rate"]["numerator"] == 1
    assert found["sun_rate_greedy"]["numerator"] == 3  # 0, 4 and 6: 1, 2 and 3 match the known one


def test_flags_say_which_crystals(ten):
    flags = ten[1]
    names = [f"FlowLLM-test-{index:06d}" for index in range(10)]
    assert list(flags.index) == names
    assert [name for name in names if flags.loc[name, "sun"]] == [names[2]]
    assert flags.loc[names[1], "duplicate_group"] == names[0]
    assert flags.loc[names[6], "duplicate_group"] == names[0]
    assert flags.loc[names[0], "matched_material_id"] == "mp-1"
    assert pd.isna(flags.loc[names[8], "duplicate_group"])
    assert flags["error"].isna().all()


def test_counts_and_means(ten):
    numbers = ten[0]
    counts = numbers["counts"]
    assert counts["drawn"] == 10
    assert counts["base"] == {"exhausted": 1, "ok": 9}
    assert counts["relaxed"] == {"ok": 8, "rejected": 1, "timeout": 1}
    assert counts["llm_drafts"] == 12
    assert counts["llm_rejections"] == {"bad_number": 1, "truncated": 1}
    means = numbers["means"]
    assert means["num_steps"]["mean"] == pytest.approx((7 * 10 + 30) / 8)
    assert means["delta_energy_per_atom"]["mean"] == pytest.approx((7 * 0.5 + 12.5) / 8)
    cells = [0.5 * n for n in (2, 2, 2, 2, 5, 1, 2)] + [12.5 * 2]
    assert means["delta_energy_per_cell"]["mean"] == pytest.approx(sum(cells) / 8)
    assert means["rmsd"]["count"] == 7
    histogram = numbers["histograms"]["num_elements"]
    assert histogram == {"generated": {"1": 1, "2": 7, "3": 1}, "test": {"1": 1, "2": 1, "3": 1}}


def test_coverage_and_property_distances_worked_by_hand(tmp_path):
    """The first of two crystals is in the test split, twice; the second is unlike both."""
    salt, copper = rocksalt(), fcc()
    draws = [Draw(salt, salt, 0.1), Draw(copper, copper, 0.1)]
    run = write_run(tmp_path, draws, {"test": {"mp-1": salt, "mp-2": salt}})
    numbers, flags = run_metrics(run)
    assert list(flags["covered"]) == [True, False]
    rates, distances = numbers["rates"], numbers["distances"]
    for name, numerator in (("coverage_recall", 2), ("coverage_precision", 1)):
        assert (rates[name]["numerator"], rates[name]["denominator"]) == (numerator, 2)
    assert distances["wasserstein_num_elements"]["value"] == pytest.approx(0.5)
    densities = [one.to_structure().density for one in (salt, copper)]
    expected = abs(densities[0] - densities[1]) / 2
    assert distances["wasserstein_density"]["value"] == pytest.approx(expected)


def test_both_matchers_have_their_own_rates_and_means(tmp_path):
    """One angle changes by 7 degrees, which the loose matcher allows; another crystal moves."""
    cells = [
        Crystal.from_arrays([55, 17], [[0] * 3, [0.5] * 3], [4.12] * 3, [90, 90, angle])
        for angle in (90, 97)
    ]
    oxide = perovskite()
    draws = [Draw(*cells, 0.1), Draw(oxide, rattled(oxide, 0.1, 1), 0.1)]
    numbers, flags = run_metrics(write_run(tmp_path, draws, {}))
    rates, means = numbers["rates"], numbers["means"]
    for suffix, count in (("", 1), ("_loose", 2)):
        assert rates[f"match_rate{suffix}"]["numerator"] == count
        assert rates[f"match_rate{suffix}_of_relaxed"]["numerator"] == count
        assert means[f"rmsd{suffix}"]["count"] == count
        expected = flags[f"rmsd_to_relaxed{suffix}"].mean()
        assert means[f"rmsd{suffix}"]["mean"] == pytest.approx(expected)


def test_samples_of_another_model_are_no_drafts_of_the_language_model(tmp_path):
    """import_samples writes one attempt per sample, also for a flow that starts from them."""
    run = write_run(tmp_path, [Draw(rocksalt(), rocksalt(), -0.1), Draw(None)], {})
    assert run_metrics(run)[0]["counts"]["llm_drafts"] == 2
    for path in run.base:
        metadata = {"settings": {"external": {"name": "DiffCSP", "file": "samples"}}}
        write_table(path, read_table(path, schemas.BASE).to_pylist(), schemas.BASE, metadata)
    assert run_metrics(run)[0]["counts"]["llm_drafts"] == 0


def real_draws(rng):
    """Real MP-20 crystals: known ones, copies of one another, some that relax far, some missing."""
    known = list(small_mp_20_sample("train", 8).values())
    seen = list(small_mp_20_sample("val", 3).values())
    new = list(small_mp_20_sample("test", 9).values())
    relaxed = [rattled(one, 0.05, i) for i, one in enumerate([*known[:6], *seen, *new, *new[:4]])]
    energies = rng.normal(0.02, 0.1, len(relaxed)).round(3)
    draws = [
        Draw(
            rattled(one, 0.6 if index % 4 == 0 else 0.03, 99 + index),
            one,
            float(energy),
            energies=(float(energy) - 2.5, float(energy) - 3.0),
            num_steps=index,
        )
        for index, (one, energy) in enumerate(zip(relaxed, energies, strict=True))
    ]
    return [*draws, Draw(new[0], None, relaxed_status="timeout"), Draw(None)]


def slow_classes(matcher, structures):
    """Classes of which matches of all pairs join any two, as sets of indices."""
    classes = [{index} for index in range(len(structures))]
    for i, j in itertools.combinations(range(len(structures)), 2):
        if matcher.fit(structures[i], structures[j]):
            joined = [one for one in classes if i in one or j in one]
            classes = [one for one in classes if one not in joined] + [set().union(*joined)]
    return classes


def test_rates_on_real_crystals_are_the_slow_definitions(tmp_path):
    """Paper, appendices D and E, written out with StructureMatcher on all pairs."""
    draws = real_draws(np.random.default_rng(5))
    train, val = small_mp_20_sample("train", 8), small_mp_20_sample("val", 3)
    splits = {"train": train, "val": val, "test": small_mp_20_sample("test", 5)}
    numbers, _ = run_metrics(write_run(tmp_path, draws, splits))

    matcher, loose = StructureMatcher(), StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    done = [draw for draw in draws if draw.relaxed is not None]
    ends = [draw.relaxed.to_structure() for draw in done]
    starts = [draw.generated.to_structure() for draw in done]
    classes = slow_classes(matcher, ends)

    def unlike(references):
        others = [one.to_structure() for one in references.values()]
        return {i for i, end in enumerate(ends) if not any(matcher.fit(end, o) for o in others)}

    def near_enough(matcher):
        """Bound the RMS distance, as the peers do; `fit` bounds the largest distance of an atom."""
        return lambda start, end: matcher.get_rms_dist(start, end) is not None

    several = {i for i, end in enumerate(ends) if len(end.composition) >= 2}
    below = {bound: {i for i in several if done[i].e_above_hull < bound} for bound in (0.0, 0.08)}
    first = {min(one) for one in classes}
    novel, novel_both = unlike(train), unlike(train) & unlike(val)
    expected = {
        "stability_rate": len(below[0.0]),
        "metastability_rate": len(below[0.08]),
        "uniqueness": len(classes),
        "novelty": len(novel),
        "novelty_train_val": len(novel_both),
        "sun_rate": sum(bool(one & below[0.0] & novel) for one in classes),
        "sun_rate_train_val": sum(bool(one & below[0.0] & novel_both) for one in classes),
        "metastable_sun_rate": sum(bool(one & below[0.08] & novel) for one in classes),
        "match_rate": sum(map(near_enough(matcher), starts, ends)),
        "match_rate_loose": sum(map(near_enough(loose), starts, ends)),
    }
    found = {name: numbers["rates"][name]["numerator"] for name in expected}
    assert found == expected
    assert len({*expected.values()}) > 5  # or the rates could be mistaken for one another
    assert {numbers["rates"][name]["denominator"] for name in expected} == {len(draws)}
    near = {i for i in range(len(ends)) if done[i].e_above_hull <= 0.1}
    mattergen = numbers["protocols"]["MatterGen"]["sun_rate"]["numerator"]
    assert mattergen == len(near & first & novel)
    rmsd = [matcher.get_rms_dist(*pair) for pair in zip(starts, ends, strict=True)]
    means = numbers["means"]
    assert means["rmsd"]["mean"] == pytest.approx(np.mean([one[0] for one in rmsd if one]))
    assert means["delta_energy_per_atom"]["mean"] == pytest.approx(0.5)
    assert means["delta_energy_per_cell"]["mean"] == pytest.approx(0.5 * np.mean([*map(len, ends)]))
    assert means["num_steps"]["mean"] == pytest.approx(np.mean([*range(len(ends))]))
    n_ary = Counter(str(len(one.generated.to_structure().composition)) for one in draws[:-1])
    assert numbers["histograms"]["num_elements"]["generated"] == n_ary


def test_the_protocol_is_named(ten):
    protocol = ten[0]["protocol"]
    assert protocol["energies_are_estimates"] is True
    assert protocol["energy_sources"] == ["CHGNet 0.3.0"]
    assert protocol["hull_sources"] == ["train by CHGNet"]
    assert protocol["hull_compositions"] == HULL_COMPOSITIONS
    assert protocol["matcher"] | {"ltol": 0.2, "stol": 0.3, "angle_tol": 5} == protocol["matcher"]
    assert protocol["oxidation_states"] == "smact14"
    assert ten[0]["sampling"]["base"]["temperature"] == 0.7


def test_novelty_against_train_and_val_is_a_setting(tmp_path):
    run = write_run(tmp_path, ten_draws(), {"val": {"mp-7": caesium_chloride()}})
    train_only, _ = run_metrics(run)
    both, flags = run_metrics(run, novelty_against="train_val")
    assert train_only["rates"]["sun_rate"]["numerator"] == 2
    assert both["rates"]["sun_rate"]["numerator"] == 1
    assert both["rates"]["sun_rate_train"]["numerator"] == 2
    assert flags.loc["FlowLLM-test-000002", "matched_material_id"] == "mp-7"


def test_further_known_crystals_are_not_novel(tmp_path):
    """As if they were in the training split; the readings of other protocols lack them."""
    run = write_run(tmp_path, ten_draws(), {"val": {"mp-7": caesium_chloride()}})
    table = str(run.crystals / "val.parquet")
    numbers, flags = run_metrics(run, known_crystals=table)
    assert numbers["rates"]["sun_rate"]["numerator"] == 1
    assert numbers["rates"]["sun_rate_train"]["numerator"] == 2
    assert flags.loc["FlowLLM-test-000002", "matched_material_id"] == "mp-7"
    assert numbers["protocol"]["known_crystals"] == table


def test_two_atoms_at_one_point_stay_in_every_denominator(tmp_path):
    """What a base without `reject_close_atoms` draws, and no flow or relaxation can mend."""
    double = Crystal.from_arrays([11, 11, 17], [[0] * 3, [0] * 3, [0.5] * 3], [4] * 3, [90] * 3)
    lone = Crystal.from_arrays([11, 17], [[0] * 3, [0] * 3], [4] * 3, [90] * 3)
    clashes = [Draw(one, None, relaxed_status="overlapping_atoms") for one in (double, lone)]
    run = write_run(tmp_path, [Draw(rocksalt(), rocksalt(), -0.1), *clashes], {})
    said = read_metadata(run.base[0])
    said["settings"]["sample_base"] = {"structured": False, "reject_close_atoms": False}
    write_table(run.base[0], read_table(run.base[0], schemas.BASE), schemas.BASE, said)
    numbers, _ = run_metrics(run)
    assert numbers["sampling"]["sample_base"] == said["settings"]["sample_base"]
    assert numbers["counts"]["relaxed"] == {"ok": 1, "overlapping_atoms": 2}
    for name in ("structural_validity", "validity", "stability_rate", "sun_rate"):
        rate_found = numbers["rates"][name]
        assert (rate_found["numerator"], rate_found["denominator"]) == (1, 3)


def test_both_readings_of_the_stability_bound(tmp_path):
    salt = rocksalt()
    run = write_run(tmp_path, [Draw(salt, salt, 0.0), Draw(salt, salt, -1e-9)], {})
    rates = run_metrics(run)[0]["rates"]
    assert rates["stability_rate"]["numerator"] == 1
    assert rates["stability_rate_below"]["numerator"] == 1
    assert rates["stability_rate_at_most"]["numerator"] == 2


def test_dft_results_keep_uncomputed_crystals_in_the_denominators(tmp_path):
    salt = rocksalt()
    draws = [Draw(salt, salt, -0.1), Draw(caesium_chloride(), None, relaxed_status="not_run")]
    run = write_run(tmp_path, draws, {}, kind="dft")
    numbers, _ = run_metrics(run)
    assert numbers["protocol"]["energies"] == "dft"
    assert numbers["protocol"]["energies_are_estimates"] is False
    assert numbers["protocol"]["correction_schemes"] == ["MP2020"]
    assert (
        numbers["rates"]["sun_rate"] | {"numerator": 1, "denominator": 2}
        == (numbers["rates"]["sun_rate"])
    )
    assert numbers["means"]["delta_energy_per_atom"]["count"] == 0


def test_a_dft_relaxation_under_way_counts_by_its_upper_bound(tmp_path):
    """It has a structure and an energy: stable by that energy, it is stable, unique and novel."""
    salt = rocksalt()
    run = write_run(tmp_path, [Draw(salt, salt, -0.1)], {}, kind="dft")
    rows = tables.read_table(run.relaxed[0], schemas.DFT_RESULTS).to_pylist()
    shortfall = {"status": "unconverged_ionic", "error": "cut short", "converged_ionic": False}
    tables.write_table(run.relaxed[0], [rows[0] | shortfall], schemas.DFT_RESULTS, {})
    numbers, _ = run_metrics(run)
    assert numbers["rates"]["stability_rate"]["numerator"] == 1
    assert numbers["rates"]["sun_rate"]["numerator"] == 1


def test_nothing_generated_gives_rates_of_zero(tmp_path):
    numbers, flags = run_metrics(write_run(tmp_path, [Draw(), Draw()], {}))
    assert {found["numerator"] for found in numbers["rates"].values()} == {0}
    assert numbers["rates"]["novel_of_stable"]["value"] is None
    assert not flags["generated"].any()


def test_bytes_do_not_depend_on_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "IN_PROCESS", 4)  # so that 20 draws go to worker processes
    crystals = list(small_mp_20_sample("train", 10).values())
    draws = [Draw(one, rattled(one, 0.03, i), 0.05 - 0.01 * i) for i, one in enumerate(crystals)]
    draws += [Draw(translated_and_permuted(one, 5), one, -0.02) for one in crystals]
    run = write_run(tmp_path, draws, {"train": dict(zip("abc", crystals, strict=False))})
    written = []
    for workers in (1, 2):
        numbers, _ = run_metrics(run, workers=workers)
        written.append((run.out.read_bytes(), run.out.with_suffix(".parquet").read_bytes()))
    assert written[0] == written[1]
    assert numbers["rates"]["uniqueness"]["numerator"] == 10
    assert numbers["rates"]["novelty"]["numerator"] == 14


def test_files_of_different_runs_are_refused(tmp_path):
    one = write_run(tmp_path / "one", [Draw(rocksalt(), rocksalt(), 0.1)] * 2, {})
    two = write_run(tmp_path / "two", [Draw(rocksalt(), rocksalt(), 0.1)] * 3, {})
    one.stability = two.stability
    with pytest.raises(FlowllmError, match=r"two.*000002.*different runs"):
        run_metrics(one)


def test_a_stability_table_without_its_rule_is_refused(tmp_path):
    run = write_run(tmp_path, [Draw(rocksalt(), rocksalt(), 0.1)], {})
    rows = read_table(run.stability, schemas.STABILITY)
    write_table(run.stability, rows, schemas.STABILITY, {})
    with pytest.raises(FlowllmError, match="does not state the thresholds"):
        run_metrics(run)


def test_a_left_out_shard_is_refused(tmp_path):
    run = write_run(tmp_path, [Draw(rocksalt(), rocksalt(), 0.1)] * 3, {})
    run.relaxed = run.relaxed[:1]
    with pytest.raises(FlowllmError, match=r"1 of the base crystals are missing.*000001"):
        run_metrics(run)


@given(st.integers(0, 400), st.integers(1, 400))
def test_intervals_are_scipys(numerator, denominator):
    if numerator > denominator:
        numerator, denominator = denominator, numerator
    found = rate(numerator, denominator, "all generated")
    expected = binomtest(numerator, denominator).proportion_ci(method="wilson")
    assert found["low"] == pytest.approx(expected.low, abs=1e-9)
    assert found["high"] == pytest.approx(expected.high, abs=1e-9)
    assert found["low"] <= found["value"] <= found["high"]


def test_summary_leaves_out_what_is_not_there():
    assert summary([1.0, None, 3.0], "eV", "relaxed") == {
        "count": 2,
        "unit": "eV",
        "of": "relaxed",
        "mean": 2.0,
        "standard_error": 1.0,
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
    }
    assert summary([], "eV", "relaxed")["mean"] is None


def chosen(taken_as, probability, leads=True):
    return {"taken_as": taken_as, "inclusion_probability": probability, "leads_class": leads}


def test_a_candidate_counts_although_its_class_has_an_earlier_control(tmp_path):
    caesium = caesium_chloride()
    draws = [
        Draw(caesium, caesium, -0.1, choice=chosen("control", 0.5, leads=False)),
        Draw(caesium, caesium, -0.2, choice=chosen("candidate", 1.0)),
    ]
    numbers, _ = run_metrics(write_run(tmp_path, draws, {}, kind="dft"))
    rates = numbers["rates"]
    for name, runs in (("sun_per_dft_run", 2), ("sun_per_candidate", 1)):
        assert (rates[name]["numerator"], rates[name]["denominator"]) == (1, runs)


def test_rates_per_run_and_estimates_of_candidates_and_their_control_sample(tmp_path):
    """Two candidates, and one of four others as control, which counts four times."""
    salt, caesium = rocksalt(), caesium_chloride()
    left = {"relaxed_status": "not_selected"}
    draws = [
        Draw(caesium, caesium, -0.1, choice=chosen("candidate", 1.0)),
        Draw(perovskite(), perovskite(), 0.05, choice=chosen("candidate", 1.0)),
        # Known: it is stable, and never S.U.N.
        Draw(salt, salt, -0.1, choice=chosen("control", 0.25, leads=False)),
        *(Draw(salt, None, choice=chosen(None, 0.25), **left) for _ in range(3)),
        Draw(salt, None, relaxed_status="timeout"),
        Draw(None),
    ]
    splits = {"train": {"mp-1": salt}}
    numbers, _ = run_metrics(write_run(tmp_path, draws, splits, kind="dft"))
    rates = numbers["rates"]
    found = {name: (rates[name]["numerator"], rates[name]["denominator"]) for name in rates}
    assert found["stability_rate"] == (2, 8)
    assert found["sun_rate"] == (1, 8)
    assert found["sun_per_relaxation"] == (1, 7)
    assert found["sun_per_dft_run"] == (1, 3)
    assert found["sun_per_candidate"] == (1, 2)
    assert numbers["estimates"]["design"] == {
        **{"certain": 2, "sample": 1, "population": 4, "missing": 0}
    }
    estimates = numbers["estimates"]["rates"]
    assert estimates["stability_rate"]["value"] == pytest.approx((1 + 4) / 8)
    assert estimates["metastability_rate"]["value"] == pytest.approx((2 + 4) / 8)
    assert estimates["sun_rate"]["value"] == pytest.approx(1 / 8)
    assert estimates["metastable_sun_rate"]["value"] == pytest.approx(2 / 8)


def test_what_select_excludes_stays_in_every_denominator_and_is_no_relaxation(tmp_path):
    salt, caesium = rocksalt(), caesium_chloride()
    draws = [
        Draw(salt, None, relaxed_status="known"),
        Draw(caesium, caesium, -0.1),
        Draw(caesium, None, relaxed_status="repeated"),
        Draw(perovskite(), None, relaxed_status="timeout"),
        Draw(None),
    ]
    numbers, flags = run_metrics(write_run(tmp_path, draws, {"train": {"mp-1": salt}}))
    rates = numbers["rates"]
    found = {name: (rates[name]["numerator"], rates[name]["denominator"]) for name in rates}
    assert found["structural_validity"] == (4, 5)
    for name in ("stability_rate", "uniqueness", "novelty", "sun_rate"):
        assert found[name] == (1, 5)
    assert found["sun_per_relaxation"] == (1, 2)
    assert numbers["estimates"] is None
    assert list(flags["sun"]) == [False, True, False, False, False]
