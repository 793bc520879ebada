"""The stages: the sections that each depends on, and the version of its results."""

from dataclasses import dataclass
from typing import Literal

ListName = Literal["flow", "base", "csp_base", "method", "external"]
"""The lists of which each job of a stage is given one row."""


@dataclass(frozen=True)
class Stage:
    """What the workflow needs to know about a stage.

    Attributes:
        sections: the parts of the configuration that its results depend on.
        ignores: keys of these sections, as `section.key`, that its results do not depend on. It is
            given null in their place, so that it does not run again when they change.
        limits: sections of which it is given only the keys of the class that they extend.
        row: the list of which each of its jobs is given one row.
        version: raised by hand when its results change, so that a corrected defect reruns the
            stage and an edited comment does not.
        repeatable: whether equal inputs and settings give an equal output on every machine. If its
            output is deleted, it is made again without what was made from it.
    """

    sections: tuple[str, ...]
    ignores: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    row: ListName | None = None
    version: int = 1
    repeatable: bool = False


_SECOND = ("potential.check",)
"""Key of the second potential, which moves no crystal."""

STAGES: dict[str, Stage] = {
    "download": Stage(("data",), repeatable=True),
    "prepare": Stage(("prepare",), version=4, repeatable=True),
    "fetch_model": Stage((), repeatable=True),
    "finetune_llm": Stage(("finetune_llm", "prompts"), version=6),
    "merge_adapter": Stage(("merge_adapter",), version=3, repeatable=True),
    "invariance": Stage(("invariance", "prompts", "finetune_llm"), version=2),
    "sample_pairs": Stage(("sample_pairs", "prompts"), version=6),
    "train_rfm": Stage(("train_rfm",), row="flow", version=5),
    "sample_base": Stage(("sample_base", "prompts"), row="base", version=5),
    "sample_compositions": Stage((), version=2),
    "sample_csp": Stage(("sample_base", "prompts"), row="csp_base", version=5),
    "refine": Stage(("refine",), row="method", version=4),
    "import_samples": Stage((), row="external", version=5),
    "select": Stage(("select",)),
    "prerelax": Stage(("prerelax", "potential"), _SECOND, version=4),
    "reference_hull": Stage(
        ("reference_hull", "potential", "prerelax"), _SECOND, limits=("prerelax",), version=4
    ),
    "second_energies": Stage(("potential",)),
    "stability": Stage(("stability",), version=7),
    "dft_inputs": Stage(("dft", "dft_inputs"), version=6),
    "dft_collect": Stage(("dft_collect",), version=5),
    "dft_hull": Stage(("dft_hull", "dft_collect"), version=2),
    "fingerprints": Stage(("fingerprints",), version=2),
    "metrics": Stage(("metrics",), version=11),
    "match_csp": Stage(("metrics",), version=3),
    "report": Stage(("report",), version=10),
}
"""In the order of the pipeline."""
