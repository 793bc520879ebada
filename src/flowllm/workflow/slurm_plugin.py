"""Changes of Snakemake's SLURM plugin, one function each, for one series of its versions.

Series 2.8 needs most of them too, but cannot be installed beside vLLM on Python 3.11, since it
requires a NumPy that vLLM's mistral_common refuses.
"""

import logging
import shlex
import subprocess
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from flowllm.errors import FlowllmError
from flowllm.workflow.failures import FAILURES, Failures
from flowllm.workflow.slurm_jobs import failure_of, job_name
from flowllm.workflow.submissions import Submissions

PACKAGE = "snakemake-executor-plugin-slurm"
VERSION = "2.5"

_JOBS_PER_QUESTION = 1000


@cache
def change_plugin(plugin: ModuleType) -> None:
    """Change the loaded plugin for all jobs of this process; a second call changes nothing more.

    With another version of the plugin a run on SLURM stops at its start.

    Args:
        plugin: the module `snakemake_executor_plugin_slurm`.
    """
    executor_class: Any = plugin.Executor
    if not version(PACKAGE).startswith(f"{VERSION}."):
        _refuse_version(executor_class)
        return
    _name_jobs(plugin)
    _read_states(plugin)
    _submit_patiently(executor_class, FAILURES)
    _ask_by_number(plugin)
    _say_causes(executor_class, FAILURES)
    _stop_submitting(executor_class)


def _refuse_version(executor_class: Any) -> None:
    """Stop runs on SLURM, where this plugin would wait forever for a cancelled job."""

    def post_init(_executor: Any, *_words: Any, **_options: Any) -> None:
        raise _workflow_error()(
            f"{PACKAGE} {version(PACKAGE)} is installed, but FlowLLM needs {VERSION}.x: "
            f"pip install -c envs/constraints.txt {PACKAGE}"
        )

    executor_class.__post_init__ = post_init


def _workflow_error() -> type[Exception]:
    error: type[Exception] = import_module("snakemake_interface_common.exceptions").WorkflowError
    return error


def _name_jobs(plugin: Any) -> None:
    """Name each job after its rule and wildcards; the plugin names all after the run's id."""
    command = plugin.get_submit_command

    def named_command(job: Any, params: dict[str, Any], *words: Any, **options: Any) -> str:
        text: str = command(job, {**params, "run_uuid": job_name(job)}, *words, **options)
        return text

    plugin.get_submit_command = named_command


def _read_states(plugin: Any) -> None:
    """Read `CANCELLED by 1000` of sacct as `CANCELLED`, which alone the plugin knows as an end.

    It would wait for such a job forever.
    """
    ask = plugin.query_job_status

    async def job_states(*words: Any) -> tuple[dict[str, str] | None, float | None]:
        states, seconds = await ask(*words)
        if states is not None:
            states = {job: state.split(" by ")[0] for job, state in states.items()}
        return states, seconds

    plugin.query_job_status = job_states


def _submit_patiently(executor_class: Any, failures: Failures) -> None:
    """Let refused jobs wait, and follow jobs of an earlier start (`Submissions`)."""
    initialize, submit = executor_class.__post_init__, executor_class.run_job
    report = executor_class.report_job_submission
    workflow_error = _workflow_error()
    job_info = import_module("snakemake_interface_executor_plugins.executors.base").SubmittedJobInfo

    def post_init(executor: Any, *words: Any, **options: Any) -> None:
        initialize(executor, *words, **options)
        try:
            executor.submissions = Submissions(executor, submit_or_report, failures)
        except FlowllmError as error:
            raise workflow_error(str(error)) from error

    def submit_or_report(executor: Any, job: Any) -> None:
        try:
            submit(executor, job)
        except workflow_error as error:  # by the plugin's own checks, of the account for example
            executor.report_job_error(job_info(job), msg=str(error))

    def run_job(executor: Any, job: Any) -> None:
        executor.submissions.submit(job)

    def follow_living(executor: Any, job: Any, number: str) -> None:
        wildcards = "_".join(getattr(job, "wildcards", None) or ()).replace("/", "_")
        kind = "group" if job.is_group() else "rule"
        log = executor.slurm_logdir / f"{kind}_{job.name}" / wildcards / f"{number}.log"
        info = job_info(job, external_jobid=number, aux={"slurm_logfile": log})
        executor.report_job_submission(info)

    def report_job_submission(executor: Any, info: Any, *words: Any, **options: Any) -> None:
        executor.submissions.follow(info.external_jobid)
        report(executor, info, *words, **options)

    executor_class.__post_init__, executor_class.run_job = post_init, run_job
    executor_class.follow_living = follow_living
    executor_class.report_job_submission = report_job_submission


def _ask_by_number(plugin: Any) -> None:
    """Ask SLURM for jobs by their numbers; the plugin asks by the name that all jobs have in it."""
    initialize = plugin.Executor.__post_init__
    report = import_module(f"{plugin.__name__}.efficiency_report")
    current: list[Any] = []

    def post_init(executor: Any, *words: Any, **options: Any) -> None:
        initialize(executor, *words, **options)
        current[:] = [executor]

    def jobs() -> str:
        return "--jobs=" + ",".join(sorted(current[0].submissions.numbers))

    def by_sacct(_run_id: str) -> str:
        # Numbers of jobs are those of one cluster.
        elsewhere = ",".join(sorted(current[0]._submitted_job_clusters))
        clusters = f" --clusters={elsewhere}" if elsewhere else ""
        shown = "--parsable2 --noheader --format=JobIdRaw,State"
        return f"sacct --allocations{clusters} {shown} {jobs()}"

    def by_squeue(_run_id: str) -> str:
        return f"squeue --format={shlex.quote('%i|%T')} --states=all --noheader {jobs()}"

    def efficiency(_run_id: str, logger: logging.Logger) -> list[str] | None:
        return _accounted(current[0].submissions.all_numbers, logger)

    plugin.Executor.__post_init__ = post_init
    plugin.query_job_status_sacct, plugin.query_job_status_squeue = by_sacct, by_squeue
    vars(report)["get_sacct_data"] = efficiency


def _accounted(numbers: list[str], logger: logging.Logger) -> list[str] | None:
    """Return what the plugin's efficiency report reads of sacct; None if there is nothing."""
    columns = "JobID,JobName,Comment,Elapsed,TotalCPU,NNodes,NCPUS,MaxRSS,ReqMem"
    lines: list[str] = []
    for start in range(0, len(numbers), _JOBS_PER_QUESTION):
        jobs = ",".join(numbers[start : start + _JOBS_PER_QUESTION])
        command = ["sacct", f"--jobs={jobs}", "--parsable2", "--noheader", f"--format={columns}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            logger.error(f"No efficiency report, since sacct failed: {done.stderr.strip()}")
            return None
        lines += done.stdout.splitlines()
    return lines or None


def _say_causes(executor_class: Any, failures: Failures) -> None:
    """Say why a job failed, in place of `Reason: Unknown` or of the whole call of sbatch."""
    report_error, report_success = (
        executor_class.report_job_error,
        executor_class.report_job_success,
    )

    def report_job_error(executor: Any, info: Any, msg: str = "", **options: Any) -> None:
        if info.external_jobid is None:
            failure = executor.submissions.refused(info.job, msg or "")
            if failure is None:
                executor.logger.debug(msg)
                return
        else:
            executor.submissions.numbers.discard(info.external_jobid)
            log = (info.aux or {}).get("slurm_logfile")
            failure = failure_of(info.job, info.external_jobid, msg or "", log and Path(log))
            failures.known[info.job] = failure
        report_error(executor, info, msg=f"{failure.message.rstrip('.')}. ", **options)

    def report_job_success(executor: Any, info: Any) -> None:
        executor.submissions.numbers.discard(info.external_jobid)
        report_success(executor, info)

    executor_class.report_job_error = report_job_error
    executor_class.report_job_success = report_job_success


def _stop_submitting(executor_class: Any) -> None:
    """Submit no waiting job once Snakemake has cancelled the others or shuts down."""
    cancel, shutdown = executor_class.cancel_jobs, executor_class.shutdown

    def cancel_jobs(executor: Any, *words: Any) -> None:
        executor.submissions.stop()
        cancel(executor, *words)

    def shut_down(executor: Any) -> None:
        executor.submissions.stop()
        shutdown(executor)

    executor_class.cancel_jobs, executor_class.shutdown = cancel_jobs, shut_down
