"""Changes of Snakemake's SLURM plugin, one function each."""

import asyncio
import logging
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from flowllm.errors import FlowllmError
from flowllm.runtime.failures import FAILURES, Failures
from flowllm.slurm.commands import ask
from flowllm.slurm.jobs import REQUEUED, failure_of, job_name, not_queued_again
from flowllm.slurm.partitions import fitting_partitions
from flowllm.slurm.pending import Watch
from flowllm.slurm.submissions import EarlierJobs, Submissions

_JOBS_PER_QUESTION = 1000

_QUESTIONS = 3
_SECONDS_BETWEEN_QUESTIONS = 10.0

_ENDED: dict[str, str] = {}
"""States of the preempted jobs, and of those of failed nodes, that SLURM does not queue again."""

_CURRENT: list[Any] = []
"""The executor of this process, for functions of the plugin that are not its methods."""


@cache
def change_plugin(plugin: ModuleType, earlier: EarlierJobs) -> None:
    """Change the loaded plugin for all jobs of this process; a second call changes nothing more.

    Args:
        plugin: the module `snakemake_executor_plugin_slurm`.
        earlier: what to do about living jobs of an earlier start.
    """
    executor_class: Any = plugin.Executor
    _name_jobs(plugin)
    _prefer_partitions_without_gpus(plugin)
    _read_states(plugin)
    _name_stuck_jobs(plugin)
    _guess_no_account(executor_class)
    _submit_patiently(executor_class, FAILURES, earlier)
    _ask_by_number(plugin)
    _say_causes(executor_class, FAILURES)
    _stop_submitting(executor_class)


def refuse_start(plugin: ModuleType, reason: str) -> None:
    """Stop runs on SLURM, where an unchanged plugin would wait forever for a cancelled job.

    Args:
        plugin: the module `snakemake_executor_plugin_slurm`.
        reason: what to say.
    """

    def post_init(_executor: Any, *_words: Any, **_options: Any) -> None:
        raise _workflow_error()(reason)

    changed: Any = plugin
    changed.Executor.__post_init__ = post_init


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


def _prefer_partitions_without_gpus(plugin: Any) -> None:
    """Keep jobs without GPUs from the nodes that have some; the plugin sends them anywhere."""
    choose = plugin.get_best_partition

    def best_partition(partitions: list[Any], job: Any, logger: logging.Logger) -> str | None:
        found: str | None = choose(fitting_partitions(partitions, job), job, logger)
        return found

    plugin.get_best_partition = best_partition


def _read_states(plugin: Any) -> None:
    """Correct states of jobs with which the plugin would wait forever.

    `CANCELLED by 1000` of sacct is `CANCELLED`, which alone the plugin knows as an end. A job that
    was preempted or whose node failed, and that SLURM does not queue again, has ended, too. Without
    an answer of SLURM the plugin would forget all of its jobs; without a state of a job it asks
    again, minutes later, when SLURM may have forgotten an ended job. So the question is repeated.
    """
    query = plugin.query_job_status

    async def job_states(*words: Any) -> tuple[dict[str, str], float]:
        for question in range(_QUESTIONS):
            if question:
                await asyncio.sleep(_SECONDS_BETWEEN_QUESTIONS)
            states, seconds = await query(*words)
            if states is not None:
                break
        else:
            return {}, 0.0
        states = {job: state.split(" by ")[0] for job, state in states.items()}
        # The plugin itself ends a job of a failed node, unless SLURM may queue it again.
        requeued = [state for state in REQUEUED if state != "NODE_FAIL" or _requeues()]
        failed = {job: state for job, state in states.items() if state in requeued}
        gone = not_queued_again(failed, _clusters())
        _ENDED.update(gone)
        return states | dict.fromkeys(gone, "CANCELLED"), seconds

    plugin.query_job_status = job_states


def _name_stuck_jobs(plugin: Any) -> None:
    """Warn of jobs that cannot start as they are, which would wait in silence.

    After SIGTERM Snakemake submits nothing, and waits for what it has submitted. Jobs that cannot
    start are then cancelled.
    """
    query, watch = plugin.query_job_status, Watch()

    async def states_and_reasons(command: str, logger: logging.Logger) -> Any:
        states, seconds = await query(command, logger)
        scheduler = _CURRENT[0].workflow.scheduler
        stopping = getattr(scheduler, "_user_kill", None) == "graceful"
        for message in await watch.messages(states or {}, stopping=stopping):
            logger.warning(message)
        return states, seconds

    plugin.query_job_status = states_and_reasons


def _guess_no_account(executor_class: Any) -> None:
    """Have `slurm-no-account` do what it says.

    The plugin declares it, but guesses an account from sacct and warns at every start.
    """
    guess = executor_class.get_account_arg

    def account_of(executor: Any, job: Any) -> Iterator[str]:
        none = executor.workflow.executor_settings.no_account
        if none and not job.resources.get("slurm_account"):
            yield ""
        else:
            yield from guess(executor, job)

    executor_class.get_account_arg = account_of


def _submit_patiently(executor_class: Any, failures: Failures, earlier: EarlierJobs) -> None:
    """Let refused jobs wait, and follow jobs of an earlier start (`Submissions`)."""
    initialize, submit = executor_class.__post_init__, executor_class.run_job
    report = executor_class.report_job_submission
    workflow_error = _workflow_error()
    job_info = import_module("snakemake_interface_executor_plugins.executors.base").SubmittedJobInfo

    def post_init(executor: Any, *words: Any, **options: Any) -> None:
        initialize(executor, *words, **options)
        _CURRENT[:] = [executor]
        try:
            executor.submissions = Submissions(executor, submit_or_report, failures, earlier)
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
    report = import_module(f"{plugin.__name__}.efficiency_report")

    def jobs() -> str:
        return "--jobs=" + ",".join(sorted(_CURRENT[0].submissions.numbers))

    def by_sacct(_run_id: str) -> str:
        shown = "--parsable2 --noheader --format=JobIdRaw,State"
        return " ".join(["sacct --allocations", *_clusters(), shown, jobs()])

    def by_squeue(_run_id: str) -> str:
        return f"squeue --format={shlex.quote('%i|%T')} --states=all --noheader {jobs()}"

    def efficiency(_run_id: str, logger: logging.Logger) -> list[str] | None:
        return _accounted(_CURRENT[0].submissions.all_numbers, logger)

    plugin.query_job_status_sacct, plugin.query_job_status_squeue = by_sacct, by_squeue
    vars(report)["get_sacct_data"] = efficiency


def _requeues() -> bool:
    """Return whether jobs are submitted with `--requeue` (`slurm-requeue`)."""
    return any(executor.workflow.executor_settings.requeue for executor in _CURRENT)


def _clusters() -> list[str]:
    """Return SLURM's option with the clusters of the jobs; a number is that of one cluster."""
    found = set().union(*(executor._submitted_job_clusters for executor in _CURRENT))
    return [f"--clusters={','.join(sorted(found))}"] if found else []


def _accounted(numbers: list[str], logger: logging.Logger) -> list[str] | None:
    """Return what the plugin's efficiency report reads of sacct; None if there is nothing."""
    columns = "JobID,JobName,Comment,Elapsed,TotalCPU,NNodes,NCPUS,MaxRSS,ReqMem"
    lines: list[str] = []
    for start in range(0, len(numbers), _JOBS_PER_QUESTION):
        jobs = ",".join(numbers[start : start + _JOBS_PER_QUESTION])
        command = ["sacct", f"--jobs={jobs}", "--parsable2", "--noheader", f"--format={columns}"]
        answer = ask(command)
        if not answer.ok:
            logger.error(f"No efficiency report, since sacct failed: {answer.error}")
            return None
        lines += answer.lines
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
            said = msg or ""
            if info.external_jobid in _ENDED:
                said = said.replace("'CANCELLED'", f"'{_ENDED[info.external_jobid]}'")
            failure = failure_of(info.job, info.external_jobid, said, log and Path(log))
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
