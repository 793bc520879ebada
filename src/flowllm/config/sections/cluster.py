"""The sections of what jobs ask of the cluster."""

from pydantic import Field, NonNegativeInt, PositiveInt

from flowllm.config.sections.base import Section


class Resources(Section):
    """What one rule asks of the cluster for a first attempt."""

    gpus: NonNegativeInt
    cpus: PositiveInt
    mem_mb: PositiveInt
    runtime: PositiveInt = Field(description="minutes")


class Nodes(Section):
    """Nodes of one job, of the stages that share their work among nodes."""

    finetune_llm: PositiveInt
    train_rfm: PositiveInt
