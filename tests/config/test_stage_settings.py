"""Every stage declares the sections that it is given."""

import importlib
from pathlib import Path
from typing import get_type_hints

import pytest

from flowllm.config.stage_settings import StageSettings
from flowllm.config.stages import STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_settings_are_the_sections_that_the_workflow_gives_it(stage):
    module = importlib.import_module(f"flowllm.stages.{stage}")
    hints = get_type_hints(module.run)["settings"]
    own = set(hints.__annotations__) if hints is not StageSettings else set()
    about = STAGES[stage]
    assert own == {*about.sections, *([about.row] if about.row else [])}


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
