# What jobs request: cores, GPUs, memory and minutes of the configuration, and the site's particulars.

from flowllm.config.site import SLURM_RESOURCES, read_site, slurm_resources
from flowllm.slurm.attempts import memory_and_minutes

if workflow.local_exec and "gpu_jobs" not in workflow.global_resources:
    workflow.register_resource("gpu_jobs", 1)

SITES = {}  # by the path of the file


def cpus(stage):
    return CONFIG.resources[stage].cpus


def site_of_run():
    """Return the site that the SLURM executor's file describes, None without SLURM.

    Snakemake reads the profile after this file, so that only functions of resources can call this.
    """
    given = getattr(workflow.executor_settings, "partition_config", None)
    if not workflow.is_main_process or given is None:
        return None
    if given not in SITES:
        SITES[given] = explained(read_site, Path(given))
        # Jobs receive the site that snakemake started with.
        os.environ.update(FLOWLLM_SITE=SITES[given].model_dump_json())
    return SITES[given]


def requested(stage):
    """Return the resources of a rule beside memory and run time, which depend on the site."""
    asked, nodes = CONFIG.resources[stage], getattr(CONFIG.nodes, stage, 1)

    def from_site(name):
        def value(wildcards):
            site = site_of_run()
            if site is None:
                # Also in a SLURM job: {resources.gpu} in its command is the configuration's number,
                # however the GPUs were requested.
                return asked.gpus if name == "gpu" else None
            return slurm_resources(site, stage, asked, nodes).get(name)

        return value

    # With `mpi` the SLURM plugin lets the command start its tasks (runtime/distributed.py).
    several = {"nodes": nodes, "tasks": nodes, "mpi": "srun"} if nodes > 1 else {}
    # Without a scheduler every job sees all GPUs, so that one runs at a time.
    alone = {"gpu_jobs": 1} if workflow.local_exec and asked.gpus else {}
    return {name: from_site(name) for name in SLURM_RESOURCES} | several | alone


def of_attempt(stage, attempt):
    """Return memory and minutes of an attempt, which grow: a killed job gets more.

    Args:
        stage: the stage.
        attempt: 1 for the first.
    """
    asked, site = CONFIG.resources[stage], site_of_run()
    if site is None:
        return asked.mem_mb * attempt, asked.runtime * attempt
    return memory_and_minutes(site, stage, asked, attempt)


def mem_mb(stage):
    return lambda wildcards, attempt: of_attempt(stage, attempt)[0]


def runtime(stage):
    return lambda wildcards, attempt: of_attempt(stage, attempt)[1]
