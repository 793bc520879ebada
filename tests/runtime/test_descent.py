"""Files of two methods or runs are refused by the digests in their footers, whatever their ids."""

import shutil

import pytest

from crystals import caesium_chloride, rocksalt
from evaluated_run import REPOSITORY, SETTING, STABILITY_RULE, stage_settings, write_splits
from flowllm.config.load import load_config
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.io import schemas
from flowllm.io.tables import crystal_columns, read_metadata, read_table, write_table
from flowllm.runtime.descent import (
    check_computed_from,
    check_descends_from,
    check_same_input,
    generated_digests,
)
from flowllm.runtime.provenance import stage_run
from flowllm.stages import dft_inputs, fingerprints, match_csp, metrics, report

SHARDS = ("00000", "00001")


def made(stage, path, rows, schema, inputs, extra=None):
    """Write a table as its stage does: digests of the inputs in the footer."""
    settings = StageSettings.__new__(StageSettings)
    settings.stage, settings.version, settings.seed = stage, 1, 1
    settings.values = {"stability": STABILITY_RULE}
    with stage_run(settings, inputs=inputs, output=path) as run:
        write_table(path, rows, schema, run.metadata() | (extra or {}))
    return path


def write_method(folder, crystal):
    """Write the tables of one method of two draws, up to the fingerprints."""
    names = [f"{SETTING}-{index:06d}" for index in range(2)]
    rows = [
        {"id": name, **crystal_columns(crystal), "formula": crystal.formula, "status": "ok"}
        for name in names
    ]
    paths = {"base": [], "generated": [], "relaxed": []}
    energies = {"potential": "CHGNet", "final_energy_per_atom": -3.0, "converged": True}
    for shard, row in zip(SHARDS, rows, strict=True):
        name = f"shard-{shard}.parquet"
        base = made("sample_base", folder / "base" / name, [row], schemas.BASE, {})
        generated = made(
            "refine", folder / "generated" / name, [row], schemas.GENERATED, {"base": base}
        )
        relaxed = made(
            "prerelax",
            folder / "relaxed" / name,
            [row | energies],
            schemas.RELAXED,
            {"generated": generated},
        )
        for role, path in (("base", base), ("generated", generated), ("relaxed", relaxed)):
            paths[role].append(path)
    stability = [
        {
            "id": name,
            "e_above_hull": -0.1,
            "energy_per_atom": -3.0,
            "stable": True,
            "metastable": True,
            "status": "ok",
        }
        for name in names
    ]
    paths["stability"] = made(
        "stability",
        folder / "stability" / f"{SETTING}.parquet",
        stability,
        schemas.STABILITY,
        {"energies": paths["relaxed"]},
        {"hull_compositions": 3, "hull_not_converged": 0},
    )
    write_splits(folder / "crystals", {"test": {"mp-1": crystal}})
    paths["crystals"] = folder / "crystals"
    for role, crystals in (
        ("fingerprints", paths["generated"]),
        ("test_fingerprints", [folder / "crystals" / "test.parquet"]),
    ):
        paths[role] = folder / f"{role}.parquet"
        fingerprints.run(
            stage_settings("fingerprints"), crystals=crystals, out=paths[role], workers=1
        )
    return paths


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    """Two methods whose crystals differ and whose ids and file names are equal."""
    folder = tmp_path_factory.mktemp("methods")
    return (
        write_method(folder / "a", rocksalt()),
        write_method(folder / "b", caesium_chloride()),
    )


def run_metrics(paths, out):
    metrics.run(stage_settings("metrics"), **paths, out=out / f"{SETTING}.json", workers=1)


def test_files_of_one_method_are_taken_from_wherever_they_were_moved(methods, tmp_path):
    folder = methods[0]["crystals"].parent
    shutil.copytree(folder, tmp_path / "moved")
    moved = {
        role: [tmp_path / "moved" / path.relative_to(folder) for path in found]
        if isinstance(found, list)
        else tmp_path / "moved" / found.relative_to(folder)
        for role, found in methods[0].items()
    }
    run_metrics(methods[0] | moved, tmp_path)
    run_metrics(methods[0] | {"generated": moved["generated"]}, tmp_path)
    # Another order of the shards on the command line is the same set of files.
    run_metrics(methods[0] | {"relaxed": methods[0]["relaxed"][::-1]}, tmp_path)


@pytest.mark.parametrize(
    ("roles", "named", "against", "stage"),
    [
        (["base"], "generated/shard-00000", "base/shard-00000", "refine"),
        (["generated"], "generated/shard-00000", "base/shard-00000", "refine"),
        (["base", "generated"], "relaxed/shard-00000", "generated/shard-00000", "prerelax"),
        (["relaxed"], "relaxed/shard-00000", "generated/shard-00000", "prerelax"),
        (["stability"], "stability/FlowLLM-test", "relaxed/shard-00000", "stability"),
        (["relaxed", "stability"], "relaxed/shard-00000", "generated/shard-00000", "prerelax"),
        (["fingerprints"], "fingerprints", "generated/shard-00000", "fingerprints"),
        (["test_fingerprints"], "test_fingerprints", "crystals/test", "fingerprints"),
        (["crystals"], "test_fingerprints", "crystals/test", "fingerprints"),
    ],
)
def test_metrics_refuses_files_of_another_method(methods, tmp_path, roles, named, against, stage):
    mixed = methods[0] | {role: methods[1][role] for role in roles}
    said = rf"{named}\.parquet: was computed from another file than .*{against}\.parquet.*"
    with pytest.raises(FlowllmError, match=rf"{said}run the stage {stage} again with"):
        run_metrics(mixed, tmp_path)
    assert not (tmp_path / f"{SETTING}.json").exists()


def test_one_shard_of_another_method_is_refused(methods, tmp_path):
    mixed = {"relaxed": [methods[0]["relaxed"][0], methods[1]["relaxed"][1]]}
    with pytest.raises(FlowllmError, match=r"b/relaxed/shard-00001.*a/generated/shard-00001"):
        run_metrics(methods[0] | mixed, tmp_path)


def test_files_without_digests_are_taken(methods, tmp_path):
    """Of an earlier version, or written by others."""
    plain = dict(methods[0])
    plain["relaxed"] = []
    for path in methods[1]["relaxed"]:
        plain["relaxed"].append(tmp_path / path.name)
        write_table(tmp_path / path.name, read_table(path, schemas.RELAXED), schemas.RELAXED, {})
    plain["stability"] = tmp_path / "stability.parquet"
    kept = read_metadata(methods[0]["stability"])
    kept.pop("inputs")
    rows = read_table(methods[0]["stability"], schemas.STABILITY)
    write_table(plain["stability"], rows, schemas.STABILITY, kept)
    run_metrics(plain, tmp_path)


def test_samples_of_two_files_are_not_one_model(tmp_path):
    row = {"id": "x", **crystal_columns(rocksalt()), "status": "ok"}
    paths = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text(name)
        inputs = {"samples": tmp_path / f"{name}.csv"}
        paths.append(
            made("import_samples", tmp_path / f"{name}.parquet", [row], schemas.GENERATED, inputs)
        )
    check_same_input([paths[0], paths[0]], "samples")
    with pytest.raises(FlowllmError, match=r"two\.parquet and .*one\.parquet.*import_samples"):
        check_same_input(paths, "samples")


def test_dft_results_remember_the_generated_crystals(methods, tmp_path):
    ours, theirs = methods
    manifest = {"inputs": {"relaxed": "x"}} | generated_digests(ours["relaxed"])
    write_table(tmp_path / "manifest.parquet", [], schemas.DFT_MANIFEST, manifest)
    results = tmp_path / "dft.parquet"
    carried = {"stage": "dft_collect"} | generated_digests([tmp_path / "manifest.parquet"])
    write_table(results, [], schemas.DFT_RESULTS, carried)
    check_descends_from(results, ours["generated"])
    with pytest.raises(FlowllmError, match=r"dft\.parquet: was.*run the stage dft_collect"):
        check_descends_from(results, theirs["generated"])
    assert generated_digests([results]) == generated_digests(ours["relaxed"])


def test_dft_inputs_refuses_the_stability_of_another_method(methods, tmp_path):
    config = load_config([REPOSITORY / "config.yaml"])
    settings = StageSettings.from_config("dft_inputs", config)
    with pytest.raises(FlowllmError, match=r"b/stability.*a/relaxed.*run the stage stability"):
        dft_inputs.run(
            settings,
            relaxed=methods[0]["relaxed"],
            stability=methods[1]["stability"],
            out=tmp_path / "manifest.parquet",
        )


def test_structure_prediction_refuses_another_test_split_and_another_base(tmp_path):
    row = {"id": "b-0", **crystal_columns(rocksalt()), "material_id": "mp-1", "status": "ok"}
    for name in ("a", "b"):
        test = {"mp-1": rocksalt(a=5.6 if name == "a" else 5.7)}
        write_splits(tmp_path / name, {"test": test})
    splits = {name: tmp_path / name / "test.parquet" for name in ("a", "b")}
    base, generated = {}, {}
    for name, crystals in splits.items():
        path = tmp_path / f"base-{name}.parquet"
        base[name] = made("sample_csp", path, [row], schemas.CSP_BASE, {"crystals": crystals})
        path = tmp_path / f"generated-{name}.parquet"
        generated[name] = made("refine", path, [row], schemas.GENERATED, {"base": base[name]})

    def run(base_of, generated_of, split_of):
        match_csp.run(
            stage_settings_of_csp(),
            base=[base[base_of]],
            generated=[generated[generated_of]],
            crystals=splits[split_of],
            out=tmp_path / "csp.json",
            workers=1,
        )

    run("a", "a", "a")
    with pytest.raises(FlowllmError, match=r"base-a.*b/test\.parquet.*run the stage sample_csp"):
        run("a", "a", "b")
    with pytest.raises(FlowllmError, match=r"generated-b.*base-a.*run the stage refine"):
        run("a", "b", "a")


def stage_settings_of_csp():
    config = load_config([REPOSITORY / "config.yaml"])
    return StageSettings.from_config("match_csp", config)


def test_the_report_refuses_one_setting_of_two_methods(methods, tmp_path):
    for kind, paths in zip(("potential", "dft"), methods, strict=True):
        run_metrics(paths, tmp_path / kind)
    settings = StageSettings.from_config("report", load_config([REPOSITORY / "config.yaml"]))
    files = [tmp_path / kind / f"{SETTING}.json" for kind in ("potential", "dft")]
    with pytest.raises(FlowllmError, match="computed from different generated files"):
        report.run(settings, metrics=files, run_dir=tmp_path, out=tmp_path / "index.html")


def test_a_file_computed_from_all_or_from_one_of_the_given(tmp_path):
    given = [tmp_path / f"{name}.csv" for name in "ba"]
    for path in given:
        path.write_text(path.name)
    one = made("s", tmp_path / "one.parquet", [], schemas.TIMES, {"rows": given[0]})
    all_of = made("s", tmp_path / "all.parquet", [], schemas.TIMES, {"rows": given[::-1]})
    check_computed_from([one, all_of], "rows", given)
    check_computed_from([one, all_of], "rows", given[::-1])
    check_computed_from([one, all_of], "another role", [])
    with pytest.raises(FlowllmError, match=r"all\.parquet"):
        check_computed_from([all_of], "rows", given[:1])
