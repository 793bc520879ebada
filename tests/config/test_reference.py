"""The comments of config.yaml and its JSON schema are those of the models."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml

from flowllm.config.model import Config
from flowllm.config.reference import WIDTH, commented, main, schema_text, sections
from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config.yaml"
FILES = [
    CONFIG,
    *sorted((ROOT / "workflow" / "config").glob("*.yaml")),
    *sorted((ROOT / "benchmarks").glob("*.yaml")),
    ROOT / "tests" / "tiny.yaml",
]
CURE = "; run `python -m flowllm.config.reference --write`"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_files_are_those_of_the_models():
    text = CONFIG.read_text()
    assert text == commented(text), f"the comments of config.yaml differ from the models{CURE}"
    schema = (ROOT / "config.schema.json").read_text()
    assert schema == schema_text(), f"config.schema.json differs from the models{CURE}"


def test_every_key_has_a_meaning():
    missing = [
        f"{section.name}.{key}"
        for section in sections()
        for key, fields in section.keys.items()
        for field in fields
        if not field.get("description")
    ]
    assert not missing
    assert [section.name for section in sections()] == [*Config.model_fields]


def test_lines_fit_and_the_first_one_names_the_schema():
    lines = CONFIG.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=config.schema.json"
    assert max(map(len, lines)) <= WIDTH
    for section in sections():
        start = lines.index(next(line for line in lines if line.startswith(f"{section.name}:")))
        if section.keys and not section.has_rows:
            assert lines[start - 1] == f"# {section.heading}"


def test_new_comments_leave_values_rows_and_blank_lines():
    text = CONFIG.read_text()
    other = text.replace("paper", "other").replace("# Source of the crystals.", "# Old.")
    again = commented(other)
    assert yaml.safe_load(again) == yaml.safe_load(other)
    assert "# Source of the crystals. Read by download.\n" in again
    assert "# Old." not in again
    rows = [line for line in other.splitlines() if line.startswith("  - {")]
    assert rows == [line for line in again.splitlines() if line.startswith("  - {")]
    assert again.count("\n\n") == text.count("\n\n")
    assert commented(again) == again


def test_marks_of_comments_within_values_are_no_comments():
    text = CONFIG.read_text().replace("title: FlowLLM ", 'title: "Flow # LLM" # old ')
    text = text.replace("    then the element", "    # then the element")
    again = commented(text)
    assert yaml.safe_load(again) == yaml.safe_load(text)
    assert '  title: "Flow # LLM"         # title of the page\n' in again
    assert "    # then the element" in again


@pytest.mark.parametrize("old", ["  max_atoms:", "prepare:"])
def test_an_unknown_key_is_named(old):
    text = CONFIG.read_text().replace(f"\n{old}", f"\n{old[:-2]}:")
    with pytest.raises(
        FlowllmError, match=f"unknown (key of prepare|section): {old.strip()[:-2]};"
    ):
        commented(text)


def test_the_switch_writes_both_files(tmp_path, capsys):
    shutil.copy(CONFIG, tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG.read_text().replace("# Source of", "# Old"))
    assert main(["--folder", str(tmp_path)]) == 1
    assert "config.yaml differs from the models; run `python -m" in capsys.readouterr().err
    assert main(["--folder", str(tmp_path), "--write"]) == 0
    for name in ("config.yaml", "config.schema.json"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()
    assert main(["--folder", str(tmp_path)]) == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_schema_accepts_the_configuration_and_its_overlays(validator, path):
    validator.validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"prepar": {}}, []),
        ({"prepare": {"max_atom": 20}}, ["prepare"]),
        ({"prepare": {"cell": "conventional"}}, ["prepare", "cell"]),
        ({"resources": {"cook": {"gpus": 0}}}, ["resources"]),
        ({"resources": {"refine": {"gpu": 0}}}, ["resources", "refine"]),
        ({"bases": [{"name": "a", "temprature": 1.0}]}, ["bases", 0]),
        ({"report": {"titl": "a"}}, ["report"]),
    ],
)
def test_the_schema_finds_mistyped_keys_and_values(validator, values, where):
    (error,) = validator.iter_errors(values)
    assert list(error.path) == where


def test_the_schema_knows_every_stage_and_meaning():
    schema = json.loads(schema_text())
    assert [*schema["properties"]["resources"]["properties"]] == [*STAGES]
    assert "title" in schema["$defs"]["Report"]["properties"]
    assert "required" not in schema_text()
