"""What an adapter's and a merged model's folder tell of how they were made (`flowllm.json`)."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from flowllm.config.sections.llm import Prompts, Quantization
from flowllm.errors import FlowllmError
from flowllm.llm.text import Reason, Rejection

RECORD = "flowllm.json"


@dataclass(frozen=True)
class ModelRecord:
    """How a language model was fine-tuned, as far as sampling from it must know.

    Attributes:
        base_model: name of the base model as the configuration gives it.
        precision: of the merged weights.
        quantization: of the base model's weights in the fine-tuning.
        val_loss: validation loss of the adapter beside them, nats per token.
        prompts: the prompts it was trained on; a sentence that none of them had is left out.
        elements: atomic numbers of the training crystals, ascending.
        max_atoms: the most atoms of a training crystal.
        max_length: whole angstrom of their longest lattice vector, at most 99.
    """

    base_model: str
    precision: str
    quantization: Quantization
    val_loss: float
    prompts: dict[str, str]
    elements: tuple[int, ...]
    max_atoms: int
    max_length: int

    def check_prompts(self, prompts: Prompts, folder: Path) -> None:
        """Check that a model is asked what it was trained on.

        Raises:
            FlowllmError: the prompts differ.
        """
        asked = prompts.model_dump()
        if differing := sorted(key for key in self.prompts if asked.get(key) != self.prompts[key]):
            raise FlowllmError(
                f"{folder}: was trained on other prompts ({', '.join(differing)} differ); sample "
                "with the prompts of its training, or fine-tune again"
            )

    def check_conditions(self, names: Iterable[str], folder: Path) -> None:
        """Check that a model has been trained on the conditions that it is asked for.

        Raises:
            FlowllmError: it has not.
        """
        if unknown := sorted(set(names) - set(self.prompts)):
            raise FlowllmError(
                f"{folder}: was trained on no prompt that gives {', '.join(unknown)}; fine-tune "
                "with a finetune_llm.properties_share, on crystals that have these values"
            )

    def refusal(self, num_atoms: int) -> Rejection | None:
        """Say why a crystal of so many atoms is not asked for: none as large was learned.

        Each of its drafts would be rejected.
        """
        if num_atoms <= self.max_atoms:
            return None
        return Rejection(
            Reason.TOO_MANY_ATOMS,
            f"{num_atoms} atoms, but the model was trained on crystals of at most {self.max_atoms}",
        )

    def check_infilling(self, folder: Path) -> None:
        """Check that a model has been trained to name hidden elements.

        Raises:
            FlowllmError: it has not.
        """
        if "infill" not in self.prompts:
            raise FlowllmError(
                f"{folder}: was not trained to name hidden elements; fine-tune with a "
                "finetune_llm.infill_share"
            )


def write_record(folder: Path, record: ModelRecord) -> None:
    """Write a model folder's record."""
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=2, sort_keys=True) + "\n")


def read_record(folder: Path) -> ModelRecord:
    """Read a model folder's record.

    Raises:
        FlowllmError: there is none, or it is not one of this package's.
    """
    path = folder / RECORD
    try:
        values = json.loads(path.read_text())
        return ModelRecord(**{**values, "elements": tuple(values["elements"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FlowllmError(
            f"{path}: not the record of a fine-tuned model ({error}); "
            "run finetune_llm and merge_adapter again"
        ) from error
