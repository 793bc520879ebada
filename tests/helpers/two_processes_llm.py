"""Fine-tune in two processes on the CPU, as on two GPUs; run by tests/stages/test_finetune_llm.py.

Arguments: settings of the stage as JSON, training crystals, validation crystals, adapter's folder.
"""

import json
import sys
from pathlib import Path

from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment

from flowllm.config.stage_settings import StageSettings
from flowllm.runtime.log import setup_logging
from flowllm.stages import finetune_llm


def two_processes(_precision: str) -> Fabric:
    return Fabric(accelerator="cpu", devices=2, plugins=[LightningEnvironment()])


def main() -> None:
    settings = StageSettings("finetune_llm", json.loads(sys.argv[1]))
    train, val, out = map(Path, sys.argv[2:])
    setup_logging(None)
    finetune_llm.make_fabric = two_processes
    finetune_llm.run(settings, train=train, val=val, out=out)


if __name__ == "__main__":
    main()
