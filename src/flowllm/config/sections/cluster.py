"""The sections of what jobs request from the cluster."""

from pydantic import Field, NonNegativeInt, PositiveInt

from flowllm.config.sections.base import Section


class Resources(Section):
    """What one rule requests for its first attempt."""

    gpus: NonNegativeInt = Field(description="GPUs per node")
    cpus: PositiveInt = Field(description="CPU cores per node")
    mem_mb: PositiveInt = Field(description="memory per node in MB; grows with the attempt")
    runtime: PositiveInt = Field(description="minutes; grows with the attempt")


class Nodes(Section):
    """Number of nodes per job, of the stages that can use several."""

    finetune_llm: PositiveInt = Field(
        description="nodes of one SLURM job; paper: 8 GPUs, which one node has"
    )
    train_rfm: PositiveInt = Field(description="nodes of one SLURM job")
