"""The network of a language model that is trained from random weights."""

from pydantic import Field, PositiveInt, model_validator

from flowllm.config.sections.base import Section

SCRATCH = "scratch"
"""Name of the base model whose weights are random and whose tokenizer is made in code."""

HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""Features per attention head that vLLM computes on a CPU; `cpu_attn.py` of vLLM 0.32."""


class Scratch(Section):
    """Size of the network of `base_model: scratch`."""

    width: PositiveInt = Field(description="features per token")
    layers: PositiveInt = Field(description="decoder layers")
    heads: PositiveInt = Field(description="attention heads per layer")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "Scratch":
        size, rest = divmod(self.width, self.heads)
        if rest or size not in HEAD_SIZES:
            raise ValueError(
                f"width {self.width} with {self.heads} heads gives {self.width / self.heads:g} "
                f"features per head, which must be one of {', '.join(map(str, HEAD_SIZES))}"
            )
        return self
