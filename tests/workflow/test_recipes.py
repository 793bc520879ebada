"""The recipes plan what they say, on a small data folder."""

import csv
import re

import pytest

from crystals import fcc, perovskite, rocksalt
from flowllm.config.load import load_config
from tiny_run import ROOT, dry_runs, planned

FOLDER = ROOT / "recipes" / "mp_20_large"
RECIPE = ["recipe"]
COMPARED = ["recipe", "evaluation"]
OVERLAYS = [RECIPE, COMPARED, [*COMPARED, "ablations"], [*COMPARED, "rivals"]]
OVERLAYS += [[*COMPARED, "ablations", "rivals"], ["recipe", "coordinates"]]

CRYSTALS = {"mp-1": rocksalt(), "mp-2": perovskite(), "mp-3": fcc()}


def files(names):
    return [str(FOLDER / f"{name}.yaml") for name in names]


def config_of(names):
    return load_config([ROOT / "config.yaml", *(FOLDER / f"{name}.yaml" for name in names)])


@pytest.fixture
def clone(tmp_path):
    """A folder with the data that the recipes read, and none of their outputs."""
    rows = [
        {
            "material_id": name,
            "formation_energy_per_atom": -1.0,
            "band_gap": 0.0,
            "e_above_hull": 0.0,
            "cif": crystal.to_structure().to(fmt="cif"),
            "spacegroup.number": "",
        }
        for name, crystal in CRYSTALS.items()
    ]
    (tmp_path / "data" / "mp_20_large").mkdir(parents=True)
    for split in ("train", "val", "test"):
        with (tmp_path / "data" / "mp_20_large" / f"{split}.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    (tmp_path / "data" / "rivals").mkdir()
    for row in config_of([*COMPARED, "rivals"]).external_samples:
        (tmp_path / row.file).touch()
    return tmp_path


def plans(clone, overlays):
    """What dry runs print, each with some overlays."""
    words = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", str(ROOT / "config.yaml")]
    return dry_runs([(str(clone), [*words, *files(names)]) for names in overlays])


def test_every_overlay_plans_its_rows_and_shards(clone):
    *outputs, without_hull = plans(clone, OVERLAYS)
    hull = clone / config_of(OVERLAYS[-1]).reference_hull.source
    assert "reference_hull" in without_hull
    assert str(hull.relative_to(clone)) in without_hull
    hull.parent.mkdir(parents=True)
    hull.touch()
    outputs += plans(clone, OVERLAYS[-1:])
    for names, output in zip(OVERLAYS, outputs, strict=True):
        config, jobs = config_of(names), planned(output)
        shards = 2 * len(config.methods) + sum(row.shards for row in config.external_samples)
        assert jobs["prerelax"] == shards, names
        assert jobs["train_rfm"] == len(config.used_flows), names
        assert jobs["reference_hull"] == jobs["report"] == 1, names
        assert jobs["metrics"] == len(config.methods) + len(config.external_samples), names


def test_the_overlays_change_nothing_of_the_models_or_of_finished_rows():
    """A part that one overlay has made is used by the next."""
    first, *others = (config_of(names) for names in OVERLAYS if "evaluation" in names)
    shared = ("prepare", "prompts", "finetune_llm", "sample_pairs", "train_rfm", "sample_base")
    shared += ("refine", "potential", "prerelax", "reference_hull", "stability", "sizes", "seed")
    recipe = config_of(RECIPE)
    for config in (first, *others):
        for section in set(shared) - {"reference_hull"}:
            assert getattr(config, section) == getattr(recipe, section), section
        assert config.reference_hull == first.reference_hull
        assert config.row("method", recipe.methods[0].name) == recipe.methods[0]
        rows = [*first.methods, *first.external_samples]
        assert [row for row in rows if row not in (*config.methods, *config.external_samples)] == []


def test_the_other_text_has_models_of_the_same_size_and_the_same_hull():
    ours, other = config_of(RECIPE), config_of(["recipe", "coordinates"])
    assert other.prompts.crystal_text == "coordinates"
    for section in ("finetune_llm", "sample_pairs", "train_rfm", "prerelax", "potential", "sizes"):
        assert getattr(ours, section) == getattr(other, section), section
    assert other.reference_hull.source == f"{ours.run_dir}/hull/potential.parquet"
    assert other.run_dir != ours.run_dir


def test_the_methods_answer_the_papers_comparisons():
    """Tables 1 and 2, figure 3c and table 4: each has the rows that it compares."""
    config = config_of([*COMPARED, "ablations", "rivals"])
    by_flow = {}
    for one in config.methods:
        by_flow.setdefault((one.base, one.flow), []).append(one)
    steps = {one.num_steps for one in by_flow["tau0.7-p0.9", "llm"]}
    assert steps == {10, 50, 250}
    kept = {one.keep_symmetry for one in by_flow["tau0.7-p0.9", "llm"] if one.num_steps == 50}
    assert kept == {None, False}
    assert ("tau0.7-p0.9", None) in by_flow
    assert ("tau0.7-p0.9", "types") in by_flow
    assert ("train_compositions", "types") in by_flow
    noise = {one.coords_noise for one in config.flows if one.start == "llm"}
    assert len(noise) == 3
    assert [one.name for one in config.flows if one.augment_axes is False] == ["llm-axes"]
    assert {row.name for row in config.external_samples} == {
        *("MP-20-test", "DiffCSP", "FlowMM", "CrystalFormer")
    }


def test_the_overlays_name_files_of_the_clone_alone():
    for path in FOLDER.glob("*"):
        text = path.read_text()
        assert "shared" not in text, path.name
        assert not re.search(r"(?<![\w.])/(work|tmp|home|root)\b", text), path.name
