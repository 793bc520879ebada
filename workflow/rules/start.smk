# What happens before the first job, where snakemake itself runs.

import subprocess
from importlib.util import find_spec

from flowllm.config.recorded import RECORDED_CONFIG, recorded_text
from flowllm.config.stages import STAGES
from flowllm.io.files import write_text
from flowllm.slurm.preflight import needed_folders, preflight, refuse_failed
from flowllm.slurm.requests import SubmitSettings, requests_of_jobs

# Whether Snakemake makes an environment or a container for each rule.
OWN_ENVIRONMENTS = bool(workflow.deployment_settings.deployment_method)


def check_before_jobs():
    """Run `flowllm check` for the planned jobs, where snakemake itself runs.

    This is not a rule: Snakemake does not plan jobs that depend on an unfinished rule, even as
    `ancient`, and does not repeat a rule that failed once.
    """
    if not workflow.is_main_process or workflow.touch:
        return
    if hasattr(workflow.executor_settings, "partition_config"):
        check_slurm(workflow.executor_settings)
    stages = sorted({job.rule.name for job in workflow.dag.needrun_jobs()})
    words = [f"--stage={name}" for name in stages if name in STAGES]
    if not words:
        return
    site = site_of_run()
    if OWN_ENVIRONMENTS or (site and site.launcher.strip()):
        words.append("--no-packages")  # the stages run in other environments
        if find_spec("transformers") is None or find_spec("cyclopts") is None:
            logger.warning(
                "flowllm check is skipped, since snakemake's environment lacks its packages"
            )
            return
    command = [sys.executable, "-m", "flowllm", "check", "--whole", json.dumps(config)]
    offline = {} if workflow.local_exec else {"HF_HUB_OFFLINE": "1"}
    if subprocess.run([*command, *words], env=offline | os.environ).returncode:
        raise WorkflowError(
            "flowllm check found the problems above; no job was started"
        )


def record_configuration():
    """Write the configuration into the run's folder, for `flowllm status`."""
    if workflow.is_main_process and not workflow.touch:
        write_text(Path(RUN) / RECORDED_CONFIG, recorded_text(CONFIG))


def check_slurm(settings):
    """Compare all attempts of the planned jobs with the site, before anything is submitted."""
    dag = workflow.dag
    jobs = [dag.get_job_group(job) or job for job in dag.needrun_jobs()]
    planned = requests_of_jobs(job for job in jobs if not job.is_local)
    if not planned:
        return
    options = {"qos": settings.qos, "reservation": settings.reservation}
    given = SubmitSettings(
        settings.partition_config,
        workflow.resource_settings.nodes,
        settings.status_command,
        tuple(f"--{name}={value}" for name, value in options.items() if value),
    )
    folders = needed_folders(Path(RUN), Path(workflow.basedir))
    findings = explained(lambda: list(preflight(planned, given, folders)))
    say = {"ok": logger.info, "warning": logger.warning, "failed": logger.error}
    for one in findings:
        say[one.state](one.line())
    explained(refuse_failed, findings)
