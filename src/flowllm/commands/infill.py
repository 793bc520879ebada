"""Predict which element is hidden in a crystal (`flowllm infill`)."""

from pathlib import Path

from pymatgen.core.periodic_table import Element

from flowllm.config.model import Config
from flowllm.data.cif import crystal_from_cif
from flowllm.data.cif_blocks import read_cif_text
from flowllm.data.rejected import RejectedError
from flowllm.errors import FlowllmError
from flowllm.llm.infilling import element_chances
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.text import element_symbol
from flowllm.runtime.device import pick_device


def infill(config: Config, *, model: Path, cif: Path, hidden: str) -> dict[str, float]:
    """Hide an element of a crystal and ask a model for it.

    Args:
        config: its prompts, and the cell that the model was trained on.
        model: folder of the merged model.
        cif: the crystal.
        hidden: symbol of the element to hide.

    Returns:
        Symbols of the elements of the model's training, likeliest first, to their probabilities.

    Raises:
        FlowllmError: the file holds no such crystal, or the model was not trained on the task.
    """
    opened = ModelFolder(model, config.prompts)
    opened.record.check_infilling(model)
    try:
        crystal = crystal_from_cif(read_cif_text(cif), config.prepare.cell, opened.record.max_atoms)
    except (OSError, RejectedError) as error:
        raise FlowllmError(f"{cif}: {error}") from error
    if not Element.is_valid_symbol(hidden) or Element(hidden).Z not in crystal.atomic_numbers:
        raise FlowllmError(f"{cif}: {crystal.formula} has no {hidden} to hide")
    elements = opened.record.elements
    loaded = opened.language_model(pick_device())
    chances = element_chances(loaded, opened.prompts, crystal, Element(hidden).Z, elements)
    by_chance = sorted(zip(chances, elements, strict=True), reverse=True)
    return {element_symbol(z): chance for chance, z in by_chance}
