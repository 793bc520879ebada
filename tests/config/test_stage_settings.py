"""Every stage declares the sections that it is given."""

import importlib
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
