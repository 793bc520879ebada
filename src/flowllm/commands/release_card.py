"""The model card (README.md) of a released folder, in the form of the Hugging Face hub."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from flowllm.commands.release_facts import About, Facts
from flowllm.crystal import MAX_ATOMIC_NUMBER
from flowllm.io.release import RELEASE
from flowllm.llm.text_parts import element_symbol

_RATES = {
    "validity": "valid",
    "relaxed": "relaxed",
    "metastability_rate": "metastable",
    "stability_rate": "stable",
    "sun_rate": "S.U.N.",
    "match_rate": "match own relaxed state",
}

_CONDITIONS = {
    "formula": "formula",
    "elements": "elements",
    "formation_energy_per_atom": "formation energy",
    "band_gap": "band gap",
    "e_above_hull": "energy above the hull",
    "space_group_number": "space group",
}


def card(about: About, facts: Facts, sizes: Mapping[str, int]) -> str:
    """Return the model card.

    Args:
        about: text of the person who releases the models.
        facts: numbers of the run (`facts_of`).
        sizes: bytes of each file, by name.
    """
    front = {
        "license": about.license,
        "library_name": "flowllm",
        "tags": ["chemistry", "crystal-structure-generation", "flow-matching", "materials"],
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {about.title}",
        "",
        "A language model that writes crystals, a flow that refines them, the reference entries of "
        "the convex hull, and the known crystals: what `flowllm generate` needs. `flowllm release` "
        f"made this page and the folder from the records of a run; `{RELEASE}` has the SHA-256 of "
        "every file, which is checked before the file is loaded.",
        *_use(facts),
        *_data(about, facts),
        *_training(about, facts),
        *_numbers(facts),
        *_limits(about, facts),
        *_files(sizes),
    ]
    return "\n".join(lines) + "\n"


def _use(facts: Facts) -> Iterator[str]:
    yield from ("", "## Use", "", "```bash")
    yield "flowllm generate --formula Na4Cl4 --count 20 --out salts"
    if facts["language_model"]["crystal_text"] == "symmetric":
        yield "flowllm generate --elements Na,Cl --space-group 225 --count 20 --out cubic"
    yield from ("```", "")
    yield (
        "The folder has the layout of a run's folder: `--run` accepts it. A training continues "
        "from its models with `finetune_llm.start` (all weights), `finetune_llm.base_model` (an "
        "adapter on top) and `train_rfm.start`."
    )


def _data(about: About, facts: Facts) -> Iterator[str]:
    crystals = facts["crystals"]
    yield from ("", "## Data and license", "", about.data.strip(), "")
    yield (
        f"{crystals['train']:,} crystals trained the models, and {crystals['val']:,} were held "
        f"out to choose the weights. The license of this folder is {about.license.upper()}. "
        "Please name:"
    )
    yield ""
    yield from (f"- {one.strip()}" for one in about.attribution)


def _training(about: About, facts: Facts) -> Iterator[str]:
    model, flow, made = facts["language_model"], facts["flow"], facts["flowllm"]
    yield from ("", "## Training", "", "| | language model | flow |", "|---|---|---|")
    flow = flow or {}
    start = f"{model['base_model']}, {model['method']}"
    yield _row("start", start, (flow["start"] or "random weights") if flow else None)
    yield _row("weights", _count(model["parameters"]), _count(flow.get("num_parameters")))
    yield _row("steps", _count(model["steps"]), _count(flow.get("steps")))
    seen = model["tokens"] and f"{model['tokens']:,} tokens"
    yield _row("trained on", seen, flow and f"{_count(flow['pairs'])} pairs of draft and crystal")
    yield _row(
        "validation loss",
        f"{model['val_loss']:.4f} nats per token",
        flow
        and f"{flow['validation_loss']:.3f} (constant field: {flow['constant_field_loss']:.3f})",
    )
    yield _row("time", _hours(model["training_seconds"]), _hours(flow.get("training_seconds")))
    yield ""
    yield (
        f"FlowLLM {made['version']}, commit {made['commit']}, seed {facts['seed']}. The matrices "
        "are stored in float16, and all computations are in float32. The commands:"
    )
    yield from ("", "```bash", about.commands.strip(), "```")


def _numbers(facts: Facts) -> Iterator[str]:
    results, hull = facts["results"], facts["hull"]
    yield from ("", "## Numbers", "")
    if not results:
        yield "The run has not measured generated crystals."
        return
    yield (
        "Percent of all generated crystals, with Wilson's 95 % interval. Energies: "
        f"{', '.join(hull['energies'])}; they are estimates, not DFT. Stability is relative to a "
        f"hull of {results[0]['hull_compositions']:,} compositions, and a sparse hull "
        "overestimates it."
    )
    yield from ("", "| method | crystals | " + " | ".join(_RATES.values()) + " |")
    yield "|---|---|" + "---|" * len(_RATES)
    for one in results:
        cells = [_percent(one["rates"][name]) for name in _RATES]
        yield _row(one["method"], f"{one['drawn']:,}", *cells)


def _limits(about: About, facts: Facts) -> Iterator[str]:
    model = facts["language_model"]
    symbols = [element_symbol(z) for z in model["elements"]]
    lacking = [
        element_symbol(z) for z in range(1, MAX_ATOMIC_NUMBER + 1) if z not in model["elements"]
    ]
    conditions = ", ".join(_CONDITIONS.get(one, one) for one in model["conditions"]) or "none"
    yield from ("", "## Limits", "")
    yield f"- Cells of at most {model['max_atoms']} atoms, with {len(symbols)} elements."
    if lacking:
        yield f"- No training crystal has {', '.join(lacking)}."
    yield f"- Conditions that prompts had in the training: {conditions}."
    if facts["hull"]["not_converged"]:
        yield (
            f"- {facts['hull']['not_converged']} entries of the hull did not converge in their "
            "relaxation; their energies are upper bounds."
        )
    yield from (f"- {one.strip()}" for one in about.limits)


def _files(sizes: Mapping[str, int]) -> Iterator[str]:
    yield from ("", "## Files", "", "| file | bytes |", "|---|---|")
    yield from (_row(f"`{name}`", f"{size:,}") for name, size in sorted(sizes.items()))
    yield _row("together", f"{sum(sizes.values()):,}")


def _row(*cells: Any) -> str:
    shown: Sequence[str] = ["-" if cell in (None, "", {}) else str(cell) for cell in cells]
    return f"| {' | '.join(shown)} |"


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"


def _hours(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds / 3600:.2f} h"


def _percent(rate: Mapping[str, Any]) -> str:
    value = 100 * rate["numerator"] / rate["denominator"]
    return f"{value:.1f} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"
