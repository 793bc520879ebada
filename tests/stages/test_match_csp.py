"""Structure prediction against pymatgen's matcher, called on each attempt by itself."""

import json

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystals import caesium_chloride, mp_20_sample, perovskite, rattled, rocksalt
from evaluated_run import stage_settings
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.io import schemas
from flowllm.io.tables import crystal_columns, read_table, write_table
from flowllm.report.metrics_files import read_predictions
from flowllm.report.quality_tables import csp_table
from flowllm.stages import match_csp

PEERS = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)


def settings():
    values = {"metrics": stage_settings("metrics").values["metrics"]}
    return StageSettings("match_csp", {"seed": 1, "version": 1, **values})


def write_shards(folder, targets, attempts, **drawn_by):
    """Write attempts at each target as two shards of sample_csp and of refine, and the split."""
    rows = [
        {"id": f"csp-{i:06d}-{k:03d}", "material_id": name, "status": "ok", **crystal_columns(one)}
        for i, name in enumerate(targets)
        for k, one in enumerate(attempts[name])
    ]
    made = {"settings": {"setting": {"name": "CSP", "base": "csp", "flow": None, "num_steps": 0}}}
    shards = {"base": [], "generated": []}
    for shard in range(2):
        for kind, schema in (("base", schemas.CSP_BASE), ("generated", schemas.GENERATED)):
            path = folder / kind / f"shard-{shard:05d}.parquet"
            half = rows[shard * len(rows) // 2 : (shard + 1) * len(rows) // 2]
            part = [{key: row[key] for key in row if key in schema.names} for row in half]
            write_table(path, part, schema, {"settings": made["settings"] | drawn_by})
            shards[kind].append(path)
    known = [
        {"id": name, **crystal_columns(one), "formula": one.formula}
        for name, one in targets.items()
    ]
    write_table(folder / "test.parquet", known, schemas.CRYSTALS, {})
    return shards


def measured(folder, targets, attempts, **drawn_by):
    shards = write_shards(folder, targets, attempts, **drawn_by)
    out = folder / "csp" / "CSP.json"
    match_csp.run(settings(), **shards, crystals=folder / "test.parquet", out=out, workers=1)
    return out


def test_rates_and_distances_are_the_matchers_own_on_real_crystals(tmp_path):
    targets = mp_20_sample("test", 12)
    attempts = {
        name: [rattled(crystal, distance, seed) for seed, distance in enumerate((0.7, 0.1, 0.3))]
        for name, crystal in targets.items()
    }
    numbers = json.loads(measured(tmp_path, targets, attempts).read_text())
    first, best = [], []
    for name, crystal in targets.items():
        goal = crystal.to_structure()
        found = []
        for attempt in attempts[name]:
            structure = attempt.to_structure()
            apart = structure.distance_matrix + 9 * np.eye(len(structure))
            distance = PEERS.get_rms_dist(structure, goal) if apart.min() >= 0.5 else None
            found.append(None if distance is None else distance[0])
        first.append(found[0])
        best.append(min((one for one in found if one is not None), default=None))
    for name, rmse, expected in (
        ("match_rate_first", "rmse_first", first),
        ("match_rate", "rmse", best),
    ):
        distances = [one for one in expected if one is not None]
        assert numbers["rates"][name]["numerator"] == len(distances)
        assert numbers["rates"][name]["denominator"] == 12
        assert numbers["means"][rmse]["mean"] == pytest.approx(np.mean(distances))
    assert numbers["attempts"] == 3
    assert numbers["means"]["rmse"]["mean"] < numbers["means"]["rmse_first"]["mean"]


def test_what_is_not_valid_or_another_structure_does_not_match(tmp_path):
    close = Crystal.from_arrays([55, 17], [[0, 0, 0], [0, 0, 0.01]], [4, 4, 4], [90, 90, 90])
    targets = {"salt": rocksalt(), "oxide": perovskite(), "none": caesium_chloride()}
    attempts = {
        "salt": [caesium_chloride("Na", "Cl", 3.5), rocksalt(a=6.0)],  # the second, by scaling
        "oxide": [perovskite(), None],
        "none": [None, close],
    }
    out = measured(tmp_path, targets, attempts)
    found = read_table(out.with_suffix(".parquet"), schemas.CSP).to_pylist()
    rows = {row["material_id"]: row for row in found}
    matches = {name: row["matches"] for name, row in rows.items()}
    assert matches == {"salt": 1, "oxide": 1, "none": 0}
    assert rows["salt"]["rmsd_first"] is None
    assert rows["salt"]["rmsd_best"] == pytest.approx(0, abs=1e-6)
    numbers = json.loads(out.read_text())
    assert numbers["rates"]["match_rate_first"]["numerator"] == 1
    assert numbers["rates"]["match_rate"]["numerator"] == 2
    table = csp_table(read_predictions([out]))
    assert table.rows[0]["csp_match_rate"]["value"] == pytest.approx(2 / 3)
    assert [row["setting"] for row in table.rows] == ["CSP", "FlowMM"]


@pytest.mark.parametrize("reject", [True, False])
def test_drafts_drawn_again_for_close_atoms_are_said(tmp_path, reject):
    salt = {"salt": rocksalt()}
    section = {"reject_close_atoms": reject}
    out = measured(tmp_path, salt, {"salt": [salt["salt"]]}, sample_base=section)
    caption = csp_table(read_predictions([out])).protocol
    assert ("which raises the validity: CSP. " in caption) == reject


def test_smact_invalid_formulas_count_in_one_reading_only(tmp_path):
    targets = {"odd": rocksalt("Ba", "F", 5.6)}  # no charges of Ba and F are neutral at 1:1
    out = measured(tmp_path, targets, {"odd": [targets["odd"]]})
    rates = json.loads(out.read_text())["rates"]
    assert rates["match_rate"]["numerator"] == 1
    assert rates["match_rate_smact_valid"]["numerator"] == 0


def test_predictions_of_another_split_are_refused(tmp_path):
    targets = {"a": rocksalt(), "b": perovskite()}
    shards = write_shards(tmp_path, targets, {name: [one] for name, one in targets.items()})
    row = {"id": "a", **crystal_columns(rocksalt()), "formula": "Na4Cl4"}
    other = tmp_path / "other.parquet"
    write_table(other, [row], schemas.CRYSTALS, {})
    with pytest.raises(FlowllmError, match=r"other\.parquet: no crystal has the id b, which"):
        match_csp.run(settings(), **shards, crystals=other, out=tmp_path / "o.json", workers=1)


def polymorphs():
    """Two crystals of NaCl and one of CsCl."""
    return {
        "rock": rocksalt(),
        "cubic": caesium_chloride("Na", "Cl", 3.5),
        "other": caesium_chloride(),
    }


def test_a_prediction_of_another_polymorph_counts_for_metre_alone(tmp_path):
    """Both predictions of NaCl are the other polymorph, and CsCl has none: 0 of 3, and 2 of 3."""
    targets = polymorphs()
    attempts = {"rock": [targets["cubic"]], "cubic": [targets["rock"]], "other": [None]}
    numbers = json.loads(measured(tmp_path, targets, attempts).read_text())
    assert numbers["rates"]["match_rate"]["numerator"] == 0
    assert numbers["rates"]["metre"]["numerator"] == 2
    assert numbers["rates"]["metre"]["denominator"] == 3
    # Two distances of 0 and the tolerance 0.5.
    assert numbers["means"]["crmse"]["mean"] == pytest.approx(0.5 / 3, abs=1e-6)
    assert numbers["means"]["crmse"]["count"] == 3
    table = csp_table(read_predictions([tmp_path / "csp" / "CSP.json"]))
    assert table.rows[0]["metre"]["value"] == pytest.approx(2 / 3)


def test_metre_and_crmse_are_the_slow_definition(tmp_path):
    """Every prediction against every test crystal by pymatgen's matcher."""
    targets = polymorphs() | {"oxide": perovskite()}
    targets |= {"rock again": rocksalt(a=5.7)}
    attempts = {
        name: [rattled(targets[like], distance, seed) for seed, distance in enumerate((0.4, 0.15))]
        for name, like in {
            "rock": "rock",
            "cubic": "rock",
            "other": "cubic",  # of another composition than asked
            "oxide": "oxide",
            "rock again": "other",
        }.items()
    }
    numbers = json.loads(measured(tmp_path, targets, attempts).read_text())
    for suffix, count in (("_first", 1), ("", 2)):
        pool = [one.to_structure() for made in attempts.values() for one in made[:count]]
        nearest = []
        for crystal in targets.values():
            goal = crystal.to_structure()
            found = [PEERS.get_rms_dist(one, goal) for one in pool]
            nearest.append(min((one[0] for one in found if one is not None), default=None))
        corrected = [0.5 if one is None else one for one in nearest]
        matched = sum(one is not None for one in nearest)
        assert numbers["rates"][f"metre{suffix}"]["numerator"] == matched
        assert numbers["means"][f"crmse{suffix}"]["mean"] == pytest.approx(np.mean(corrected))
    assert matched > 0
    rates = numbers["rates"]
    assert rates["metre"]["numerator"] > rates["match_rate"]["numerator"]
