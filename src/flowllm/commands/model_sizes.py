"""Bytes of the models of a run: base model, adapter, merged model, velocity network, checkpoints.

The parameters of a Llama follow from five numbers of its configuration, those of another base
model from the files of its folder.
"""

from dataclasses import dataclass
from pathlib import Path

from flowllm.config.model import Config

_HALF, _SINGLE = 2, 4
"""Bytes of a number in 16 and in 32 bits."""

_KEPT = 2
"""Checkpoints that exist at once: the new one is written before the old one is removed."""

_ADAM = 3
"""Values per trained weight in a checkpoint of finetune_llm: it and AdamW's two moments. With
`patience` there is one more, the weight of the lowest validation loss."""

_FLOW_STATES = 5
"""The same of train_rfm: the weight, its average, the best average, AdamW's two moments."""


@dataclass(frozen=True)
class Llama:
    """Size of a network of Llama's architecture.

    Attributes:
        width: features per token.
        layers: number of layers.
        hidden: width within a layer's feed-forward part.
        key_value: features of all keys, and of all values.
        vocabulary: tokens.
        tied: whether input and output embeddings are the same weights.
    """

    width: int
    layers: int
    hidden: int
    key_value: int
    vocabulary: int
    tied: bool = False

    @property
    def parameters(self) -> int:
        """Number of weights."""
        attention = 2 * self.width * (self.width + self.key_value)
        layer = attention + 3 * self.width * self.hidden + 2 * self.width  # two norms
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.width
        return embeddings + self.layers * layer + self.width

    def adapter(self, rank: int) -> int:
        """Return the weights of a LoRA adapter of all linear layers but the output."""
        sums = 2 * 2 * self.width + 2 * (self.width + self.key_value)
        return self.layers * rank * (sums + 3 * (self.width + self.hidden))


KNOWN = {
    "meta-llama/Llama-2-7b-hf": Llama(4096, 32, 11008, 4096, 32000),
    "meta-llama/Llama-2-13b-hf": Llama(5120, 40, 13824, 5120, 32000),
    "meta-llama/Llama-2-70b-hf": Llama(8192, 80, 28672, 1024, 32000),
    "smollm2-135m": Llama(576, 30, 1536, 192, 49152, tied=True),
}
"""Base models whose size is known without their files."""


@dataclass(frozen=True)
class ModelBytes:
    """Bytes of one kind of file of a run; None where the base model's size is unknown.

    Attributes:
        downloaded: base model in Hugging Face's cache, outside of the run's folder.
        adapter: output of finetune_llm.
        merged: output of merge_adapter.
        flow: output of train_rfm, per flow.
        llm_checkpoints: temporary checkpoints of finetune_llm.
        flow_scratch: prepared pairs and temporary checkpoints of train_rfm, per flow.
    """

    downloaded: int | None
    adapter: int | None
    merged: int | None
    flow: int
    llm_checkpoints: int | None
    flow_scratch: int


def model_bytes(config: Config) -> ModelBytes:
    """Return the bytes of the models that a configuration downloads and makes."""
    section, sizes = config.finetune_llm, config.sizes
    known = KNOWN.get(section.base_model)
    folder = Path(section.base_model)
    parameters = known.parameters if known else None
    if folder.is_dir():
        # The weights of a folder are taken to have 16 bits each.
        found = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        parameters = found // _HALF
    local = folder.is_dir() or "/" not in section.base_model
    trained = parameters if section.method == "full" else None
    if section.method == "lora" and known is not None:
        trained = known.adapter(section.lora_rank)
    stored = _HALF if section.precision == "bf16" else _SINGLE
    flow = 4 * _flow_weights(config)
    kept = _ADAM + (section.patience is not None)
    pairs = (sizes.num_pairs + sizes.num_val_pairs) * prepared_bytes(config.prepare.max_atoms)
    return ModelBytes(
        downloaded=0 if local else _times(parameters, _HALF),
        adapter=_times(trained, _SINGLE),
        merged=_times(parameters, stored),
        flow=flow,
        llm_checkpoints=_times(trained, _KEPT * kept * _SINGLE),
        flow_scratch=pairs + _KEPT * _FLOW_STATES * flow,
    )


def _flow_weights(config: Config) -> int:
    """Return the number of weights of a velocity network."""
    import torch  # imported here, since it takes seconds

    from flowllm.rfm.network import NetworkSize, VelocityNetwork

    flow = config.train_rfm
    size = NetworkSize(flow.hidden_dim, flow.num_layers, flow.time_dim, flow.num_frequencies)
    with torch.device("meta"):
        return sum(weight.numel() for weight in VelocityNetwork(size).parameters())


def prepared_bytes(num_atoms: int) -> int:
    """Return the bytes of a pair of cells with `num_atoms` atoms, as in `rfm.pairs.PREPARED`.

    Per atom: its element and two times three coordinates. Per pair: two lattices of six numbers,
    the offsets of three lists, and one validity bit per column.
    """
    return num_atoms * (1 + 2 * 3 * 4) + 2 * 6 * 4 + 3 * 4 + 1


def _times(count: int | None, factor: int) -> int | None:
    return None if count is None else count * factor
