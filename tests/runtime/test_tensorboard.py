"""Event files as TensorBoard itself reads them."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowllm.runtime.tensorboard import event_log, events_path


def scalars(folder, name) -> dict[int, float]:
    events = EventAccumulator(str(folder)).Reload().Scalars(name)
    assert len({event.step for event in events}) == len(events)
    return {event.step: event.value for event in events}


def write_steps(folder, steps_done, steps, factor) -> None:
    with event_log(folder, steps_done, writes=True) as write:
        for step in steps:
            write({"step": step, "loss": factor * step, "val_loss": None if step % 2 else step})


def test_a_resumed_log_goes_on_after_the_checkpoint(tmp_path):
    folder = events_path(tmp_path / "adapter")
    write_steps(folder, 0, range(1, 9), 1)
    write_steps(folder, 6, range(7, 11), 10)
    expected = {step: step if step <= 6 else 10 * step for step in range(1, 11)}
    assert scalars(folder, "loss") == pytest.approx(expected)
    assert list(scalars(folder, "val_loss")) == [2, 4, 6, 8, 10]


def test_a_log_is_read_in_order_whatever_wrote_it(tmp_path):
    """A process of the same second whose name comes later, as a larger number's may."""
    write_steps(tmp_path, 0, range(1, 4), 1)
    [first] = tmp_path.iterdir()
    *begin, host, pid, uid = first.name.split(".")
    first.rename(first.with_name(".".join([*begin, "z" + host, pid, uid])))
    write_steps(tmp_path, 3, range(4, 8), 1)
    assert scalars(tmp_path, "loss") == {step: step for step in range(1, 8)}


def test_training_from_the_start_begins_an_empty_log(tmp_path):
    write_steps(tmp_path / "log", 0, range(1, 9), 1)
    write_steps(tmp_path / "log", 0, range(1, 3), 5)
    assert scalars(tmp_path / "log", "loss") == {1: 5, 2: 10}


def test_the_other_processes_write_nothing(tmp_path):
    with event_log(tmp_path / "log", 0, writes=False) as write:
        write({"step": 1, "loss": 1.0})
    assert not (tmp_path / "log").exists()
