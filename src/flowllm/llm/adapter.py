"""The adapter: low-rank products beside the frozen linear layers of a base model (LoRA)."""

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
    """Put a LoRA adapter on every linear layer but the output's.

    Args:
        model: the base model, its weights frozen from here on.
        section: rank, alpha, dropout, quantisation, gradient checkpointing.
        seed: of the adapter's first weights.
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
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def shard_base_model(model: PeftModel, device: torch.device, num_processes: int) -> None:
    """Leave each process its part of the frozen weights (FSDP), and all of the adapter.

    A decoder layer's weights are gathered, as the 4-bit numbers they are, just while it computes.
    The adapter is small and trained as without shards: the same sums of gradients, the same files.

    Args:
        model: base model with adapter, the same on every process; on the CPU or on `device`.
        device: of this process; the parts and the adapter go there.
        num_processes: processes of the job, already connected.
    """
    adapter = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for parameter in adapter:
        parameter.data = parameter.data.to(device)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    mesh = init_device_mesh(device.type, (num_processes,))
    names = model.get_base_model()._no_split_modules
    for layer in [module for module in model.modules() if type(module).__name__ in names]:
        fully_shard(layer, mesh=mesh, ignored_params=adapter)
    fully_shard(model, mesh=mesh, ignored_params=adapter)
    parts = sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in model.parameters())
    log.info(
        "finetune_llm: weights of %.2f GB take %.2f GB in each of %d processes",
        *(whole / 1e9, parts / 1e9, num_processes),
    )
