"""The weights that quantized training computes with, written as plain numbers.

An adapter that was trained beside 4-bit or 8-bit weights corrects those weights, rounding and all.
Added to the original weights it meets numbers that it never saw. Here each layer is rounded as in
training and brought back to plain numbers, so that the merged model is the one that was validated.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer

from flowllm.config.sections.llm import Quantization
from flowllm.llm.base_model import quantization_config


@torch.no_grad()
def round_as_in_training(model: PreTrainedModel, quantization: Quantization) -> list[str]:
    """Replace each weight that training quantizes by its dequantized value, layer by layer.

    Only one layer at a time is held twice. nf4: blocks of 64 numbers with doubly quantized scales
    (QLoRA, arXiv 2305.14314); int8: rows with a scale each (LLM.int8(), arXiv 2208.07339). On a GPU
    a number half way between two levels may be rounded to the other one than on a CPU.

    Args:
        model: unquantized, in the precision of the training; changed in place.
        quantization: of the training.

    Returns:
        Names of the layers that were changed; none without quantization.
    """
    layers = _quantized_layers(model, quantization)
    for name, layer in layers.items():
        original = model.get_submodule(name)
        weight = original.weight
        # GPT-2's layers have their weights transposed; quantized ones do not.
        turned = isinstance(original, Conv1D)
        rounded = _rounded(weight.T.contiguous() if turned else weight, layer)
        weight.copy_(rounded.T if turned else rounded)
    return list(layers)


def _quantized_layers(model: PreTrainedModel, quantization: Quantization) -> dict[str, nn.Module]:
    """Return the layers that training quantizes, without their numbers, by name.

    transformers decides on them: all linear layers but the output's and those of tied weights.
    """
    import bitsandbytes as bnb  # takes two seconds, and merging without quantization needs none

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


def _rounded(weight: Tensor, layer: nn.Module) -> Tensor:
    """Quantize a weight (out, in) as a layer does and return it dequantized."""
    import bitsandbytes as bnb

    options = {key: value for key, value in layer.weight.__dict__.items() if key != "SCB"}
    made = type(layer.weight)(weight.detach().clone(), requires_grad=False, **options)
    made = made.to(weight.device)
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(made.data, made.quant_state)
    return bnb.functional.int8_vectorwise_dequant(made.data, made.SCB)
