"""Train in two processes on the CPU, as on two GPUs; run by test_train_rfm.py.

Arguments: folder of prepared pairs, settings of the stage as JSON, file for the weights, the base
distribution as JSON.
"""

import json
import sys
from pathlib import Path

from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from safetensors.torch import save_file

from flow_pairs import open_pairs, statistics
from flowllm.config import StageSettings
from flowllm.rfm.start import start_from_record
from flowllm.rfm.train import train


def main() -> None:
    folder, given, out = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    settings = StageSettings("train_rfm", given)
    fabric = Fabric(accelerator="cpu", devices=2, plugins=[LightningEnvironment()])
    fabric.launch()
    pairs = open_pairs([folder / "train-00000.arrow"], start_from_record(json.loads(sys.argv[4])))
    scales = statistics(pairs)
    checkpoint, events = folder / "checkpoint.pt", folder / "events"
    trained = train(
        settings.train_rfm, settings.seed, pairs, pairs, scales, checkpoint, events, fabric
    )
    if fabric.is_global_zero:
        save_file(trained.weights, out)


if __name__ == "__main__":
    main()
