# Shared by all stages: the checked configuration, names of shards, settings as JSON, resources.

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

# The package is imported from the clone, installed or not; `snakemake` itself needs only pydantic.
SOURCE = str(Path(workflow.basedir).resolve() / "src")
sys.path.insert(0, SOURCE)

from flowllm.config.load import check_config
from flowllm.config.sections.flow import TRAIN_COMPOSITIONS
from flowllm.config.stage_settings import stage_json
from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError
from flowllm.data.sample_files import sample_files
from flowllm.io.start_files import start_files

# A cluster's job reads this file again. It receives the configuration that snakemake started with,
# so that a file that is edited meanwhile takes effect at the next start, for all jobs.
GIVEN = os.getenv("FLOWLLM_CONFIG")
if GIVEN and not workflow.is_main_process:
    config = json.loads(GIVEN)
os.environ.update(FLOWLLM_CONFIG=json.dumps(config))

# sacct reports `CANCELLED by 1000` for a cancelled job. Snakemake's plugin (2.5.0) recognizes only
# `CANCELLED` as an end and would wait for such a job forever.
SLURM_PLUGIN = sys.modules.get("snakemake_executor_plugin_slurm")
if SLURM_PLUGIN is not None:

    async def job_states(*asked, ask=SLURM_PLUGIN.query_job_status):
        states, seconds = await ask(*asked)
        if states is not None:
            states = {job: state.split(" by ")[0] for job, state in states.items()}
        return states, seconds

    SLURM_PLUGIN.query_job_status = job_states

# The stage replaces the shell: SIGTERM, which precedes the kill of a job, reaches the stage, and the
# job ends when the stage has saved its state.
shell.prefix("exec ")

try:
    CONFIG = check_config(config, "configuration")
except FlowllmError as error:
    raise WorkflowError(str(error)) from None

RUN = CONFIG.run_dir
SIZES = CONFIG.sizes
FLOWS = [flow.name for flow in CONFIG.flows]
BASES = [base.name for base in CONFIG.bases]
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
    if subprocess.run([*command, *words]).returncode:
        raise WorkflowError(
            "flowllm check found the problems above; no job was started"
        )


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
    if row in EXTERNAL:
        return shard_names(EXTERNAL[row].shards, 1)
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


def gpus(stage):
    return CONFIG.resources[stage].gpus


def gpus_on_nodes(stage):
    """Return the resources of a job on several nodes, or the GPUs of a job on one node."""
    gpus, nodes = CONFIG.resources[stage].gpus, getattr(CONFIG.nodes, stage)
    if nodes == 1:
        return {"gpu": gpus}
    # With `mpi` the SLURM plugin lets the command start its tasks (runtime/distributed.py).
    each = {"gres": f"gpu:{gpus}"} if gpus else {}
    return {"nodes": nodes, "tasks": nodes, "mpi": "srun", **each}


def mem_mb(stage):
    """Return the memory, which grows with the attempt: a job killed for memory gets more."""
    return lambda wildcards, attempt: CONFIG.resources[stage].mem_mb * attempt


def runtime(stage):
    """Return the minutes, which grow with the attempt: a job killed at the time limit gets more."""
    return lambda wildcards, attempt: CONFIG.resources[stage].runtime * attempt


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
    try:
        return without_braces(sample_files(path))
    except FlowllmError as error:
        raise WorkflowError(str(error)) from None


def pair_draws(wildcards):
    total = SIZES.num_pairs if wildcards.split == "train" else SIZES.num_val_pairs
    return draws(total, SIZES.pairs_per_shard, wildcards.shard)


def sample_draws(wildcards):
    return draws(SIZES.num_samples, SIZES.samples_per_shard, wildcards.shard)


def csp_draws(wildcards):
    return draws(SIZES.num_csp_crystals, SIZES.csp_crystals_per_shard, wildcards.shard)


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
