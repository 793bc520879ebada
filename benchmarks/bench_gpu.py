"""Rates of everything that runs on a GPU, in at most eight minutes.

    python benchmarks/bench_gpu.py --json gpu.json
    python benchmarks/bench_gpu.py --smoke            # tiny sizes, also on a CPU

Each section is a process of its own, which is killed when its time is over: the cases that it has
not reached are missing, and a section that fails, or leaves the GPU in a bad state, costs no other
one. A section whose packages are not installed is skipped with the reason. A case that does not fit
into the memory of the GPU is listed as such. Models have random weights, so nothing is downloaded.
FLOPs are those of matrix products, counted by torch, and the peak is the measured rate of a large
matrix product in the same precision.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from gpu_sections import SECTIONS, Given

SHARES = {
    "flow training": 0.19,
    "flow sampling": 0.07,
    "loader": 0.04,
    "relaxation": 0.14,
    "fine-tuning": 0.25,
    "transformers": 0.11,
    "vLLM": 0.20,
}
"""Share of the time that each section may take."""

LEAD = "loader, times the fastest flow training"
"""Key of the number that says whether the loader is ahead of the GPU."""

GRACE = 15.0
"""Seconds of each section beside its share: the start of its process, before it is killed."""


def measure(name: str, given: Given, seconds: float, json_path: Path) -> None:
    """Measure a section, and write its cases as JSON after each, and why it ended early if it did.

    Args:
        name: the section.
        given: what the sections are given.
        seconds: time after which it ends.
        json_path: file to write.
    """

    def over(*_: object) -> None:
        raise TimeoutError(f"over after {seconds:.3g} s")

    found: dict[str, Any] = {}
    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        for case, numbers in SECTIONS[name](given):
            found[case] = numbers
            json_path.write_text(json.dumps(found))
            shown = ", ".join(f"{number:.4g} {what}" for what, number in numbers.items())
            print(f"{name} | {case} | {shown}", flush=True)
    # A section that fails (a package, the memory) must not cost the others.
    except Exception as error:
        found["ended"] = f"{type(error).__name__}: {str(error)[:200]}"
        print(f"{name} | ended | {found['ended']}", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    json_path.write_text(json.dumps(found))


def measure_in_process(name: str, seconds: float, smoke: bool) -> dict[str, Any]:
    """Measure a section in a process of its own, and kill it and its children after its time."""
    with tempfile.TemporaryDirectory() as folder:
        json_path = Path(folder) / "found.json"
        words = [sys.executable, __file__, "--child", "--section", name, "--json", str(json_path)]
        words += ["--seconds", str(seconds), *(["--smoke"] if smoke else [])]
        child = subprocess.Popen(words, start_new_session=True)
        reason = None
        try:
            if code := child.wait(seconds + GRACE):
                reason = f"exit code {code}"
        except subprocess.TimeoutExpired:
            reason = f"killed after {seconds + GRACE:.3g} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        found = json.loads(json_path.read_text()) if json_path.exists() else {}
        if reason:
            found.setdefault("ended", reason)
            print(f"{name} | ended | {reason}", flush=True)
        return found


def loader_lead(sections: dict[str, dict[str, Any]]) -> float | None:
    """Return how many times as fast as the fastest training the loader is, None if unknown."""
    rates: dict[str, list[float]] = {"crystals/s": [], "pairs/s": []}
    for name, what in (("flow training", "crystals/s"), ("loader", "pairs/s")):
        cases = sections.get(name, {}).items()
        rates[what] = [case[what] for key, case in cases if key != "ended" and what in case]
    trained, loaded = rates.values()
    return min(loaded) / max(trained) if trained and loaded else None


def main() -> None:
    """Print a table, and write the numbers as JSON if --json is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", action="append", choices=SECTIONS, help="by default all")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, once each")
    parser.add_argument("--seconds", type=float, default=480.0, help="of the whole benchmark")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.smoke:
        parser.error("no CUDA GPU is visible; --smoke measures tiny sizes on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.child:
        torch.manual_seed(0)
        given = Given(device, options.smoke)
        measure(options.section[0], given, options.seconds, options.json)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no section outlives this
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}\nsection | case | rate", flush=True)
    record: dict[str, Any] = {"device": name, "torch": torch.__version__, "smoke": options.smoke}
    record["sections"] = {}
    shared = options.seconds - GRACE * len(SECTIONS)
    for one in options.section or SECTIONS:
        seconds = max(1.0, shared * SHARES[one])
        record["sections"][one] = measure_in_process(one, seconds, options.smoke)
        record[LEAD] = loader_lead(record["sections"])
        if options.json:
            options.json.write_text(json.dumps(record, indent=2) + "\n")
    if record[LEAD]:
        print(f"{LEAD} | all | {record[LEAD]:.3g}")


if __name__ == "__main__":
    main()
