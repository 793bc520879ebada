"""The adapter (LoRA): low-rank products beside the frozen linear layers of a base model.

Source: Hu et al., arXiv 2106.09685.
"""

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from flowllm.config.sections.llm import FinetuneLlm
from flowllm.runtime.log import log
from flowllm.seeds import derive


def add_lora(model: PreTrainedModel, section: FinetuneLlm, seed: int) -> PeftModel:
    """Add a LoRA adapter to every linear layer except the output layer.

    Args:
        model: base model; its weights are frozen.
        section: rank, alpha, dropout, quantization and gradient checkpointing.
        seed: seed of the adapter's initial weights.
    """
    if section.quantization != "none":
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=section.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    elif section.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.config.use_cache = False
    torch.manual_seed(derive(seed, "finetune_llm", "adapter"))
    config = LoraConfig(
        r=section.lora_rank,
        lora_alpha=section.lora_alpha,  # type: ignore[arg-type]  # declared int, used as a number
        lora_dropout=section.lora_dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the base model that has the adapter's layers, or a model without adapter itself."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def shard_base_model(model: PeftModel, device: torch.device, num_processes: int) -> None:
    """Divide the frozen weights among the processes (FSDP); each process keeps the whole adapter.

    The weights of a decoder layer are gathered, in their 4-bit form, only while the layer computes.
    The adapter is small and trained as without shards: its gradients have the same sums, and its
    files are the same.

    Args:
        model: base model with adapter, the same on every process; on the CPU or on `device`.
        device: device of this process, to which its shard and the adapter are moved.
        num_processes: number of processes of the job, which must be connected.
    """
    adapter = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for parameter in adapter:
        parameter.data = parameter.data.to(device)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    mesh = init_device_mesh(device.type, (num_processes,))
    names = base_of(model)._no_split_modules or ()
    for layer in [module for module in model.modules() if type(module).__name__ in names]:
        fully_shard(layer, mesh=mesh, ignored_params=adapter)
    fully_shard(model, mesh=mesh, ignored_params=adapter)
    parts = sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in model.parameters())
    log.info(
        "finetune_llm: weights of %.2f GB take %.2f GB in each of %d processes",
        *(whole / 1e9, parts / 1e9, num_processes),
    )
