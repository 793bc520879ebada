"""Changes of Snakemake's SLURM plugin (2.5 and 2.8) that concern the site."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from flowllm.slurm.pending import Watch


def guess_no_account(plugin: ModuleType) -> None:
    """Have `slurm-no-account` do what it says.

    The plugin declares it, but guesses an account from sacct and warns at every start.
    """
    executor_class: Any = plugin.Executor
    ask = executor_class.get_account_arg

    def account_of(executor: Any, job: Any) -> Iterator[str]:
        none = executor.workflow.executor_settings.no_account
        if none and not job.resources.get("slurm_account"):
            yield ""
        else:
            yield from ask(executor, job)

    executor_class.get_account_arg = account_of


def name_stuck_jobs(plugin: ModuleType, workflow: Any) -> None:
    """Warn of jobs that cannot start as they are, which would wait in silence.

    After SIGTERM Snakemake submits nothing, and waits for what it has submitted. Jobs that cannot
    start are then cancelled.

    Args:
        plugin: the module `snakemake_executor_plugin_slurm`.
        workflow: Snakemake's workflow.
    """
    changed: Any = plugin
    ask, watch = changed.query_job_status, Watch()

    async def states_and_reasons(command: str, logger: Any) -> Any:
        states, seconds = await ask(command, logger)
        stopping = getattr(workflow.scheduler, "_user_kill", None) == "graceful"
        for message in await watch.messages(states or {}, stopping=stopping):
            logger.warning(message)
        return states, seconds

    changed.query_job_status = states_and_reasons
