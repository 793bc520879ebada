"""An overlay of the tiny configuration with which every stage has a job."""

from pathlib import Path

import yaml

EVERY_STAGE = {
    "flows": [
        {"name": "llm", "start": "llm"}
        | dict.fromkeys(("coords_noise", "lengths_noise", "angles_noise"), 0.0),
        {"name": "types", "start": "simple"},
    ],
    "csp_bases": [{"name": "csp", "temperature": 1.0, "top_p": 0.9, "attempts": 2}],
    "csp_methods": [{"name": "csp-llm", "base": "csp", "flow": "llm", "num_steps": 5}],
    "methods": [
        {"name": "refined", "base": "tau0.7-p0.9", "flow": "llm", "num_steps": 5},
        {"name": "moved", "base": "other", "flow": "llm", "num_steps": 5},
        {"name": "no-llm", "base": "train_compositions", "flow": "types", "num_steps": 5},
    ],
    "refine": {"trajectory_every": 2},
    "select": {"skip": ["known", "repeated"]},
    "potential": {"check": "chgnet-0.2.0"},
    "dft_hull": {"source": "mp_api"},
}


def every_stage(folder: Path) -> Path:
    """Write the overlay, with samples of another model, into a folder."""
    (folder / "other.csv").touch()
    other = {"name": "other", "file": str(folder / "other.csv"), "shards": 2}
    external = [other | {"cell": "primitive"}]
    overlay = folder / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({**EVERY_STAGE, "external_samples": external}))
    return overlay
