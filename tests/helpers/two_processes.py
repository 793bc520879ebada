"""Train in two processes, on the CPU or on two GPUs; started by tests of the flow.

Only the second process is asked to stop, after step 5. Then both resume from the checkpoint.

Arguments: folder of prepared pairs, settings of the stage as JSON, file for the weights (the curve
is written beside it), the base distribution as JSON, and the kind of device (by default the CPU).
"""

import json
import sys
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from safetensors.torch import save_file

from flow_pairs import open_pairs, statistics
from flowllm.config.stage_settings import StageSettings
from flowllm.rfm import train as loop
from flowllm.rfm.base_distribution import base_distribution_from_record
from flowllm.runtime.signals import Stopped, noting_sigterm


@contextmanager
def asked_after_step_5():
    steps = count(1)
    yield lambda: next(steps) == 5


def main() -> None:
    folder, given, out = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    settings = StageSettings("train_rfm", given)
    accelerator = sys.argv[5] if len(sys.argv) > 5 else "cpu"
    fabric = Fabric(accelerator=accelerator, devices=2, plugins=[LightningEnvironment()])
    fabric.launch()
    pairs = open_pairs(
        [folder / "train-00000.arrow"], base_distribution_from_record(json.loads(sys.argv[4]))
    )
    scales = statistics(pairs)
    checkpoint, events = folder / "checkpoint.pt", folder / "events"
    given = settings.train_rfm, settings.seed, pairs, pairs, scales, checkpoint, events, fabric
    if fabric.global_rank == 1:
        loop.noting_sigterm = asked_after_step_5
    with suppress(Stopped):
        loop.train(*given)
        raise AssertionError("no process stopped")
    loop.noting_sigterm = noting_sigterm
    trained = loop.train(*given)
    if fabric.is_global_zero:
        save_file(trained.weights, out)
        out.with_suffix(".json").write_text(json.dumps(trained.curve))


if __name__ == "__main__":
    main()
