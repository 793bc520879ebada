"""The kinds of crystal text by their names in the configuration."""

from flowllm.config.sections.llm import CrystalTextName
from flowllm.llm.crystal_text import CrystalText
from flowllm.llm.symmetric_text import SymmetricText
from flowllm.llm.text import CoordinatesText

_TEXTS: dict[CrystalTextName, CrystalText] = {
    "coordinates": CoordinatesText(),
    "symmetric": SymmetricText(),
}


def crystal_text(name: CrystalTextName) -> CrystalText:
    """Return a kind of crystal text."""
    return _TEXTS[name]
