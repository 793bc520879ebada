# Shared by all stages: the checked configuration, names of shards, settings as JSON, resources.

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

# The package is imported from the clone, installed or not; `snakemake` itself needs only pydantic.
SOURCE = str(Path(workflow.basedir).resolve() / "src")
sys.path[:0] = [SOURCE, str(Path(workflow.basedir) / "workflow")]

import kept_outputs

from flowllm.config.load import check_config
from flowllm.config.recorded import RECORDED_CONFIG, recorded_text
from flowllm.config.sections.flow import TRAIN_COMPOSITIONS
from flowllm.config.site import (
    SLURM_RESOURCES,
    Site,
    job_prefix,
    read_site,
    slurm_resources,
)
from flowllm.config.stage_settings import stage_json
from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError
from flowllm.io.files import write_text
from flowllm.data.sample_files import sample_files
from flowllm.io.start_files import start_files
from flowllm.slurm.attempts import memory_and_minutes
from flowllm.slurm.plugin import guess_no_account, name_stuck_jobs
from flowllm.slurm.preflight import needed_folders, preflight, refuse_failed
from flowllm.slurm.requests import SubmitSettings, requests_of_jobs
from flowllm.workflow.failures import change_snakemake
from flowllm.workflow.slurm_plugin import change_plugin

# A cluster's job reads this file again. It receives the configuration that snakemake started with,
# so that a file that is edited meanwhile takes effect at the next start, for all jobs.
GIVEN = os.getenv("FLOWLLM_CONFIG")
if GIVEN and not workflow.is_main_process:
    config = json.loads(GIVEN)
os.environ.update(FLOWLLM_CONFIG=json.dumps(config))

# Changes of Snakemake and of its SLURM plugin; each function there says what it is for.
change_snakemake(not workflow.is_main_process)
if "snakemake_executor_plugin_slurm" in sys.modules:
    change_plugin(sys.modules["snakemake_executor_plugin_slurm"])

kept_outputs.install()

if SITE_PLUGIN := sys.modules.get("snakemake_executor_plugin_slurm"):
    guess_no_account(SITE_PLUGIN)
    name_stuck_jobs(SITE_PLUGIN, workflow)

# The stage replaces the shell: SIGTERM, which precedes the kill of a job, reaches the stage, and the
# job ends when the stage has saved its state. The site's own lines are for jobs on its nodes.
GIVEN_SITE = os.getenv("FLOWLLM_SITE")
if GIVEN_SITE and not workflow.is_main_process:
    PREFIX = job_prefix(Site.model_validate_json(GIVEN_SITE))
    # Snakemake formats the text.
    shell.prefix(PREFIX.replace("{", "{{").replace("}", "}}"))
else:
    shell.prefix("exec ")


def explained(function, *given):
    """Call a function of the package; its errors end snakemake with their message."""
    try:
        return function(*given)
    except FlowllmError as error:
        raise WorkflowError(str(error)) from None


CONFIG = explained(check_config, config, "configuration")

# In a job {resources.gpu} is the configuration's number, also where the job requested its GPUs in
# another way (--set-resources sample_pairs:gpu=0 sample_pairs:gres=gpu:4).
if not workflow.is_main_process:
    for rule, given in workflow.resource_settings.overwrite_resources.items():
        if "gpu" in given and rule in CONFIG.resources:
            given["gpu"] = CONFIG.resources[rule].gpus

RUN = CONFIG.run_dir
SIZES = CONFIG.sizes
FLOWS = [flow.name for flow in CONFIG.flows]
BASES = [base.name for base in CONFIG.bases]
CONDITIONS_OF = {base.name: base.conditions for base in CONFIG.bases}
METHODS = [method.name for method in CONFIG.methods]
EXTERNAL = {row.name: row for row in CONFIG.external_samples}
ROWS = [*METHODS, *EXTERNAL]
CSP_BASES = {base.name: base for base in CONFIG.csp_bases}
CSP_METHODS = [method.name for method in CONFIG.csp_methods]
REFINED = [*CONFIG.methods, *CONFIG.csp_methods]
BASE_OF = {method.name: method.base for method in REFINED}
FLOW_OF = {method.name: method.flow for method in REFINED}
NO_NAME = "(?!)"  # a wildcard of an empty list

# Jobs import the package from the clone, too; a cluster's job reads this file again and sets the path.
SEARCH_PATH = [SOURCE, *filter(None, [os.getenv("PYTHONPATH")])]
os.environ.update(PYTHONPATH=os.pathsep.join(SEARCH_PATH))

# The local rules have downloaded what a cluster's jobs need; HF_HUB_OFFLINE=0 permits downloads.
if workflow.remote_exec:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


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
    if OWN_ENVIRONMENTS:
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


def shard_names(total, per_shard):
    """Return the zero-padded names of the shards for `total` draws."""
    return [f"{shard:05d}" for shard in range(-(-total // per_shard))]


PAIR_SHARDS = {
    "train": shard_names(SIZES.num_pairs, SIZES.pairs_per_shard),
    "val": shard_names(SIZES.num_val_pairs, SIZES.pairs_per_shard),
}
# refine's second output, if the configuration requires it.
TRAJECTORIES = {}
if CONFIG.refine.trajectory_every:
    TRAJECTORIES["trajectories"] = (
        f"{RUN}/trajectories/{{method}}/shard-{{shard}}.parquet"
    )
SAMPLE_SHARDS = shard_names(SIZES.num_samples, SIZES.samples_per_shard)
CSP_SHARDS = shard_names(SIZES.num_csp_crystals, SIZES.csp_crystals_per_shard)


def shards_of(row):
    """Return the names of the shards of a row of the results."""
    given = EXTERNAL.get(BASE_OF.get(row, row))
    if given is not None:
        return shard_names(given.shards, 1)
    return CSP_SHARDS if row in CSP_METHODS else SAMPLE_SHARDS


def draws(total, per_shard, shard):
    """Return the first draw and the number of draws of a shard as command line options."""
    start = int(shard) * per_shard
    return f"--first-draw {start} --count {min(per_shard, total - start)}"


def settings_of(stage, row=None):
    """Return the stage's part of the configuration as JSON, by a function, since JSON has braces."""

    def values(wildcards):
        return stage_json(CONFIG, stage, wildcards[row] if row else None)

    return values


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
        os.environ["FLOWLLM_SITE"] = SITES[given].model_dump_json()
    return SITES[given]


SITES = {}


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
    return {name: from_site(name) for name in SLURM_RESOURCES} | several


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


def sample_shards(folder):
    """Return the shards of one row in a folder; in `base`, those of the method's base."""

    def paths(wildcards):
        row = wildcards.method
        branch = BASE_OF.get(row, row) if folder == "base" else row
        return expand(
            f"{RUN}/{folder}/{branch}/shard-{{shard}}.parquet", shard=shards_of(row)
        )

    return paths


def energies(wildcards):
    """Return the files of relaxed crystals and energies: the potential's shards, or DFT's table."""
    if wildcards.kind == "dft":
        return [f"{RUN}/dft/{wildcards.method}.parquet"]
    return sample_shards("relaxed")(wildcards)


def without_braces(paths):
    """Return the sorted names of files without braces, which Snakemake reads as wildcards."""
    names = sorted(map(str, paths))
    for name in names:
        if "{" in name or "}" in name:
            raise WorkflowError(f"{name}: the name contains braces; rename the file")
    return names


def source_files(wildcards):
    """Return the files of a local source, so that a changed data file reruns the download."""
    folder = Path(CONFIG.data.source)
    found = (path for path in folder.glob("*") if path.suffix in (".csv", ".cif"))
    return without_braces(found)


def files_of_start(folder, *parts):
    """Return the files of an earlier model, so that training continues from a changed one again."""
    return without_braces(start_files(folder, *parts))


def flow_start(wildcards):
    """Return the files of the earlier flow that a flow continues from; none without a start."""
    return files_of_start(CONFIG.train_rfm.start, wildcards.flow)


def external_files(wildcards):
    """Return the files of a row's samples, so that a changed file is read again."""
    path = Path(EXTERNAL[wildcards.external].file)
    return without_braces(explained(sample_files, path))


def pair_draws(wildcards):
    total = SIZES.num_pairs if wildcards.split == "train" else SIZES.num_val_pairs
    return draws(total, SIZES.pairs_per_shard, wildcards.shard)


def sample_draws(wildcards):
    return draws(SIZES.num_samples, SIZES.samples_per_shard, wildcards.shard)


def csp_draws(wildcards):
    return draws(SIZES.num_csp_crystals, SIZES.csp_crystals_per_shard, wildcards.shard)


def wishes_file(wildcards):
    """Return the file of a base's wishes, if it has one, so that a changed one is read again."""
    conditions = CONDITIONS_OF[wildcards.base]
    return [conditions.file] if conditions and conditions.file else []


def base_shard(wildcards):
    return f"{RUN}/base/{BASE_OF[wildcards.method]}/shard-{wildcards.shard}.parquet"


def flow_model(wildcards):
    """Return the flow of a method; none where the LLM's crystals are not refined."""
    flow = FLOW_OF[wildcards.method]
    return [f"{RUN}/rfm/{flow}"] if flow else []


def finished_runs(wildcards):
    """Return the output files of DFT runs, so that a new run is collected."""
    folder = Path(RUN) / "dft_inputs" / wildcards.method
    names = ("vasprun.xml*", "gpaw_result.json")
    return without_braces(path for name in names for path in folder.rglob(name))


def dft_entries(wildcards):
    """Return the file of reference entries, if the source is a file; a source is required."""
    source = CONFIG.dft_hull.source
    if source is None:
        raise WorkflowError(
            "dft_hull.source is null, but this target needs DFT energies: name matbench_discovery, "
            "mp_api, or a JSON file of DFT reference entries (docs/energies.md), for example "
            "--config dft_hull='{source: matbench_discovery}', or run the target all"
        )
    if CONFIG.dft.code == "espresso":
        raise WorkflowError(
            "dft.code is espresso, of which only inputs are written; this target reads the runs of "
            "vasp or gpaw: set dft.code, or run the target all"
        )
    return [source] if source not in (None, "mp_api", "matbench_discovery") else []


def fingerprinted(wildcards):
    """Return the files of the test split's crystals, or of a method's generated crystals."""
    if wildcards.sample == "test":
        return [f"{RUN}/crystals/test.parquet"]
    paths = f"{RUN}/generated/{wildcards.sample}/shard-{{shard}}.parquet"
    return expand(paths, shard=shards_of(wildcards.sample))


REPORT_KINDS = {"report": ["potential"], "report_dft": ["potential", "dft"]}


def report_metrics(wildcards):
    """Return the metrics with the potential's energies and, for report_dft, with DFT's."""
    kinds = REPORT_KINDS[wildcards.report]
    return [f"{RUN}/metrics/{kind}/{name}.json" for kind in kinds for name in ROWS]


# The folders of shards that the report reads, with the names of their shards.
TRAINED_FLOWS = sorted({flow for flow in FLOW_OF.values() if flow})
REPORT_SHARDS = {f"relaxed/{row}": shards_of(row) for row in ROWS}
for row in [*ROWS, *CSP_METHODS]:
    REPORT_SHARDS[f"base/{BASE_OF.get(row, row)}"] = shards_of(row)
if TRAINED_FLOWS:
    REPORT_SHARDS |= {f"pairs/{split}": names for split, names in PAIR_SHARDS.items()}


def report_inputs(name):
    """Return all files and folders that a report reads besides the JSON files of its metrics.

    A report without one of them would lack rows without a message.
    """
    kinds = REPORT_KINDS[name]
    paths = [f"{RUN}/metrics/{kind}/{row}.parquet" for kind in kinds for row in ROWS]
    paths += [f"{RUN}/dft/{row}.parquet" for row in ROWS if "dft" in kinds]
    paths += [
        f"{RUN}/{folder}/shard-{shard}.parquet"
        for folder, shards in REPORT_SHARDS.items()
        for shard in shards
    ]
    paths.append(f"{RUN}/crystals/rejected.parquet")
    paths += [f"{RUN}/rfm/{flow}" for flow in TRAINED_FLOWS]
    if CONFIG.asks_llm or TRAINED_FLOWS:
        paths.append(f"{RUN}/llm/adapter")
    if CONFIG.asks_llm:
        paths.append(f"{RUN}/llm/invariance.parquet")
    return paths


def output_folder(wildcards, output):
    return os.path.dirname(output[0])


def crystals_folder(wildcards, input):
    return os.path.dirname(input.crystals[0])


# Linux limits one argument, here the shell command, to 128 kB.
MAX_COMMAND = 100_000


def options(**roles):
    """Return one command line option per file of an input, e.g. `options(pairs="pairs")`."""

    def words(wildcards, input):
        given = [
            f"--{name}={path}" for name, role in roles.items() for path in input[role]
        ]
        if sum(map(len, given)) > MAX_COMMAND:
            raise WorkflowError(
                f"{len(given)} shards do not fit into the command line of the job that reads "
                "them all; make them larger (sizes: pairs_per_shard, samples_per_shard)"
            )
        return given

    return words
