"""Predict the hidden element of a crystal (`flowllm infill`)."""

from pathlib import Path

from cyclopts.types import PositiveInt
from pymatgen.core.periodic_table import Element

from flowllm.commands.options import DEFAULT_CONFIG, ConfigFiles
from flowllm.config.load import load_config
from flowllm.config.model import Config
from flowllm.data.cif import crystal_from_cif
from flowllm.data.cif_blocks import read_cif_text
from flowllm.data.rejected import RejectedError
from flowllm.errors import FlowllmError
from flowllm.llm.infilling import element_chances
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.text_parts import element_symbol
from flowllm.runtime.device import pick_device
from flowllm.runtime.log import setup_logging


def run(
    *, model: Path, cif: Path, hidden: str, first: PositiveInt = 5, config: ConfigFiles = None
) -> None:
    """Hide one element of a crystal and print which elements the model predicts in its place.

    Args:
        model: Folder of the merged model.
        cif: CIF file of the crystal.
        hidden: Symbol of the element to hide, e.g. Cl.
        first: Number of elements to print, the most probable first.
        config: See `options.ConfigFiles`.

    Raises:
        FlowllmError: as `infill`.
    """
    setup_logging(None)
    loaded = load_config(config or DEFAULT_CONFIG)
    chances = infill(loaded, model=model, cif=cif, hidden=hidden)
    for symbol, chance in list(chances.items())[:first]:
        print(f"{symbol:2} {chance:.3f}")


def infill(config: Config, *, model: Path, cif: Path, hidden: str) -> dict[str, float]:
    """Predict a hidden element of a crystal.

    Args:
        config: configuration with the prompts and the cell of the model's training.
        model: folder of the merged model.
        cif: CIF file of the crystal.
        hidden: symbol of the element to hide.

    Returns:
        Probability by symbol of the elements of the model's training, the highest first.

    Raises:
        FlowllmError: the file contains no such crystal, or the model was not trained on the task.
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
