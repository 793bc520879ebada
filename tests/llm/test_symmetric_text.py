"""The symmetric text, against spglib, pymatgen and hand-written texts."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import spglib
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystals import perovskite, rocksalt
from flowllm.crystal import Crystal
from flowllm.data.cif import crystal_from_cif
from flowllm.data.rejected import RejectedError
from flowllm.data.standard_cell import (
    NoDescriptionError,
    Orbit,
    StandardCrystal,
    expand,
    standardized,
)
from flowllm.data.wyckoff import FREE_PARAMETERS, space_group
from flowllm.llm.crystal_text import (
    Decoded,
    Limits,
    Reason,
    RejectedTextError,
    Rejection,
    check_distances,
    composition_of,
)
from flowllm.llm.symmetric_text import SymmetricText, lines_of

TEXT = SymmetricText()
ANY = Limits(max_atoms=20)
LARGE = Path(__file__).parents[3] / "shared" / "data" / "mp_20_large" / "train.csv"

SALT = "225\n5.6\nNa 4a\n0.00 0.00 0.00\nCl 4b\n0.50 0.50 0.50"
RUTILE = "136\n4.6 3.0\nTi 2a\n0.00 0.00 0.00\nO 4f\n0.31 0.31 0.00"


@st.composite
def standard_crystals(draw) -> StandardCrystal:
    """Up to 20 atoms on sites of any group, special ones included."""
    group = space_group(draw(st.integers(1, 230)))
    sizes = {"length": st.floats(4, 15), "angle": st.floats(80, 110)}
    places = FREE_PARAMETERS[group.system]
    cell = [draw(sizes["length" if place < 3 else "angle"]) for place in places]
    left, orbits, used = 20, [], set()
    for _ in range(draw(st.integers(1, 5))):
        fitting = [
            site
            for site in group.sites.values()
            if site.num_atoms <= left and (site.has_freedom or site.label not in used)
        ]
        if not fitting:
            break
        site = draw(st.sampled_from(fitting))
        free = np.array([draw(st.integers(0, 99)) for _ in range(3)]) / 100
        orbits.append(Orbit(draw(st.integers(1, 90)), site, site.projector @ free + site.offset))
        used.add(site.label)
        left -= site.num_atoms
    return StandardCrystal(group, np.array(cell), tuple(orbits))


@given(standard_crystals())
def test_decoding_gives_a_crystal_of_the_group_that_the_text_names(standard):
    if not standard.orbits:
        return
    described = lines_of(standard)
    decoded = TEXT.decode(described.text, ANY)
    if isinstance(decoded, Rejection):
        # A free coordinate on a more special site, or two orbits at one point.
        assert decoded.reason in (Reason.WRONG_MULTIPLICITY, Reason.COINCIDING_ATOMS), decoded
        return
    crystal, operations = decoded.crystal, decoded.operations
    assert crystal.atomic_numbers.tolist() == described.atomic_numbers.tolist()
    assert len(operations) == len(standard.group.operations)
    coords = crystal.frac_coords.astype(float)
    for rotation, translation in zip(operations.rotations, operations.translations, strict=True):
        steps = (coords @ rotation.T + translation)[:, None] - coords
        distances = np.abs(steps - steps.round()).max(axis=-1)
        distances[crystal.atomic_numbers[:, None] != crystal.atomic_numbers] = 1
        assert distances.min(axis=1).max() < 1e-6
    lattice = crystal.to_structure().lattice.matrix
    found = spglib.get_symmetry_dataset((lattice, coords, crystal.atomic_numbers), symprec=1e-4)
    # The group of the text or a supergroup of it, in this cell.
    assert len(found.rotations) % len(operations) == 0
    volume = float(np.linalg.det(lattice))
    lengths, angles = standard.group.cell(np.array([float(x) for x in described.header[1].split()]))
    cosines = np.cos(np.radians(angles))
    root = np.sqrt(1 + 2 * np.prod(cosines) - np.sum(cosines**2))
    ratio = np.prod(lengths) * root / volume
    assert ratio == pytest.approx(round(1 / np.linalg.det(standard.group.primitive)), rel=1e-4)


def test_rutile_is_decoded_as_in_the_literature():
    decoded = TEXT.decode(RUTILE, ANY)
    assert isinstance(decoded, Decoded), decoded
    assert decoded.crystal.formula == "Ti2O4"
    expected = np.array([[0.31, 0.31, 0], [0.69, 0.69, 0], [0.19, 0.81, 0.5], [0.81, 0.19, 0.5]])
    structure = decoded.crystal.to_structure()
    assert sorted(structure.lattice.abc) == pytest.approx([3.0, 4.6, 4.6], abs=1e-5)
    axis = int(np.argmin(structure.lattice.abc))
    found = np.roll(decoded.crystal.frac_coords[2:], 2 - axis, axis=1)
    np.testing.assert_allclose(
        sorted(map(tuple, found.round(4).tolist())),
        sorted(map(tuple, expected.tolist())),
        atol=1e-4,
    )


def test_encoding_has_the_documented_form():
    assert TEXT.describe(rocksalt()).text in (
        SALT,
        SALT.replace("4a\n0.00 0.00 0.00", "4b\n0.50 0.50 0.50", 1).replace(
            "Cl 4b\n0.50 0.50 0.50", "Cl 4a\n0.00 0.00 0.00"
        ),
    )


def test_sites_can_be_put_into_another_order():
    described = TEXT.describe(perovskite())
    shuffled = [described.shuffled(np.random.default_rng(seed)) for seed in range(20)]
    assert len({one.text for one in shuffled}) == 6
    for one in shuffled:
        decoded = TEXT.decode(one.text, ANY)
        assert decoded.crystal.atomic_numbers.tolist() == one.atomic_numbers.tolist()


def test_a_hidden_element_is_replaced_at_all_its_sites():
    described = TEXT.describe(rocksalt()).hidden(11, "MASK")
    assert "Na" not in described.text
    assert "MASK 4" in described.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("225\n5.6\nNa 4a", Reason.WRONG_COUNT),
        ("225\n5.6\nNa\n0.00 0.00 0.00", Reason.WRONG_COUNT),
        ("225\n5.6\nNa 4a\n0.00 0.00", Reason.WRONG_COUNT),
        ("225\n5.x\nNa 4a\n0.00 0.00 0.00", Reason.BAD_NUMBER),
        ("Fm-3m\n5.6\nNa 4a\n0.00 0.00 0.00", Reason.BAD_NUMBER),
        ("231\n5.6\nNa 4a\n0.00 0.00 0.00", Reason.UNKNOWN_GROUP),
        ("0\n5.6\nNa 4a\n0.00 0.00 0.00", Reason.UNKNOWN_GROUP),
        ("2.5\n5.6\nNa 4a\n0.00 0.00 0.00", Reason.UNKNOWN_GROUP),
        ("225\n5.6 5.6 5.7\nNa 4a\n0.00 0.00 0.00", Reason.CELL_MISMATCH),
        ("62\n5.6 5.6\nNa 4a\n0.00 0.00 0.00", Reason.CELL_MISMATCH),
        ("225\n5.6\nXx 4a\n0.00 0.00 0.00", Reason.UNKNOWN_ELEMENT),
        ("225\n5.6\nNa 4z\n0.00 0.00 0.00", Reason.UNKNOWN_SITE),
        ("225\n5.6\nNa 8a\n0.00 0.00 0.00", Reason.WRONG_MULTIPLICITY),
        ("225\n5.6\nNa 4a\n0.25 0.25 0.25", Reason.WRONG_MULTIPLICITY),
        ("225\n5.6\nNa 24e\n0.00 0.00 0.00", Reason.WRONG_MULTIPLICITY),
        ("225\n5.6\nNa 192l\n0.10 0.20 0.30", Reason.TOO_MANY_ATOMS),
        ("225\n0.0\nNa 4a\n0.00 0.00 0.00", Reason.NONPHYSICAL_LATTICE),
        ("1\n5.0 5.0 5.0 10 10 170\nNa 1a\n0.00 0.00 0.00", Reason.NONPHYSICAL_LATTICE),
        (f"{SALT}\nCl 4a\n0.00 0.00 0.00", Reason.COINCIDING_ATOMS),
    ],
)
def test_each_failure_has_its_reason(text, reason):
    rejection = TEXT.decode(text, ANY)
    assert isinstance(rejection, Rejection), rejection
    assert rejection.reason == reason
    assert rejection.detail


def test_limits_of_formula_and_distance_have_their_reasons():
    asked = Limits(20, composition={11: 1, 9: 1})
    assert TEXT.decode(SALT, asked).reason == Reason.FORMULA_MISMATCH
    near = SALT.replace("5.6", "1.0")
    assert TEXT.decode(near, Limits(20, min_distance=0.6)).reason == Reason.CLOSE_ATOMS
    assert isinstance(TEXT.decode(near, Limits(20, min_distance=0.4)), Decoded)
    twice = f"{SALT}\nCl 4a\n0.00 0.00 0.00"
    assert isinstance(TEXT.decode(twice, Limits(20, reject_close_atoms=False)), Decoded)


PARTS = st.sampled_from([*SALT.split("\n"), "1", "230", "9.9 9.9", "", "1e400", "Na 1a", "0 0 0"])


@given(st.one_of(st.text(), st.lists(PARTS).map("\n".join), st.text("0123456789. \nNaCl4ab")))
def test_no_text_raises(text):
    decoded = TEXT.decode(text, Limits(20, composition={11: 1}))
    if isinstance(decoded, Rejection):
        assert decoded.detail
    else:
        assert composition_of(decoded.crystal.atomic_numbers) == {11: 1}


def prepared(count: int) -> list[tuple[Crystal, Crystal]]:
    """Real crystals: their primitive and their standard cells, spread over the rows."""
    if not LARGE.exists():
        pytest.skip("the real MP-20 rows are not beside the repository")
    with LARGE.open() as file:
        rows = [*csv.DictReader(file)]
    pairs = []
    for row in rows[:: len(rows) // count]:
        try:
            cells = [crystal_from_cif(row["cif"], cell, 20) for cell in ("primitive", "standard")]
        except RejectedError:
            continue
        pairs.append((cells[0], cells[1]))
    return pairs


def number_of(crystal: Crystal) -> int:
    cell = (crystal.to_structure().lattice.matrix, crystal.frac_coords, crystal.atomic_numbers)
    return spglib.get_symmetry_dataset(cell, symprec=0.01).number


def test_real_crystals_survive_their_text():
    pairs = prepared(250)
    assert len(pairs) >= 250
    matcher = StructureMatcher(primitive_cell=False)
    kept = 0
    failed: Counter[str] = Counter()
    for original, standard in pairs:
        described = TEXT.describe(standard)
        decoded = TEXT.decode(described.text, ANY)
        if isinstance(decoded, Rejection):
            failed[decoded.reason] += 1
            continue
        crystal = decoded.crystal
        assert matcher.fit(original.to_structure(), crystal.to_structure()), original.formula
        kept += number_of(original) == number_of(crystal)
    assert not failed
    assert kept >= 0.98 * len(pairs)


def assert_own_axes(crystal: Crystal, expected: Crystal) -> None:
    """Atoms, their order, and the cell are the same up to the rounding of text."""
    assert crystal.atomic_numbers.tolist() == expected.atomic_numbers.tolist()
    # Moving a point onto its site may double the rounding (x, 2x).
    steps = crystal.frac_coords - expected.frac_coords
    assert np.abs(steps - steps.round()).max() < 0.03
    assert np.abs(crystal.lengths - expected.lengths).max() < 0.2
    assert np.abs(crystal.angles - expected.angles).max() < 2


def test_texts_of_real_crystals_come_back_to_their_own_axes():
    for _, standard in prepared(1000):
        decoded = TEXT.decode(TEXT.describe(standard).text, ANY)
        assert isinstance(decoded, Decoded), decoded
        assert_own_axes(decoded.crystal, standard)


@given(standard_crystals(), st.booleans())
def test_texts_come_back_to_their_own_axes(drawn, nearly_equal):
    if not drawn.orbits:
        return
    cell = drawn.cell
    if nearly_equal:
        lengths = [place < 3 for place in FREE_PARAMETERS[drawn.group.system]]
        cell = np.where(lengths, cell[0] + cell % 0.2, cell)
    try:
        made = expand(replace(drawn, cell=cell))
        check_distances(made.crystal, Limits(20, min_distance=0.5))
        standard = standardized(made.crystal).crystal
    except (NoDescriptionError, RejectedTextError, ValueError):
        return
    described = TEXT.describe(standard)
    decoded = TEXT.decode(described.text, ANY)
    if isinstance(decoded, Rejection):
        # Rounding moves an atom onto a more special site or onto another atom.
        assert decoded.reason in (Reason.WRONG_MULTIPLICITY, Reason.COINCIDING_ATOMS), decoded
        return
    assert_own_axes(decoded.crystal, standard)
