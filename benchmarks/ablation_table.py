"""The tables of the ablation from the results of its cells, with 95 % intervals.

python benchmarks/ablation_table.py [--write docs/language_model.md]

Prints the tables, or replaces those of a page, which are between two markers. Shares have Wilson's
intervals, medians and divergences those of their bootstrap samples.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablation_cell import MODELS, TEXTS

from flowllm.evaluate.statistics import wilson_interval
from flowllm.io.files import write_text

RESULTS = Path(__file__).parent / "results" / "ablation"

BEGIN = "<!-- Begin of the tables that benchmarks/ablation_table.py writes. -->"
END = "<!-- End of the tables that benchmarks/ablation_table.py writes. -->"

MISSING = "not run"

NONE = "This comparison has not been run yet.\n"

Cell = Mapping[str, Any]

SHARES = {
    "parsed": "is crystal text",
    "accepted": "accepted at the first draft",
    "apart": "atoms at least 0.5 Å apart, of crystal texts",
    "parsed_formula": "with a formula: is crystal text",
    "exact_formula": "with a formula: has exactly its atoms",
    "accepted_formula": "with a formula: accepted at the first draft",
    "smact_valid": "SMACT-valid, of accepted",
    "unique": "unique, of accepted",
    "novel": "novel, of accepted",
    "relaxed": "relaxed by CHGNet, of the accepted among the first 100",
    "converged": "relaxation converged within 200 steps, of relaxed",
    "match": "match their relaxed state, of relaxed",
}
"""Labels of the rows of shares, in order."""

STATISTICS = {
    "space_group_divergence": "space groups: Jensen-Shannon divergence from the test split, bits",
    "energy_released": "energy released, median, eV/atom",
    "e_above_hull": "energy above the hull of training crystals, median, eV/atom",
}
"""Labels of the rows of other numbers, in order."""

TRAINING = {
    "tokens_per_cpu_second": ("training tokens per CPU second", ",.0f"),
    "tokens": ("training tokens", ",d"),
    "steps": ("training steps", ",d"),
}
"""Labels and formats of the rows of the training, in order."""


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="page with the two markers")
    given = parser.parse_args()
    found = tables(read_cells(given.results))
    if given.write is None:
        print(found)
    else:
        write_text(given.write, with_tables(given.write.read_text(encoding="utf-8"), found))


def read_cells(folder: Path) -> dict[tuple[str, str], Cell]:
    """Return the cells that were run, by model and text."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return {(cell["model"], cell["text"]): cell for cell in cells}


def with_tables(page: str, found: str) -> str:
    """Return a page with other tables between its markers."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{found}\n{END}{after}"


def tables(cells: Mapping[tuple[str, str], Cell]) -> str:
    """Return one table per text, with a column per model; a sentence if no cell was run."""
    if not cells:
        return NONE
    return "\n".join("\n".join(lines_of(text, cells)) + "\n" for text in TEXTS)


def lines_of(text: str, cells: Mapping[tuple[str, str], Cell]) -> Iterator[str]:
    """Yield the lines of the table of one text."""
    columns = [cells.get((model, text)) for model in MODELS]
    yield f"| text: {text} | {' | '.join(MODELS)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, label in SHARES.items():
        yield line(label, [cell and shown_share(*cell["shares"][name]) for cell in columns])
    for name, label in STATISTICS.items():
        yield line(label, [cell and shown_value(cell["statistics"][name]) for cell in columns])
    for name, (label, form) in TRAINING.items():
        yield line(label, [cell and format(cell["training"][name], form) for cell in columns])


def line(label: str, values: list[str | None]) -> str:
    """Return a line of a table."""
    return f"| {label} | {' | '.join(value or MISSING for value in values)} |"


def shown_share(count: int, total: int) -> str:
    """Return a share in percent with its interval."""
    low, high = wilson_interval(count, total)
    return f"{100 * count / total:.1f} % ({100 * low:.1f} to {100 * high:.1f})" if total else "none"


def shown_value(found: Mapping[str, float] | None) -> str:
    """Return a number with its interval; a dash where it was not measured."""
    if found is None:
        return "–"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


if __name__ == "__main__":
    main()
