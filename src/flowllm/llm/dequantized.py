"""The weights that quantized training computes with, written as unquantized numbers.

An adapter trained beside 4-bit or 8-bit weights compensates their rounding errors. Added to the
original weights, it would be combined with numbers that it was not trained with. Here each layer is
quantized as in training and dequantized again, so that the merged model is the validated one.
"""

import copy
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer

from flowllm.config.sections.llm import Quantization
from flowllm.llm.base_model import quantization_config

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

QuantizedLayer = Union["Linear4bit", "Linear8bitLt"]


@torch.no_grad()
def round_as_in_training(model: PreTrainedModel, quantization: Quantization) -> list[str]:
    """Replace each weight that training quantizes by its dequantized value, layer by layer.

    Only one layer at a time is held in memory twice. nf4 uses blocks of 64 numbers with doubly
    quantized scales (QLoRA, arXiv 2305.14314); int8 uses one scale per row (LLM.int8(), arXiv
    2208.07339). A number halfway between two levels may be rounded differently on a GPU and a CPU.

    Args:
        model: unquantized model in the precision of the training; changed in place.
        quantization: quantization of the training.

    Returns:
        Names of the changed layers; empty without quantization.
    """
    layers = _quantized_layers(model, quantization)
    for name, layer in layers.items():
        original = model.get_submodule(name)
        assert isinstance(original, (nn.Linear, Conv1D))
        weight = original.weight
        # GPT-2's layers (Conv1D) store their weights transposed; quantized layers do not.
        transposed = isinstance(original, Conv1D)
        rounded = _rounded(weight.T.contiguous() if transposed else weight, layer)
        weight.copy_(rounded.T if transposed else rounded)
    return list(layers)


def _quantized_layers(
    model: PreTrainedModel, quantization: Quantization
) -> dict[str, QuantizedLayer]:
    """Return the layers that training quantizes by name; their weights have no values.

    transformers selects them: all linear layers except the output layer and layers with tied
    weights.
    """
    # Imported here, because it takes two seconds and merging without quantization does not need it.
    import bitsandbytes as bnb

    wanted = quantization_config(quantization, model.dtype)
    if wanted is None:
        return {}
    with torch.device("meta"):
        skeleton = type(model)(copy.deepcopy(model.config))
    AutoHfQuantizer.from_config(wanted, pre_quantized=False).preprocess_model(
        skeleton, device_map=None
    )
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return {name: layer for name, layer in skeleton.named_modules() if isinstance(layer, kinds)}


def _rounded(weight: Tensor, layer: QuantizedLayer) -> Tensor:
    """Quantize a weight (out, in) with a layer's options and return it dequantized."""
    import bitsandbytes as bnb

    options = {key: value for key, value in layer.weight.__dict__.items() if key != "SCB"}
    copied = weight.detach().clone()
    # Moving such a weight to a device quantizes it. The overloads of `to` are for a type variable
    # that mypy does not bind to the class itself, hence the ignored errors.
    if isinstance(layer, bnb.nn.Linear4bit):
        four_bit = bnb.nn.Params4bit(copied, requires_grad=False, **options)
        four_bit = four_bit.to(weight.device)  # type: ignore[misc]
        return bnb.functional.dequantize_4bit(four_bit.data, four_bit.quant_state)
    eight_bit = bnb.nn.Int8Params(copied, requires_grad=False, **options)
    eight_bit = eight_bit.to(weight.device)  # type: ignore[misc]
    dequantized: Tensor = bnb.functional.int8_vectorwise_dequant(eight_bit.data, eight_bit.SCB)
    return dequantized
