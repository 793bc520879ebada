"""Every stage declares the sections that it is given."""

import importlib
from pathlib import Path
from typing import get_type_hints

import pytest
from pydantic import TypeAdapter

from flowllm.config.load import load_config
from flowllm.config.stage_settings import (
    _ROW_MODELS,
    StageSettings,
    stage_json,
    stage_values,
)
from flowllm.config.stages import STAGES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_settings_are_the_sections_that_the_workflow_gives_it(stage):
    module = importlib.import_module(f"flowllm.stages.{stage}")
    hints = get_type_hints(module.run)["settings"]
    own = set(hints.__annotations__) if hints is not StageSettings else set()
    about = STAGES[stage]
    assert own == {*about.sections, *([about.row] if about.row else [])}


def test_a_key_that_a_stage_ignores_changes_nothing_in_its_settings():
    plain = load_config([ROOT / "config.yaml"])
    potential = plain.potential.model_copy(update={"check": "sevennet"})
    checked = plain.model_copy(update={"potential": potential})
    ignoring = [stage for stage, about in STAGES.items() if "potential.check" in about.ignores]
    assert ignoring == ["prerelax", "reference_hull"]
    for stage in ignoring:
        assert stage_json(checked, stage) == stage_json(plain, stage)
        # The key is there and null, so that jobs of a configuration without it stay valid.
        assert stage_values(checked, stage)["potential"] == {"name": "chgnet", "check": None}
    assert stage_json(checked, "second_energies") != stage_json(plain, "second_energies")


def test_the_hull_does_not_depend_on_what_its_relaxation_does_not_read():
    plain = load_config([ROOT / "config.yaml"])
    unread = {"max_seconds": 7.0, "chunk_size": 7, "keep_symmetry": True, "fixed_cell": True}
    changed = plain.model_copy(update={"prerelax": plain.prerelax.model_copy(update=unread)})
    assert stage_json(changed, "reference_hull") == stage_json(plain, "reference_hull")
    assert stage_json(changed, "prerelax") != stage_json(plain, "prerelax")
    given = StageSettings.from_config("reference_hull", plain).prerelax
    assert given.max_force == plain.prerelax.max_force
    limits = plain.prerelax.model_copy(update={"max_force": 0.5})
    changed = plain.model_copy(update={"prerelax": limits})
    assert stage_json(changed, "reference_hull") != stage_json(plain, "reference_hull")


NOISE = {"coords_noise": 0.0, "lengths_noise": 0.0, "angles_noise": 0.0}
ADDED = {
    "train_rfm": ({"name": "f", "start": "llm", **NOISE}, {"augment_axes": False}),
    "refine": (
        {"name": "m", "base": "b", "flow": "llm", "num_steps": 5},
        {"keep_symmetry": False},
    ),
    "import_samples": (
        {"name": "x", "file": "x.csv", "shards": 1, "column": None, "cell": None},
        {"max_crystals": 5, "known_e_above_hull": "e", "known_formation_energy": "f"},
    ),
}
"""Rows as jobs were given them before a key was added, and the added keys."""


@pytest.mark.parametrize("stage", ADDED)
def test_a_key_that_is_added_to_a_row_leaves_finished_jobs_as_they_are(stage):
    before, added = ADDED[stage]
    kind = STAGES[stage].row
    for row in (before, before | dict.fromkeys(added)):
        assert TypeAdapter(_ROW_MODELS[kind]).validate_python(row).model_dump() == before
    given = {**before, **added}
    assert TypeAdapter(_ROW_MODELS[kind]).validate_python(given).model_dump() == given


CODE = """\
from flowllm.config.sections.data import Prepare
from flowllm.config.stage_settings import StageSettings

class Settings(StageSettings):
    prepare: Prepare

def run(settings: Settings) -> int:
    return settings.{section}.{key}

run(Settings.from_json("prepare", ""))
"""


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ("prepare", "max_atoms", None),
        ("prepar", "max_atoms", '"Settings" has no attribute "prepar"'),
        ("data", "source", '"Settings" has no attribute "data"'),
        ("prepare", "max_atom", '"Prepare" has no attribute "max_atom"'),
    ],
)
def test_the_type_checker_finds_a_mistyped_section(tmp_path, monkeypatch, section, key, message):
    api = pytest.importorskip("mypy.api", reason="mypy is not installed; the extra dev has it")
    monkeypatch.setenv("MYPYPATH", str(Path(__file__).parents[2] / "src"))
    code = tmp_path / "stage.py"
    code.write_text(CODE.format(section=section, key=key))
    # Only this file is checked; the cache of the package serves all four runs.
    cache = tmp_path.parent / "mypy_cache"
    options = ["--config-file=", f"--cache-dir={cache}", "--follow-imports=silent", "--strict"]
    said, failed, code_of_exit = api.run([*options, str(code)])
    assert failed == ""
    assert code_of_exit == int(message is not None), said
    assert (message or "Success") in said
