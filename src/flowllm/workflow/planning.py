"""What Snakemake plans where outputs of a finished run were archived, or deleted.

`install` changes Snakemake as follows:

- An archived output counts as present. A plan with a job that reads one is refused.
- The merged model has the time of its content, not of its files: it may have been made again.
- A job of a repeatable stage whose output is absent makes the same output again. Snakemake would
  also run all that was made from it.
"""

from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any

from snakemake.dag import DAG
from snakemake.exceptions import WorkflowError
from snakemake.io import Mtime

from flowllm.config.stages import STAGES
from flowllm.io.archive_index import read_index
from flowllm.runtime.archive import PARTS
from flowllm.runtime.identity import content_time
from flowllm.workflow.changes import change_method

COMPARED_SIZE = 100_000_000
"""Size in bytes up to which Snakemake compares the contents of inputs, in place of 1 MB.

An input that is made again with the same content then reruns nothing.
"""


class Planning:
    """Outputs of a run that are planned otherwise than by their files.

    Attributes:
        run_dir: the run's folder.
        archived: archived outputs that are absent, by their paths in the rules.
        times: times of outputs whose files may be newer than their content.
    """

    def __init__(self, run_dir: Path) -> None:
        """Read the list of archived outputs.

        Raises:
            FlowllmError: the list cannot be read.
        """
        self.run_dir = run_dir
        self.archived = {
            f"{run_dir}/{name}": one
            for name, one in read_index(run_dir).items()
            if not (run_dir / name).exists()
        }
        self.times = {name: one.mtime for name, one in self.archived.items()}
        model = run_dir / "llm" / "model"
        time = content_time(model, run_dir / "llm" / "adapter")
        if time is not None and (str(model) in self.archived or model.exists()):
            self.times[str(model)] = time

    def without_archived(self, paths: Iterable[str]) -> list[str]:
        """Return the paths without those that are archived, which a target need not wait for."""
        return [path for path in paths if path not in self.archived]

    def fill_inventory(self, inventory: Any) -> None:
        """Fill what Snakemake's inventory of files lacks; it is dropped before the first job."""
        exists: MutableMapping[str, bool] = inventory.exists_local
        exists.update(dict.fromkeys(self.archived, True))
        for path, time in self.times.items():
            inventory.mtime[path] = Mtime(local=time)

    def check(self, dag: DAG) -> None:
        """Refuse a plan with a job that reads an archived output.

        Raises:
            WorkflowError: there is such a job.
        """
        jobs = [job for job in dag.needrun_jobs() if not job.is_norun]
        read = {path for job in jobs for path in job.input if path in self.archived}
        if not read:
            return
        outputs = [str(Path(path).relative_to(self.run_dir)) for path in read]
        parts = [part for part in PARTS if any(f"{one}/".startswith(f"{part}/") for one in outputs)]
        size = sum(self.archived[path].size for path in read) / 1e9
        raise WorkflowError(
            f"Planned jobs read archived outputs ({len(read)}, {size:.1f} GB). Bring them back: "
            f"flowllm restore {self.run_dir} {' '.join(parts)}"
        )


_CURRENT: list[Planning] = []
"""The planning of this process's workflow."""


def plan_for(run_dir: Path) -> Planning:
    """Return the planning of a run, which Snakemake uses from now on.

    Raises:
        FlowllmError: the list of archived outputs cannot be read.
    """
    _CURRENT[:] = [Planning(run_dir)]
    return _CURRENT[0]


def install() -> None:
    """Change Snakemake as described above."""
    change_method(DAG, "update_needrun", _update_needrun)


async def _update_needrun(original: Any, self: DAG, *words: Any, **options: Any) -> None:
    """Plan as Snakemake does, then remove what would only be repeated."""
    planning = _CURRENT[0]
    for compared in (self, self.workflow.persistence):
        compared.max_checksum_file_size = max(compared.max_checksum_file_size, COMPARED_SIZE)
    planning.fill_inventory(self.workflow.iocache)
    await original(self, *words, **options)
    needed = _without_repetition(self)
    for job in self._needrun - needed:
        if not self.finished(job):
            self._needrun.remove(job)
            self._n_until_ready.pop(job, None)
            self.reason(job).clear()
    for job in self._needrun:
        self._n_until_ready[job] = sum(source in self._needrun for source in self.dependencies[job])
    self._len = len(self._finished | self._needrun)
    if self.workflow.dryrun:
        planning.check(self)


def _without_repetition(dag: DAG) -> set[Any]:
    """Return the planned jobs, less those planned only because a deleted output is made again."""
    planned = set(dag.needrun_jobs())
    changed: set[Any] = set()
    needed: set[Any] = set()
    queue = [
        (job, True) for job in planned if dag.reason(job).forced or not dag.reason(job).derived
    ]
    while queue:
        job, is_changed = queue.pop()
        is_changed |= job.rule.name not in STAGES or not STAGES[job.rule.name].repeatable
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
