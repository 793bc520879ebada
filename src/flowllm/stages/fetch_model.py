"""Fetch and check the base model before any job needs it: a local step, with the internet."""

import json
from pathlib import Path

from flowllm.config.stage_settings import StageSettings
from flowllm.io.files import write_text
from flowllm.llm.base_model import check_architecture, load_config
from flowllm.llm.hub import fetch_model
from flowllm.llm.model_files import BUNDLED, check_model_folder
from flowllm.runtime.provenance import stage_run


def run(settings: StageSettings, *, name: str, out: Path) -> None:
    """Fetch a model on the Hugging Face hub; a folder and the bundled model are there already.

    Its files are checked here, before a job with GPUs needs them.

    Args:
        settings: no sections; the workflow gives the name alone, so that no other value of
            `finetune_llm` fetches again.
        name: `finetune_llm.base_model`.
        out: JSON with the name, and the commit of a model on the hub.

    Raises:
        FlowllmError: the model cannot be fetched, or its files are damaged, name code or pickles,
            or are of an architecture that continues no texts.
    """
    with stage_run(settings, inputs={}, output=out, work={"base_model": name}):
        is_here = name == BUNDLED or Path(name).is_dir()
        folder = Path(name) if is_here else fetch_model(name)
        if name != BUNDLED:
            check_model_folder(folder)
            check_architecture(load_config(str(folder)))
        commit = None if is_here else folder.name
        write_text(out, json.dumps({"base_model": name, "commit": commit}, indent=1) + "\n")
