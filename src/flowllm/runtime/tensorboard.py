"""Training curves as TensorBoard events, to be watched while a model trains.

The files hold times and the machine's name, so they lie beside the output, like its record, and are
no part of it: `tensorboard --logdir runs/paper` finds them.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

WriteRow = Callable[[Mapping[str, float | None]], None]


def events_path(output: Path) -> Path:
    """Folder of an output's event files: beside it."""
    return output.with_name(f"_{output.name}.tensorboard")


@contextmanager
def event_log(folder: Path, steps_done: int, *, writes: bool) -> Iterator[WriteRow]:
    """Go on with a log of events after a step, or begin it anew.

    Args:
        folder: of the event files.
        steps_done: steps of the checkpoint that training goes on from. What a killed run had
            written of later ones is void; with none, so is the whole folder.
        writes: whether this process writes; one of several does.

    Yields:
        A function that writes a row of a curve: its step, and values by name; None is left out.
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
            writer.flush()  # all that precedes a checkpoint is on disk before it

        yield write


def _wait_for_later_name(folder: Path) -> None:
    """Wait out the second in which the last event file was made, as its name says.

    TensorBoard reads the files in the order of their names, and of two of one second may take the
    later one first; then it shows none of its steps.
    """
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    # Not longer: the clock of another node may have gone ahead.
    time.sleep(min(1.0, max(0.0, max(seconds, default=0) + 1 - time.time())))
