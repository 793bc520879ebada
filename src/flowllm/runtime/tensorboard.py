"""Training curves as TensorBoard events, visible while a model trains.

The files contain times and the machine's name. They are therefore written beside the output, like
its record, and are no part of it. `tensorboard --logdir runs/paper` finds them.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

WriteRow = Callable[[Mapping[str, float | None]], None]


def events_path(output: Path) -> Path:
    """Return the folder of an output's event files, beside the output."""
    return output.with_name(f"_{output.name}.tensorboard")


@contextmanager
def event_log(folder: Path, steps_done: int, *, writes: bool) -> Iterator[WriteRow]:
    """Continue a log of events after a step, or start a new one.

    Args:
        folder: folder of the event files.
        steps_done: steps of the checkpoint that training resumes from. Events of later steps, which
            a killed run may have written, are purged; with 0, the folder is deleted.
        writes: whether this process writes; true for one of several.

    Yields:
        A function that writes a row of a curve: its step, and values by name (None is left out).
    """
    if not writes:
        yield lambda _row: None
        return
    if steps_done == 0 and folder.exists():
        shutil.rmtree(folder)
    _wait_for_later_name(folder)
    with SummaryWriter(str(folder), purge_step=steps_done + 1) as writer:

        def write(row: Mapping[str, float | None]) -> None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    writer.add_scalar(name, value, row["step"])
            writer.flush()  # before the checkpoint of this step

        yield write


def _wait_for_later_name(folder: Path) -> None:
    """Wait until the second of the last event file's name is over.

    TensorBoard reads the files in the order of their names. Of two files of one second it may read
    the later one first, and then does not show its steps.
    """
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    # At most one second, since the clock of another node may be ahead.
    time.sleep(min(1.0, max(0.0, max(seconds, default=0) + 1 - time.time())))
