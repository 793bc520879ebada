"""The configuration: strict, with the key's path in every complaint."""

import copy
import math
import pickle
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from flowllm.cli import app
from flowllm.config.load import check_config, load_config, merge
from flowllm.config.model import Config
from flowllm.config.renamed import RENAMED
from flowllm.config.stage_settings import StageSettings, stage_json, stage_values
from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "config.yaml"
OVERLAYS = sorted((ROOT / "workflow" / "config").glob("*.yaml"))
DEMO, SMOLLM2, SAMPLE = (
    ROOT / "workflow" / "config" / f"{name}.yaml" for name in ("demo", "smollm2", "mp_20_sample")
)
STACKS = [
    [DEMO],
    [SMOLLM2],
    [SMOLLM2, SAMPLE],
    [SMOLLM2, SAMPLE, ROOT / "benchmarks" / "flow_on_sample.yaml"],
    [SMOLLM2, ROOT / "benchmarks" / "ablation_models.yaml"],
    [ROOT / "tests" / "tiny.yaml"],
]


@pytest.fixture(scope="module")
def values() -> dict:
    """The paper's configuration, and a row of each list that is empty there."""
    other = {"name": "Other", "file": "other.csv", "shards": 2}
    csp = {"name": "csp", "temperature": 0.7, "top_p": 0.9, "attempts": 20}
    rows = {"external_samples": [other], "csp_bases": [csp]}
    return yaml.safe_load(PAPER.read_text()) | rows


@pytest.fixture(scope="module")
def config(values) -> Config:
    return check_config(values)


def changed(values: dict, path: str, value: object) -> dict:
    """A copy with one key set, by its path."""
    result = copy.deepcopy(values)
    at = result
    *parents, last = (int(key) if key.isdecimal() else key for key in path.split("."))
    for key in parents:
        at = at[key]
    at[last] = value
    return result


def test_paper_values(config):
    # Paper, appendices B and C, section 5.3.
    assert config.finetune_llm.base_model == "meta-llama/Llama-2-70b-hf"
    assert (config.finetune_llm.lora_rank, config.finetune_llm.lora_alpha) == (8, 32)
    assert (config.finetune_llm.epochs, config.finetune_llm.batch_size) == (10, 16)
    assert config.finetune_llm.learning_rate == 5e-4
    assert config.sizes.num_pairs == 3_300_000
    assert (config.sample_pairs.temperature, config.sample_pairs.top_p) == (0.9, 0.99)
    assert (config.train_rfm.lambda_f, config.train_rfm.lambda_l) == (200, 1)
    assert config.sizes.num_samples == 10_000


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlays_load(overlay):
    loaded = load_config([PAPER, overlay])
    given = yaml.safe_load(overlay.read_text())
    dumped = loaded.model_dump(mode="json")
    for section, keys in given.items():
        if isinstance(keys, dict):
            for key, value in keys.items():
                assert dumped[section][key] == value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("dta", {}),
        ("prepare.max_atom", 20),
        ("bases.1.temprature", 0.7),
        ("resources.prepare.gpu", 1),
    ],
)
def test_unknown_keys_are_named_with_their_path(values, path, value):
    with pytest.raises(FlowllmError, match=rf"\n  {re.escape(path)}: Extra inputs"):
        check_config(changed(values, path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", -1, "greater than or equal to 0"),
        ("data.source", None, "valid string"),
        ("prepare.cell", "conventional", "'primitive', 'as_given' or 'standard'"),
        ("prepare.max_atoms", 0, "greater than 0"),
        ("prepare.max_rows", "all", "valid integer"),
        ("prepare.split_shares", [0.6, 0.2, 0.3], r"must sum to 1"),
        ("prepare.split_shares.1", 1.2, "less than or equal to 1"),
        ("prompts.formula", "no field", r"must contain \{formula\}"),
        ("sample_pairs.top_p", 0, "greater than 0"),
        ("bases.0.name", "a/b", "should match pattern"),
        ("bases.0.name", "../up", "should match pattern"),
        ("bases.0.name", "two words", "should match pattern"),
        ("bases.0.name", "line\n", "should match pattern"),
        ("bases.0.temperature", 0.0, "greater than 0"),
        ("methods.0.num_steps", -1, "greater than or equal to 0"),
        ("methods.0", {"name": "a", "base": "b", "flow": "llm", "num_steps": 0}, "has a flow and"),
        ("methods.0", {"name": "a", "base": "b", "flow": None, "num_steps": 9}, "has a flow and"),
        (
            "methods.0",
            {"name": "a", "base": "b", "flow": None, "num_steps": 0, "keep_symmetry": True},
            "keep_symmetry is for a method with a flow",
        ),
        ("flows.0", {"name": "a", "start": "normal"}, "'llm', 'simple'"),
        ("flows.1.name", "a b", "should match pattern"),
        ("stability.stable_below", math.nan, "finite number"),
        ("train_rfm.clip_value", math.inf, "finite number"),
        ("report.color", "blue", "should match pattern"),
        ("resources.prepare.cpus", 0, "greater than 0"),
    ],
)
def test_bad_values_are_named_with_their_path(values, path, value, message):
    where = re.escape(path)
    if path.startswith("flows.1."):
        where = r"flows\.1\.simple\.name"  # of two models the one that `start` chose
    if "sum to 1" in message or "{formula}" in str(message).replace("\\", ""):
        where = path.split(".")[0]  # a rule over the whole section
    with pytest.raises(FlowllmError, match=rf"\n  {where}: .*{message}"):
        check_config(changed(values, path, value))


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("train_rfm", {"angle_bounds": [120.1, 59.9]}, "lower bound comes first"),
        ("train_rfm", {"angle_bounds": [90.0, 90.0]}, "the two differ"),
        ("train_rfm", {"angle_bounds": [60.0, 120.1]}, "angles of a reduced cell, 60 to 120"),
        ("train_rfm", {"angle_bounds": [59.9, 120.0]}, "angles of a reduced cell, 60 to 120"),
        ("train_rfm", {"angle_bounds": [80.0, 100.0]}, "angles of a reduced cell, 60 to 120"),
        ("train_rfm", {"angle_bounds": [-1.0, 120.1]}, "within 0 to 180 degrees"),
        ("train_rfm", {"angle_bounds": [59.9, 181.0]}, "within 0 to 180 degrees"),
        ("train_rfm", {"learning_rate": 1e-5, "min_learning_rate": 1e-4}, "min_learning_rate"),
        ("train_rfm", {"ema_decay": 1.0}, "less than 1"),
        ("finetune_llm", {"lora_dropout": 1.0}, "less than 1"),
        ("finetune_llm", {"max_steps": 60, "warmup_steps": 100}, "warmup_steps 100 exceed"),
        ("finetune_llm", {"base_model": ""}, "the path is empty"),
        ("prepare", {"split_shares": [0.8, 0.2, 0.0]}, "each of the three splits needs crystals"),
        ("data", {"source": ""}, "the path is empty"),
        ("dft_hull", {"source": ""}, "the path is empty"),
        ("stability", {"stable_below": 0.2}, "stable_below 0.2 exceeds metastable_below 0.08"),
        ("sample_pairs", {"structured": True, "backend": "transformers"}, "needs backend: vllm"),
        ("sample_base", {"structured": True, "backend": "transformers"}, "needs backend: vllm"),
        ("prompts", {"band_gap": "{band_gap} {formula}"}, r"\{formula\} would stay in the prompt"),
        ("prompts", {"instruction": "Write {crystal}:"}, r"\{crystal\} would stay in the prompt"),
        ("prompts", {"infill": "Name {mask} of {formula}"}, r"\{formula\} would stay"),
        (
            "prompts",
            {"band_gap": "Energy {band_gap}.", "e_above_hull": "Energy {e_above_hull}."},
            "band_gap and e_above_hull have the same sentence",
        ),
        ("potential", {"check": "chgnet"}, "chgnet is the potential itself"),
        ("prompts", {"mask": "Xx"}, "looks like an element's symbol"),
        ("prompts", {"mask": "two words"}, "must be one word"),
        ("prompts", {"mask": ""}, "must be one word"),
        ("prompts", {"mask": "?\n"}, "must be one word"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values, section, changes, message):
    with pytest.raises(FlowllmError, match=rf"\n  {section}\S*: .*{message}"):
        check_config(merge(values, {section: changes}))


def test_a_flow_with_random_axes_needs_symmetric_bounds(values):
    given = changed(values, "flows.1.augment_axes", True)
    check_config(given)
    with pytest.raises(FlowllmError, match=r"flows: types has augment_axes, .* \(got \[50\.0, 121"):
        check_config(merge(given, {"train_rfm": {"angle_bounds": [50.0, 121.0]}}))


def test_a_second_potential_needs_the_crystals_of_the_hull(values):
    given = merge(values, {"potential": {"check": "sevennet"}})
    check_config(given)
    with pytest.raises(FlowllmError, match=r"set reference_hull\.source to train"):
        check_config(merge(given, {"reference_hull": {"source": "entries.json"}}))
    check_config(merge(given, {"reference_hull": {"source": "runs/other/hull/potential.parquet"}}))


@given(low=st.floats(-10, 190), high=st.floats(-10, 190))
def test_angle_bounds_contain_the_angles_of_reduced_cells(values, low, high):
    given = merge(values, {"train_rfm": {"angle_bounds": [low, high]}})
    if 0 <= low < 60 and 120 < high <= 180:
        assert check_config(given).train_rfm.angle_bounds == (low, high)
    else:
        with pytest.raises(FlowllmError, match=r"train_rfm\.angle_bounds"):
            check_config(given)


@pytest.mark.parametrize(
    "url",
    [
        *("https://me:SECRET@host/mp_20", "https://SECRET@host", "http://me:SECRET@127.0.0.1/"),
        *("//me:SECRET@host/mp_20", "https:/me:SECRET@host", "me:SECRET@host/mp_20"),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(values, url):
    bad = changed(values, "data.url", url)
    with pytest.raises(FlowllmError, match=r"\n  data\.url: .*a user name or password") as caught:
        check_config(bad)
    assert "SECRET" not in str(caught.value)
    given = {"seed": 1, "version": 1, "data": bad["data"]}
    with pytest.raises(FlowllmError, match=r"\n  data\.url: .*a user name or password") as caught:
        StageSettings("download", given)
    assert "SECRET" not in str(caught.value)


def test_an_at_sign_in_a_path_is_no_password(values):
    url = "https://host/me@elsewhere/mp_20"
    assert check_config(changed(values, "data.url", url)).data.url == url


def test_symmetric_text_needs_crystals_in_the_standard_cell(values):
    symmetric = changed(values, "prompts.crystal_text", "symmetric")
    with pytest.raises(FlowllmError, match=r"Set prepare\.cell: standard"):
        check_config(symmetric)
    standard = changed(symmetric, "prepare.cell", "standard")
    assert check_config(standard)
    with pytest.raises(FlowllmError, match="augment_translation"):
        check_config(changed(standard, "finetune_llm.augment_translation", True))


def test_missing_key_is_named(values):
    without = copy.deepcopy(values)
    del without["prerelax"]["max_force"]
    with pytest.raises(FlowllmError, match=r"\n  prerelax\.max_force: Field required"):
        check_config(without)


def test_all_problems_at_once(values):
    bad = changed(changed(values, "prepare.max_atoms", 0), "seed", "x")
    with pytest.raises(FlowllmError) as caught:
        check_config(bad, "config.yaml + mine.yaml")
    assert str(caught.value).startswith("config.yaml + mine.yaml:\n")
    assert "\n  prepare.max_atoms: " in str(caught.value)
    assert "\n  seed: " in str(caught.value)
    assert "(got 'x')" in str(caught.value)


def test_a_flow_starts_from_given_crystals_in_the_cells_of_its_training(values):
    row = {"name": "mine", "file": "cifs", "shards": 2}
    method = {"name": "moved", "base": "mine", "flow": "llm", "num_steps": 5}
    given = changed(values, "methods", [method])
    with pytest.raises(FlowllmError, match=r"has cell: null; set cell: primitive in that row"):
        check_config(changed(given, "external_samples", [row]))
    config = check_config(changed(given, "external_samples", [row | {"cell": "primitive"}]))
    assert [*config.given_bases] == ["mine"]
    assert not config.asks_llm
    kept = changed(values, "methods", [method | {"flow": None, "num_steps": 0}])
    assert check_config(changed(kept, "external_samples", [row])).given_bases


def test_names_must_fit_together(values):
    with pytest.raises(FlowllmError, match=r"uses base 'gone', which is not among the bases"):
        check_config(changed(values, "methods.0.base", "gone"))
    method = {"name": "CSP", "base": "tau0.7-p0.9", "flow": "llm", "num_steps": 9}
    with pytest.raises(FlowllmError, match=r"not among the csp_bases \['csp'\]"):
        check_config(changed(values, "csp_methods", [method]))
    method["base"] = "train_compositions"
    with pytest.raises(FlowllmError, match="needs a flow with start: simple"):
        check_config(changed(values, "methods", [method]))
    with pytest.raises(FlowllmError, match="bases: each name must be unique"):
        check_config(changed(values, "bases.0.name", "train_compositions"))
    twice = changed(values, "methods", [values["methods"][0]] * 2)
    with pytest.raises(FlowllmError, match="methods: each name must be unique"):
        check_config(twice)
    for name in ("test", "tau0.7-p0.9", values["methods"][0]["name"]):
        with pytest.raises(FlowllmError, match=r"name.* test is|needs a name that no other row"):
            check_config(changed(values, "external_samples.0.name", name))
    fewer = copy.deepcopy(values)
    del fewer["resources"]["report"]
    fewer["resources"]["cook"] = values["resources"]["report"]
    with pytest.raises(FlowllmError, match=r"missing \['report'\], unknown \['cook'\]"):
        check_config(fewer)


def with_drafts(values, key, **rows):
    """`sample_pairs` and `sample_base` with two values of a key, and some lists of rows."""
    other = changed(values, f"sample_pairs.{key}", not values["sample_base"][key])
    return merge(other, rows)


@pytest.mark.parametrize("key", ["structured", "restrict_tokens"])
def test_a_flow_is_trained_on_drafts_as_it_starts_from(values, key):
    message = (
        rf"sample_pairs\.{key} is (true|false), but sample_base\.{key} is (true|false): the flow "
        r"of methods .*FlowLLM-tau0\.7-p0\.9.*Give both keys the same value"
    )
    with pytest.raises(FlowllmError, match=message):
        check_config(with_drafts(values, key))
    prediction = {"name": "CSP", "base": "csp", "flow": "llm", "num_steps": 9}
    unrefined = {"name": "LLM", "base": "tau0.7-p0.9", "flow": None, "num_steps": 0}
    types = {"name": "T", "base": "tau0.7-p0.9", "flow": "types", "num_steps": 9}
    rows = {"methods": [unrefined, types], "csp_methods": []}
    # Without such a flow the drafts of the pairs matter to no row.
    check_config(with_drafts(values, key, **rows))
    with pytest.raises(FlowllmError, match="the flow of methods CSP "):
        check_config(with_drafts(values, key, **rows | {"csp_methods": [prediction]}))


def test_drafts_may_differ_in_what_does_not_shape_them(values):
    """The paper samples pairs hotter; close atoms only change how many drafts are made."""
    assert values["sample_pairs"]["temperature"] != values["bases"][0]["temperature"]
    assert check_config(with_drafts(values, "reject_close_atoms"))
    assert check_config(changed(values, "sample_base.backend", "transformers"))


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack[-1].stem)
def test_overlays_of_benchmarks_and_tests_load(stack):
    config = load_config([PAPER, *stack])
    assert config.sample_pairs.structured == config.sample_base.structured


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "not YAML"), ("- a", "expected sections"), ("", "expected sections")],
)
def test_files_that_are_no_configuration(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(FlowllmError, match=rf"mine\.yaml: {message}"):
        load_config([PAPER, path])
    with pytest.raises(FlowllmError, match=r"gone\.yaml: No such file"):
        load_config([PAPER, tmp_path / "gone.yaml"])


trees = st.recursive(
    st.one_of(st.integers(), st.none(), st.lists(st.integers(), max_size=2)),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


def leaves(tree: object, path: tuple = ()) -> dict:
    if isinstance(tree, dict) and tree:
        found = {}
        for key, value in tree.items():
            found |= leaves(value, (*path, key))
        return found
    return {path: tree}


@given(trees, trees)
def test_merge_takes_the_overlay_and_keeps_the_rest(below, above):
    before = copy.deepcopy((below, above))
    merged = merge(below, above)
    found = leaves(merged)
    for path, value in leaves(above).items():
        if value != {}:
            assert found[path] == value
    for path, value in leaves(below).items():
        covered = any(path[: len(other)] == other for other in leaves(above) if other)
        if path and not covered and not any(other[: len(path)] == path for other in leaves(above)):
            assert found[path] == value
    assert (below, above) == before
    assert merge(merged, above) == merged
    assert merge(below, {}) == below


def test_overlay_merges_sections_and_replaces_lists(values):
    merged = merge(values, {"prepare": {"max_rows": 5}, "bases": [{"name": "one"}]})
    assert merged["prepare"] == {**values["prepare"], "max_rows": 5}
    assert merged["bases"] == [{"name": "one"}]
    assert merged["data"] == values["data"]


def row_of(config: Config, stage: str) -> str | None:
    rows = {
        "flow": config.flows,
        "base": config.bases,
        "csp_base": config.csp_bases,
        "method": config.methods,
        "external": config.external_samples,
    }
    kind = STAGES[stage].row
    return rows[kind][0].name if kind else None


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_given_its_sections_and_nothing_else(config, stage):
    row = row_of(config, stage)
    given = StageSettings.from_json(stage, stage_json(config, stage, row))
    allowed = {*STAGES[stage].sections, *filter(None, [STAGES[stage].row])}
    assert set(given.values) == allowed
    for name in allowed:
        assert isinstance(getattr(given, name), BaseModel)
    others = {name for name in Config.model_fields if name not in allowed and name != "seed"}
    for name in others:
        with pytest.raises(AttributeError, match=f"{stage} is not given '{name}'"):
            getattr(given, name)


@pytest.mark.parametrize("stage", STAGES)
def test_settings_survive_json_and_match_those_by_hand(config, stage):
    row = row_of(config, stage)
    passed = StageSettings.from_json(stage, stage_json(config, stage, row))
    by_hand = StageSettings.from_config(stage, config, row)
    assert passed.values == by_hand.values
    assert (passed.seed, passed.version) == (config.seed, STAGES[stage].version)
    for name in passed.values:
        assert getattr(passed, name) == getattr(by_hand, name)


def test_a_change_reaches_only_the_stages_that_use_it(values, config):
    for section in Config.model_fields:
        stages = {name for name, stage in STAGES.items() if section in stage.sections}
        key = {"train_rfm": "learning_rate", "prerelax": "max_force", "refine": "anneal_slope"}
        if section not in key:
            continue
        other = check_config(changed(values, f"{section}.{key[section]}", 0.0123))
        differ = {
            name
            for name in STAGES
            if stage_json(config, name, row_of(config, name))
            != stage_json(other, name, row_of(other, name))
        }
        assert differ == stages != set()


def test_sizes_reach_no_stage(values, config):
    other = check_config(changed(values, "sizes.num_samples", 7))
    for stage in STAGES:
        row = row_of(config, stage)
        assert stage_values(config, stage, row) == stage_values(other, stage, row)


def test_every_stage_is_a_command():
    assert set(STAGES) <= set(app)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ("{}", r"expected \['prepare', 'seed', 'version'\], got \[\]"),
        ('{"seed": 1, "version": 1, "prepare": {}, "data": {}}', "got .*'data'"),
        ('{"seed": 1, "version": 1, "prepare": {}}', r"\n  prepare\.cell: Field required"),
    ],
)
def test_bad_settings_of_a_job(text, message):
    with pytest.raises(FlowllmError, match=message):
        StageSettings.from_json("prepare", text)


def test_settings_can_go_to_another_process(config):
    given = StageSettings.from_config("prepare", config)
    again = pickle.loads(pickle.dumps(given))
    assert again.prepare == given.prepare
    assert copy.deepcopy(given).values == given.values


def test_values_do_not_change(config):
    with pytest.raises(ValueError, match="frozen"):
        config.prepare.max_atoms = 30


@pytest.mark.parametrize(
    ("code", "ours", "theirs", "fits"),
    [
        ("vasp", "MP2020", "MP2020", True),
        ("vasp", "MP2020_plus_u_only", "MP2020", True),
        ("vasp", "none", "none", True),
        ("vasp", "none", "MP2020", False),
        ("vasp", "MP2020", "GPAW", False),
        ("gpaw", "MP2020", "MP2020", False),
        ("gpaw", "MP2020", "GPAW", True),
    ],
)
def test_dft_energies_and_their_hull_are_on_one_scale(values, code, ours, theirs, fits):
    given = changed(changed(values, "dft.code", code), "dft_collect.correction_scheme", ours)
    check_config(given)  # no hull, nothing to fit
    given["dft_hull"] = {"source": "entries.json", "correction_scheme": theirs}
    if fits:
        check_config(given)
        return
    with pytest.raises(FlowllmError, match=f"dft_hull: its energies are of {theirs}, .* {code}"):
        check_config(given)


def test_inputs_whose_results_are_not_read_have_no_dft_hull(values):
    scan = changed(values, "dft_inputs.input_set", "MPScanRelaxSet")
    check_config(scan)
    with pytest.raises(FlowllmError, match="r2SCAN, but dft_collect reads GGA and GGA"):
        check_config(changed(scan, "dft_hull.source", "mp_api"))


@pytest.mark.parametrize(
    "url",
    ["https://host/d?token=SECRET", "https://host/d#SECRET", "https://h/?X-Amz-Signature=SECRET"],
)
def test_a_query_of_the_address_is_refused_and_not_repeated(values, url):
    with pytest.raises(FlowllmError, match=r"\n  data\.url: .*cannot have a query") as caught:
        check_config(changed(values, "data.url", url))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "given", [{"urls": "https://host/d?token=SECRET"}, {"source": ["https://u:SECRET@host/d"]}]
)
def test_addresses_under_wrong_keys_are_shown_without_their_secrets(values, given):
    with pytest.raises(FlowllmError, match=r"\n  data\.") as caught:
        check_config(values | {"data": values["data"] | given})
    assert "SECRET" not in str(caught.value)


def test_yaml_that_cannot_be_read_is_shown_without_secrets(tmp_path):
    (tmp_path / "c.yaml").write_text("data: [url: https://u:SECRET@host/d?token=SECRET\n")
    with pytest.raises(FlowllmError, match=r"c\.yaml: not YAML") as caught:
        load_config([tmp_path / "c.yaml"])
    assert "SECRET" not in str(caught.value)


PATHS = ("run_dir", "data.source", "finetune_llm.base_model", "reference_hull.source")


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("runs/{x}", "contains braces"),
        ("runs/x}", "contains braces"),
        ("runs/a\nb", "another control character"),
        ("runs/\x00", "another control character"),
        ("runs/\x1b[2J", "another control character"),
        ("$SCRATCH/run", "contains a variable"),
        ("${SCRATCH}/run", "contains a variable"),
        ("~nobody-of-this-name/run", "no such user"),
        ("", "is empty"),
        ("run ", "begins or ends with a space"),
    ],
)
def test_a_path_that_would_be_read_as_something_else_is_refused(values, key, path, reason):
    with pytest.raises(FlowllmError, match=rf"\n  {re.escape(key)}: .*{reason}"):
        check_config(changed(values, key, path))


@pytest.mark.parametrize("key", ["dft_hull.source", "external_samples.0.file"])
def test_optional_paths_are_checked_too(values, key):
    row = {"name": "other", "file": "runs/{x}", "shards": 1}
    given = values | {"external_samples": [row]}
    if key == "dft_hull.source":
        given = changed(values, key, "runs/{x}")
    with pytest.raises(FlowllmError, match=rf"\n  {re.escape(key)}: .*contains braces"):
        check_config(given)


def test_a_home_folder_is_expanded(values, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for key in PATHS:
        config = check_config(changed(values, key, "~/z"))
        section, _, name = key.rpartition(".")
        found = getattr(getattr(config, section) if section else config, name)
        assert found == "/home/someone/z"
    assert check_config(changed(values, "run_dir", "./runs//z/")).run_dir == "runs/z"
    for name in ("runs/it's $(a) `b` * ? [c] ~ & é", "a~b"):
        assert check_config(changed(values, "run_dir", name)).run_dir == name


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_key_stops_with_its_new_name(old):
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    section, _, key = old.rpartition(".")
    inner = values[section] if section else values
    inner[key] = inner.pop(RENAMED[old].rpartition(".")[2])
    with pytest.raises(FlowllmError, match=f"{old}: this key is now named {RENAMED[old]}"):
        check_config(values)
