"""Jobs on SLURM that take as long as a test says, for tests of submission and restart alone.

`python -m flowllm sample_pairs` is answered by `main` below; every other stage is the real one.
"""

import json
import os
import stat
import sys
import time
from itertools import pairwise
from pathlib import Path

SECONDS_FILE = "seconds"
"""File in the working directory with the seconds that a job takes."""

GO_ON_FILE = "go on"
"""File in the working directory that ends all jobs."""


def main() -> None:
    """Open the log as a stage does, wait, and write the number of the SLURM job as output."""
    options = dict(pairwise(sys.argv[2:]))
    from flowllm.runtime.log import setup_logging
    from stub_run import write_record

    until = time.monotonic() + float(Path(SECONDS_FILE).read_text())
    setup_logging(Path(options["--log"]))
    while time.monotonic() < until and not Path(GO_ON_FILE).exists():
        time.sleep(0.1)
    Path(options["--out"]).write_text(os.environ.get("SLURM_JOB_ID", "no job"))
    write_record(Path(options["--out"]), "sample_pairs", json.loads(options["--settings"]))


def make_python(folder: Path) -> Path:
    """Return a folder for the search path whose `python` runs `main` for `sample_pairs`."""
    folder.mkdir()
    python = folder / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'if [ "$3" = sample_pairs ]; then shift 3; exec {sys.executable} {__file__} "" "$@"; fi\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return folder


if __name__ == "__main__":
    main()
