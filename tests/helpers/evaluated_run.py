"""A run's tables up to the metrics, written from a short list of what became of each draw."""

from dataclasses import dataclass, field
from pathlib import Path

from flowllm.config.load import load_config
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.io.schemas import BASE, CRYSTALS, DFT_RESULTS, GENERATED, RELAXED, STABILITY
from flowllm.io.tables import crystal_columns, write_table
from flowllm.stages import fingerprints

REPOSITORY = Path(__file__).parents[2]
SETTING = "FlowLLM-test"
HULL_COMPOSITIONS = 1234
STABILITY_RULE = {
    "stable_below": 0.0,
    "inclusive": False,
    "metastable_below": 0.08,
    "min_elements": 2,
}


@dataclass
class Draw:
    """What became of one draw; None where it got no further."""

    generated: Crystal | None = None
    relaxed: Crystal | None = None
    e_above_hull: float | None = None
    energies: tuple[float, float] = (-3.0, -3.5)  # eV per atom, initial and final
    num_steps: int = 10
    converged: bool = True
    rejections: list[str] = field(default_factory=list)
    redraws: int = 0
    base_status: str = "ok"
    relaxed_status: str = "ok"
    choice: dict = field(default_factory=dict)  # columns of dft_inputs, for kind dft
    check_e_above_hull: float | None = None  # by a second potential, for the whole run
    hull_compounds: int | None = None

    @property
    def num_elements(self):
        return len(set(self.relaxed.atomic_numbers.tolist()))

    @property
    def stable(self):
        return self.e_above_hull is not None and self.e_above_hull < 0 and self.num_elements >= 2

    @property
    def metastable(self):
        return self.e_above_hull is not None and self.e_above_hull < 0.08 and self.num_elements >= 2


@dataclass
class EvaluatedRun:
    """Paths that the metrics stage takes."""

    folder: Path
    base: list[Path]
    generated: list[Path]
    relaxed: list[Path]
    stability: Path
    fingerprints: Path
    test_fingerprints: Path
    crystals: Path
    kind: str

    @property
    def out(self):
        return self.folder / "metrics" / self.kind / f"{SETTING}.json"

    def paths(self):
        return {
            "base": self.base,
            "generated": self.generated,
            "relaxed": self.relaxed,
            "stability": self.stability,
            "fingerprints": self.fingerprints,
            "test_fingerprints": self.test_fingerprints,
            "crystals": self.crystals,
        }


def stage_settings(stage, **changes):
    """Settings from config.yaml of a stage with a section of its name, some changed."""
    config = load_config([REPOSITORY / "config.yaml"])
    given = StageSettings.from_config(stage, config)
    values = {stage: given.values[stage] | changes}
    return StageSettings(stage, {"seed": 1, "version": 1, **values})


def write_run(folder, draws, splits, kind="potential", shards=2):
    """Write base, generated, relaxed, stability and crystal tables.

    Args:
        folder: where.
        draws: one `Draw` a draw.
        splits: crystals by id by split, e.g. `{"train": {...}}`; missing splits hold rock salt.
        kind: `potential`, or `dft` for a file of DFT results.
        shards: number of shards.
    """
    names = [f"{SETTING}-{index:06d}" for index in range(len(draws))]
    rows = [_rows(name, draw, kind) for name, draw in zip(names, draws, strict=True)]
    schemas = {"base": BASE, "generated": GENERATED, "relaxed": RELAXED}
    metadata = {
        "settings": {
            "base": {"name": "tau0.7", "temperature": 0.7, "top_p": 0.9},
            "setting": {"name": SETTING, "base": "tau0.7", "flow": "llm", "num_steps": 50},
            "stability": STABILITY_RULE,
        }
    }
    paths = {}
    for stage, schema in schemas.items():
        paths[stage] = []
        for shard in range(shards):
            path = folder / stage / SETTING / f"shard-{shard:05d}.parquet"
            part = [row[stage] for row in rows[shard::shards]]
            if stage == "relaxed" and kind == "dft":
                continue
            write_table(path, part, schema, metadata)
            paths[stage].append(path)
    if kind == "dft":
        paths["relaxed"] = [folder / "dft" / f"{SETTING}.parquet"]
        found = [row["relaxed"] for row in rows if row["relaxed"] is not None]
        write_table(paths["relaxed"][0], found, DFT_RESULTS, metadata)
    stability = folder / "stability" / kind / f"{SETTING}.parquet"
    of_hull = metadata | {"hull_compositions": HULL_COMPOSITIONS, "hull_not_converged": 0}
    write_table(stability, [row["stability"] for row in rows], STABILITY, of_hull)
    write_splits(folder / "crystals", splits)
    paths |= {"stability": stability, "crystals": folder / "crystals"}
    for name, tables_of in {
        "fingerprints": paths["generated"],
        "test_fingerprints": [folder / "crystals" / "test.parquet"],
    }.items():
        paths[name] = folder / "fingerprints" / f"{name}.parquet"
        settings = stage_settings("fingerprints")
        fingerprints.run(settings, crystals=tables_of, out=paths[name], workers=1)
    return EvaluatedRun(folder, **paths, kind=kind)


def write_splits(folder, splits):
    """Write the three tables of crystals, a lone copper crystal where a split is not given."""
    copper = Crystal.from_arrays([29], [[0, 0, 0]], [2.55] * 3, [60] * 3)
    for split in ("train", "val", "test"):
        crystals = splits.get(split, {f"{split}-copper": copper})
        rows = [
            {"id": name, **crystal_columns(crystal), "formula": crystal.formula}
            for name, crystal in crystals.items()
        ]
        write_table(folder / f"{split}.parquet", rows, CRYSTALS, {})


def _rows(name, draw, kind):
    ok = draw.generated is not None
    status = "ok" if ok else "rejected"
    error = None if ok else "no crystal"
    formula = draw.generated.formula if ok else None
    crystal = {"id": name, "formula": formula, "status": status, "error": error}
    relaxed_status = draw.relaxed_status if ok else "rejected"
    initial, final = draw.energies
    done = draw.relaxed is not None
    placed = draw.e_above_hull is not None
    energies = {
        "potential": {
            "potential": "CHGNet 0.3.0",
            "initial_energy_per_atom": initial if done else None,
            "final_energy_per_atom": final if done else None,
            "converged": done and draw.converged,
        },
        "dft": {
            "raw_energy_per_atom": final if done else None,
            "corrected_energy_per_atom": final - 0.1 if done else None,
            "correction_scheme": "MP2020" if done else None,
            "converged_ionic": done and draw.converged,
            **draw.choice,
        },
    }[kind]
    return {
        "base": {
            **crystal,
            **crystal_columns(draw.generated),
            "status": draw.base_status if ok else "exhausted",
            "attempts": 1 + len(draw.rejections),
            "rejections": draw.rejections,
            "redraws": draw.redraws,
        },
        "generated": {**crystal, **crystal_columns(draw.generated), "num_steps": 50},
        "relaxed": {
            **crystal,
            **crystal_columns(draw.relaxed),
            **energies,
            "num_steps": draw.num_steps if done else None,
            "status": "ok" if done else relaxed_status,
        },
        "stability": {
            "id": name,
            "formula": formula,
            "num_elements": draw.num_elements if done else None,
            "energy_per_atom": final if done else None,
            "energy_source": ("CHGNet 0.3.0" if kind == "potential" else "DFT MP2020")
            if done
            else None,
            "hull_source": "train by CHGNet" if done else None,
            "e_above_hull": draw.e_above_hull,
            "check_e_above_hull": draw.check_e_above_hull,
            "check_energy_source": None if draw.check_e_above_hull is None else "CHGNet 0.2.0",
            "hull_compounds": draw.hull_compounds,
            "stable": draw.stable if placed else None,
            "metastable": draw.metastable if placed else None,
            "status": "ok" if placed else "no_reference",
            "error": None if placed else "no energy",
        },
    }
