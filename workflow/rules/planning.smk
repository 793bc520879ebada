# What Snakemake plans if outputs of a finished run are absent: archived, or deleted and made again.

from snakemake.dag import DAG
from snakemake.io import Mtime

from flowllm.io.archive_index import read_index
from flowllm.runtime.archive import PARTS
from flowllm.runtime.identity import content_time

# An input that is made again with the same content reruns nothing, if Snakemake compares contents:
# by default only up to 1 MB.
COMPARED_SIZE = 100_000_000

try:
    ARCHIVED = {
        f"{RUN}/{name}": one
        for name, one in read_index(Path(RUN)).items()
        if not Path(RUN, name).exists()
    }
except FlowllmError as error:
    raise WorkflowError(str(error)) from None

MODEL = f"{RUN}/llm/model"
MODEL_TIME = content_time(Path(MODEL), Path(RUN, "llm", "adapter"))


def not_archived(paths):
    """Return the paths without those that are archived, which a target need not wait for."""
    return [path for path in paths if path not in ARCHIVED]


def fill_inventory(inventory):
    """Give Snakemake's inventory of files, which it drops before the first job, what it lacks.

    An archived output counts as present, with its time. The merged model has the time of its
    content, not of its files: it may have been made again.
    """
    for name, one in ARCHIVED.items():
        inventory.exists_local[name] = True
        inventory.mtime[name] = Mtime(local=one.mtime)
    if MODEL_TIME is not None and (MODEL in ARCHIVED or Path(MODEL).exists()):
        inventory.mtime[MODEL] = Mtime(local=MODEL_TIME)


def check_archived(dag):
    """Refuse a plan with a job that reads an archived output."""
    read = {
        path
        for job in dag.needrun_jobs()
        if not job.is_norun
        for path in job.input
        if path in ARCHIVED
    }
    if read:
        outputs = [str(Path(path).relative_to(RUN)) for path in read]
        parts = [
            part
            for part in PARTS
            if any(f"{one}/".startswith(f"{part}/") for one in outputs)
        ]
        size = sum(ARCHIVED[path].size for path in read) / 1e9
        raise WorkflowError(
            f"Planned jobs read archived outputs ({len(read)}, {size:.1f} GB). Bring them back: "
            f"flowllm restore {RUN} {' '.join(parts)}"
        )


def without_repetition(dag):
    """Return the planned jobs, less those planned only because a deleted output is made again.

    A job of a repeatable stage whose output is absent makes the same output again. Snakemake would
    run all that was made from it, too.
    """
    planned = set(dag.needrun_jobs())
    changed = set()
    needed = set()
    queue = [
        (job, True)
        for job in planned
        if dag.reason(job).forced or not dag.reason(job).derived
    ]
    while queue:
        job, is_changed = queue.pop()
        is_changed |= (
            job.rule.name not in STAGES or not STAGES[job.rule.name].repeatable
        )
        if job in changed or (job in needed and not is_changed):
            continue
        needed.add(job)
        for source, files in dag.dependencies[job].items():
            if source in planned and dag.reason(source).missing_output & files:
                queue.append((source, False))
        if is_changed:
            changed.add(job)
            queue += [(user, True) for user in dag.depending[job] if user in planned]
    return needed


async def plan_without_repetition(dag, *given, plan=DAG.update_needrun, **named):
    """Plan as Snakemake does, then remove what would only be repeated."""
    for compared in (dag, dag.workflow.persistence):
        compared.max_checksum_file_size = max(
            compared.max_checksum_file_size, COMPARED_SIZE
        )
    fill_inventory(dag.workflow.iocache)
    await plan(dag, *given, **named)
    needed = without_repetition(dag)
    for job in dag._needrun - needed:
        if not dag.finished(job):
            dag._needrun.remove(job)
            dag._n_until_ready.pop(job, None)
            dag.reason(job).clear()
    for job in dag._needrun:
        dag._n_until_ready[job] = sum(
            source in dag._needrun for source in dag.dependencies[job]
        )
    dag._len = len(dag._finished | dag._needrun)
    if dag.workflow.dryrun:
        check_archived(dag)


if workflow.is_main_process:
    DAG.update_needrun = plan_without_repetition
