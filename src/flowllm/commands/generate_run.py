"""The parts of a finished run that `flowllm generate` uses, and what the run lacks of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowllm.config.load import load_config
from flowllm.config.model import Config
from flowllm.config.recorded import RECORDED_CONFIG, load_recorded
from flowllm.config.sections.flow import Method
from flowllm.config.stage_settings import StageSettings
from flowllm.data.wishes import Own
from flowllm.errors import FlowllmError
from flowllm.io.archive_index import read_index
from flowllm.io.release import KNOWN, RELEASE, check_release
from flowllm.llm.model_record import read_record
from flowllm.runtime.log import log
from flowllm.stages import metrics, prerelax, refine, sample_base, second_energies, stability

PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""The small models that come with the package: the clone's data/pretrained, by a link."""


def folder_of_models(given: Path | None) -> Path:
    """Return the folder of a run, or that of the small models if none is given.

    Raises:
        FlowllmError: none is given, and the package was installed without the small models.
    """
    if given is not None:
        return given
    if not (PRETRAINED / RELEASE).is_file():
        raise FlowllmError(
            f"{PRETRAINED}: this installation has no small models. Name the folder of a finished "
            "run, or of a release (data/pretrained of a clone), with --run"
        )
    log.info("generate: uses the small models in %s", PRETRAINED)
    return PRETRAINED


@dataclass(frozen=True)
class FinishedRun:
    """A run with trained models.

    Attributes:
        folder: the run's folder.
        config: the configuration that it was last started with.
        method: the row of `methods` that is followed.
    """

    folder: Path
    config: Config
    method: Method

    @property
    def model(self) -> Path:
        """Folder of the merged language model."""
        return self.folder / "llm" / "model"

    @property
    def flow(self) -> Path | None:
        """Folder of the method's flow; None where the method has none."""
        return None if self.method.flow is None else self.folder / "rfm" / self.method.flow

    @property
    def hull(self) -> Path:
        """Table of the reference entries for the potential's energies."""
        return self.folder / "hull" / "potential.parquet"

    @property
    def second_hull(self) -> Path | None:
        """Table of the hull's energies by the second potential; None without one."""
        second = self.config.potential.check
        return None if second is None else self.folder / "second_energies" / "hull.parquet"

    @property
    def splits(self) -> dict[str, Path]:
        """Tables of the known crystals by split."""
        return {name: self.folder / "crystals" / f"{name}.parquet" for name in ("train", "val")}

    def chain_settings(self) -> "ChainSettings":
        """Return the settings of the stages after the drafts."""
        return ChainSettings(
            refine=refine.Settings.from_config("refine", self.config, self.method.name),
            prerelax=prerelax.Settings.from_config("prerelax", self.config),
            second=second_energies.Settings.from_config("second_energies", self.config),
            stability=stability.Settings.from_config("stability", self.config),
            metrics=metrics.Settings.from_config("metrics", self.config),
        )

    def draft_settings(self) -> sample_base.Settings:
        """Return the settings of the stage that samples the method's base."""
        return sample_base.Settings.from_config("sample_base", self.config, self.method.base)

    def own_conditions(self) -> Own:
        """Return the conditions of the user's own that the language model was trained on."""
        return read_record(self.model).own(self.config.prompts)

    def check(self, *, drafts: bool, chain: bool) -> None:
        """Refuse a run that lacks a model, the hull or the known crystals.

        Args:
            drafts: whether the language model is needed.
            chain: whether the flow, the hull and the known crystals are needed.

        Raises:
            FlowllmError: the message names what is missing and the command that makes it.
        """
        needed = [self.model] if drafts else []
        if chain:
            optional = [path for path in (self.flow, self.second_hull) if path is not None]
            needed += [*optional, self.hull, *self.splits.values()]
        missing = [path.relative_to(self.folder) for path in needed if not path.exists()]
        if archived := sorted({*map(str, missing)} & read_index(self.folder).keys()):
            raise FlowllmError(
                f"{self.folder}: {', '.join(archived)} is needed and was archived. Bring it back: "
                f"flowllm restore {self.folder} {' '.join(archived)}"
            )
        if missing:
            targets = " ".join(str(Path(self.config.run_dir) / path) for path in missing)
            raise FlowllmError(
                f"{self.folder}: has no {', no '.join(map(str, missing))}. Run the workflow for "
                f"it: snakemake --cores all --configfile {self.folder / RECORDED_CONFIG} {targets}"
            )
        known = self.config.metrics.known_crystals
        if chain and known is not None and not Path(known).exists():
            raise FlowllmError(
                f"{known}: not there, but metrics.known_crystals of {self.folder} names it; start "
                "flowllm where the run was started"
            )


@dataclass(frozen=True)
class ChainSettings:
    """The settings of the stages that carry drafts to judged crystals."""

    refine: refine.Settings
    prerelax: prerelax.Settings
    second: second_energies.Settings
    stability: stability.Settings
    metrics: metrics.Settings

    @property
    def stages(self) -> tuple[StageSettings, ...]:
        """All of them, in the order of the pipeline."""
        return self.refine, self.prerelax, self.second, self.stability, self.metrics


def open_run(
    folder: Path, config: Sequence[Path] | None, name: str | None, *, drafts: bool
) -> FinishedRun:
    """Open a run's folder.

    Args:
        folder: the run's folder.
        config: configuration files in place of the recorded configuration; None for the recorded
            one.
        name: name of the method; None for the first one that fits, if possible with a flow.
        drafts: whether the language model samples the method's base.

    Raises:
        FlowllmError: the folder does not exist or has no configuration, a file of a released folder
            is not the released one, or no method fits.
    """
    if not folder.is_dir():
        raise FlowllmError(f"{folder}: no such folder; name the folder of a run (run_dir)")
    if (folder / RELEASE).exists():
        check_release(folder)
    loaded = load_config(config) if config else load_recorded(folder)
    if loaded.metrics.known_crystals == KNOWN and (folder / KNOWN).exists():
        own = {"known_crystals": str(folder / KNOWN)}
        loaded = loaded.model_copy(update={"metrics": loaded.metrics.model_copy(update=own)})
    sampled = [base.name for base in loaded.bases]
    methods = {
        method.name: method for method in loaded.methods if not drafts or method.base in sampled
    }
    if not methods:
        raise FlowllmError(
            f"{folder}: no method of its configuration samples the language model (bases "
            f"{', '.join(sampled)}); give crystals with --from"
        )
    if name is not None and name not in methods:
        raise FlowllmError(f"--name {name}: not one of the run's methods {', '.join(methods)}")
    if name is not None:
        return FinishedRun(folder, loaded, methods[name])
    first = next(iter(methods.values()))
    with_flow = (method for method in methods.values() if method.flow is not None)
    return FinishedRun(folder, loaded, next(with_flow, first))
