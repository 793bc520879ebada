"""VASP results made of the real vasprun.xml of ../shared/data/vasp: relaxations of known steps."""

import gzip
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

VASPRUN = Path(__file__).parents[2] / "shared" / "data" / "vasp" / "vasprun.xml.gz"
ENERGY = -153.0123588
"""eV of the cell Li20Cl20, in the file's one ionic step."""

STEP_END = "</calculation>"


@cache
def vasprun_text() -> str:
    """A real run of Li20Cl20, with the van der Waals term taken out of its list of settings."""
    if not VASPRUN.exists():
        pytest.skip(f"{VASPRUN} is not on this machine")
    text = gzip.decompress(VASPRUN.read_bytes()).decode("ISO-8859-1")
    lines = [line for line in text.splitlines(keepends=True) if 'name="IVDW"' not in line]
    assert len(lines) < len(text.splitlines())
    return "".join(lines)


@cache
def _slim_parts() -> tuple[str, str, str]:
    """What stands before the one ionic step, the step without bands and densities, the rest."""
    text = re.sub(r"  <(eigenvalues|dos|projected)>.*?\n  </\1>\n", "", vasprun_text(), flags=re.S)
    start, end = text.index(" <calculation>"), text.index(STEP_END) + len(STEP_END)
    return text[:start], text[start:end] + "\n", text[end:].lstrip("\n")


def relaxation(energies: Sequence[float], bad: Sequence[int] = (), max_steps: int = 99) -> str:
    """The vasprun.xml of a relaxation.

    Args:
        energies: eV of the cell, one a step.
        bad: numbers from 1 of the steps whose electronic loop hits its limit.
        max_steps: NSW.
    """
    head, step, tail = _slim_parts()
    num_loops = step.count("<scstep>")
    head = head.replace('name="NELM">   400', f'name="NELM">{num_loops:6d}')
    head = head.replace('name="NSW">     0', f'name="NSW">{max_steps:6d}')
    head = head.replace('name="IBRION">    -1', 'name="IBRION">     2')
    shorter = re.sub(r"  <scstep>.*?</scstep>\n", "", step, count=1, flags=re.S)
    steps = []
    for number, energy in enumerate(energies, start=1):
        text = step if number in bad else shorter
        steps.append(text.replace(f"{ENERGY:.8f}", f"{energy:.8f}"))
    return head + "".join(steps) + tail
