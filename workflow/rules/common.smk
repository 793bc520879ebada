# Shared by all stages: the checked configuration, names of shards, settings as JSON, resources.

import json
import os
import sys
from pathlib import Path

# The package is imported from the clone, installed or not; `snakemake` itself needs only pydantic.
SOURCE = str(Path(workflow.basedir).resolve() / "src")
sys.path.insert(0, SOURCE)

from flowllm.config.load import check_config
from flowllm.config.site import Site, job_prefix
from flowllm.config.stage_settings import stage_json
from flowllm.errors import FlowllmError
from flowllm.workflow.install import change_snakemake

# A cluster's job reads this file again. It receives the configuration that snakemake started with,
# so that a file that is edited meanwhile takes effect at the next start, for all jobs.
GIVEN = os.getenv("FLOWLLM_CONFIG")
if GIVEN and not workflow.is_main_process:
    config = json.loads(GIVEN)
os.environ.update(FLOWLLM_CONFIG=json.dumps(config))

# The stage replaces the shell: SIGTERM, which precedes the kill of a job, reaches the stage, and the
# job ends when the stage has saved its state. The site's own lines are for jobs on its nodes.
GIVEN_SITE = os.getenv("FLOWLLM_SITE")
ON_NODE = GIVEN_SITE and not workflow.is_main_process
SITE = Site.model_validate_json(GIVEN_SITE) if ON_NODE else Site()
PREFIX = job_prefix(SITE, Path(SOURCE))
# Snakemake formats the text.
shell.prefix(PREFIX.replace("{", "{{").replace("}", "}}"))


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
    for stage, given in workflow.resource_settings.overwrite_resources.items():
        if "gpu" in given and stage in CONFIG.resources:
            given["gpu"] = CONFIG.resources[stage].gpus

RUN = CONFIG.run_dir
# Each function of Snakemake that this changes is listed in docs/extending.md.
PLANNING = explained(change_snakemake, workflow, Path(RUN))
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
