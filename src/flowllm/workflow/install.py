"""All changes of Snakemake and of its SLURM plugin, made by one call of the workflow."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

from flowllm.errors import FlowllmError
from flowllm.slurm.plugin import change_plugin, refuse_start
from flowllm.slurm.submissions import EarlierJobs
from flowllm.workflow import kept_outputs, planning, retries
from flowllm.workflow.changes import SLURM_PLUGIN, SNAKEMAKE, check_version


def change_snakemake(workflow: Any, run_dir: Path) -> planning.Planning:
    """Change Snakemake for a workflow, and return what is archived of its run.

    A second call in one process changes nothing more. With another version of the SLURM plugin
    only runs on SLURM are refused.

    Args:
        workflow: Snakemake's workflow.
        run_dir: the run's folder, as in the paths of the rules.

    Raises:
        FlowllmError: another version of Snakemake is installed, or the list of archived outputs
            cannot be read.
    """
    check_version(SNAKEMAKE)
    _change(workflow.is_main_process)
    if plugin := sys.modules.get("snakemake_executor_plugin_slurm"):
        try:
            check_version(SLURM_PLUGIN)
        except FlowllmError as error:
            refuse_start(plugin, str(error))
        else:
            earlier = EarlierJobs(
                has_same_task=kept_outputs.has_same_task,
                has_finished=kept_outputs.has_finished,
                follow=kept_outputs.follow,
                leave=kept_outputs.leave,
            )
            change_plugin(plugin, earlier)
    return planning.plan_for(run_dir)


@cache
def _change(is_main: bool) -> None:
    """Change Snakemake's classes.

    Args:
        is_main: whether this process plans jobs and decides on retries; otherwise it runs one job
            for another Snakemake.
    """
    kept_outputs.install()
    if is_main:
        retries.install()
        planning.install()
