"""Train in two processes on the CPU, as on two GPUs; run by test_train_rfm.py.

Arguments: folder of prepared pairs, settings of the stage as JSON, file for the weights.
"""

import json
import sys
from pathlib import Path

from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from safetensors.torch import save_file

from flowllm.config import StageSettings
from flowllm.rfm.loader import PreparedPairs
from flowllm.rfm.loss import standardization_of
from flowllm.rfm.train import train


def main() -> None:
    folder, given, out = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    settings = StageSettings("train_rfm", given)
    fabric = Fabric(accelerator="cpu", devices=2, plugins=[LightningEnvironment()])
    fabric.launch()
    pairs = PreparedPairs([folder / "train-00000.arrow"])
    scales = standardization_of(pairs)
    checkpoint, events = folder / "checkpoint.pt", folder / "events"
    trained = train(
        settings.train_rfm, settings.seed, pairs, pairs, scales, checkpoint, events, fabric
    )
    if fabric.is_global_zero:
        save_file(trained.weights, out)


if __name__ == "__main__":
    main()
