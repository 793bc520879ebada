"""Record of a fine-tuning (`flowllm.json`) in the folders of the adapter and the merged model."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from flowllm.config.sections.llm import Prompts, Quantization
from flowllm.data.wishes import Own
from flowllm.errors import FlowllmError
from flowllm.io.start_files import MODEL_RECORD
from flowllm.llm.crystal_text import Reason, Rejection
from flowllm.runtime.device import Precision

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""Name of an adapter's weights."""


@dataclass(frozen=True)
class ModelRecord:
    """Properties of a fine-tuning that sampling depends on.

    Attributes:
        base_model: name of the base model in the configuration.
        precision: precision of the merged weights.
        quantization: quantization of the base model's weights during fine-tuning.
        val_loss: validation loss of the adapter with these weights, nats per token.
        prompts: sentences of the training prompts; sentences that no prompt had are left out.
        elements: atomic numbers of the training crystals, ascending.
        max_atoms: maximum number of atoms per training crystal.
        max_length: longest lattice vector in the texts of the training crystals, rounded up to
            whole angstrom, at most 99.
        method: weights that were trained: lora (an adapter) or full (all of them).
        categories: values of the categorical own properties in the training crystals, by name.
        base_content: content of the base model (`base_content.base_content`); None if its weights
            were not used, and in records of earlier versions.
    """

    base_model: str
    precision: Precision
    quantization: Quantization
    val_loss: float
    prompts: dict[str, str]
    elements: tuple[int, ...]
    max_atoms: int
    max_length: int
    method: Literal["lora", "full"] = "lora"
    categories: dict[str, list[str]] = field(default_factory=dict)
    base_content: str | None = None

    def differing_prompts(self, prompts: Prompts) -> list[str]:
        """Return the names of the sentences that differ from those of the training."""
        asked = prompt_texts(prompts)
        # Records from before there was a choice do not name the text.
        trained = {"crystal_text": "coordinates", **self.prompts}
        return sorted(key for key in trained if asked.get(key) != trained[key])

    def check_prompts(self, prompts: Prompts, folder: Path) -> None:
        """Check that the configured prompts are those of the training.

        Args:
            prompts: configured prompts.
            folder: folder of the model, for the message.

        Raises:
            FlowllmError: the prompts differ.
        """
        if differing := self.differing_prompts(prompts):
            raise FlowllmError(
                f"{folder}: was trained on other prompts ({', '.join(differing)} differ). Sample "
                "with the prompts of the training, or run finetune_llm and merge_adapter again."
            )

    def own(self, prompts: Prompts) -> Own:
        """Return the own properties that the model was trained on, with their categories."""
        return {
            name: tuple(self.categories[name]) if name in self.categories else None
            for name in prompts.properties
            if name in self.prompts
        }

    def check_conditions(self, names: Iterable[str], folder: Path) -> None:
        """Check that a model was trained on prompts with the given conditions.

        Args:
            names: names of the conditions.
            folder: folder of the model, for the message.

        Raises:
            FlowllmError: it was not.
        """
        if unknown := sorted(set(names) - set(self.prompts)):
            raise FlowllmError(
                f"{folder}: was trained on no prompt that gives {', '.join(unknown)}. Fine-tune "
                "with a positive finetune_llm.properties_share on crystals that have these values."
            )

    def refusal(self, num_atoms: int) -> Rejection | None:
        """Return why a crystal with this number of atoms is not sampled, None if it can be.

        All drafts of a crystal that is larger than the training crystals would be rejected.
        """
        if num_atoms <= self.max_atoms:
            return None
        return Rejection(
            Reason.TOO_MANY_ATOMS,
            f"{num_atoms} atoms, but the model was trained on crystals of at most {self.max_atoms}",
        )

    def check_infilling(self, folder: Path) -> None:
        """Check that a model was trained on infilling.

        Raises:
            FlowllmError: it was not.
        """
        if "infill" not in self.prompts:
            raise FlowllmError(
                f"{folder}: was not trained to name hidden elements. Fine-tune with a positive "
                "finetune_llm.infill_share."
            )


def prompt_texts(prompts: Prompts) -> dict[str, str]:
    """Return the configured texts by key; those of own properties by the name of the property."""
    texts = prompts.model_dump(exclude={"properties"})
    return texts | prompts.properties


def write_record(folder: Path, record: ModelRecord) -> None:
    """Write the record of a model's folder."""
    optional = ("categories", "base_content")
    values = {
        name: value for name, value in asdict(record).items() if name not in optional or value
    }
    (folder / MODEL_RECORD).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def read_record(folder: Path) -> ModelRecord:
    """Read the record of a model's folder.

    Raises:
        FlowllmError: there is none, or it has other content.
    """
    path = folder / MODEL_RECORD
    try:
        values = json.loads(path.read_text())
        return ModelRecord(**{**values, "elements": tuple(values["elements"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FlowllmError(
            f"{path}: is not the record of a fine-tuned model ({error}). "
            "Run finetune_llm and merge_adapter again."
        ) from error
