"""The crystal record against pymatgen, and against formulas worked out apart from it."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, DummySpecies, Element, Lattice, Structure

from crystals import perovskite, rocksalt
from flowllm.crystal import Crystal, cell_formula, lattice_has_volume, wrap
from flowllm.errors import FlowllmError

ONE_ATOM = {
    "atomic_numbers": [11],
    "frac_coords": [[0, 0, 0]],
    "lengths": [3, 4, 5],
    "angles": [80, 90, 100],
}

numbers = st.lists(st.integers(1, 118), min_size=1, max_size=20)
reals = st.floats(-1e6, 1e6)


@st.composite
def crystals(draw) -> Crystal:
    atomic_numbers = draw(numbers)
    coords = draw(hnp.arrays(float, (len(atomic_numbers), 3), elements=st.floats(-10, 10)))
    lengths = draw(hnp.arrays(float, 3, elements=st.floats(0.5, 100)))
    angles = draw(hnp.arrays(float, 3, elements=st.floats(30, 150)))
    assume(lattice_has_volume(angles))
    return Crystal.from_arrays(atomic_numbers, coords, lengths, angles)


@given(hnp.arrays(float, hnp.array_shapes(min_dims=0, max_dims=3), elements=reals))
def test_wrapped_coordinates_are_the_same_points_in_the_unit_cell(coords):
    wrapped = wrap(coords)
    assert wrapped.dtype == np.float32
    assert wrapped.shape == coords.shape
    assert np.all((wrapped >= 0) & (wrapped < 1))
    # Same point on the torus: both angles of the circle have one sine and one cosine.
    turns = 2 * np.pi * (wrapped.astype(float) - np.mod(coords, 1))
    np.testing.assert_allclose(np.cos(turns), 1, atol=1e-10)
    np.testing.assert_allclose(np.sin(turns), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(-0.25, 0.75), (1.0, 0.0), (-1e-20, 0.0), (0.99999999999, 0.0), (-0.0, 0.0), (7.5, 0.5)],
)
def test_wrap_at_the_edges(given, expected):
    assert wrap(np.array([given]))[0] == np.float32(expected)


@given(crystals())
def test_structure_round_trip(crystal):
    again = Crystal.from_structure(crystal.to_structure())
    assert again.atomic_numbers.tolist() == crystal.atomic_numbers.tolist()
    np.testing.assert_allclose(again.lengths, crystal.lengths, rtol=1e-5)
    np.testing.assert_allclose(again.angles, crystal.angles, rtol=1e-4)
    apart = again.frac_coords.astype(float) - crystal.frac_coords.astype(float)
    np.testing.assert_allclose(apart - np.round(apart), 0, atol=1e-5)


@given(crystals())
def test_lattice_is_the_one_that_lengths_and_angles_say(crystal):
    matrix = crystal.to_structure().lattice.matrix
    a, b, c = matrix
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), crystal.lengths, rtol=1e-5)
    for (u, v), angle in zip(((b, c), (a, c), (a, b)), crystal.angles, strict=True):
        cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        assert math.degrees(math.acos(cosine)) == pytest.approx(angle, abs=1e-3)
    assert np.linalg.det(matrix) > 0


@given(numbers)
def test_cell_formula_counts_as_pymatgen(atomic_numbers):
    formula = cell_formula(np.array(atomic_numbers))
    assert Composition(formula) == Composition.from_dict(
        {Element.from_Z(z): atomic_numbers.count(z) for z in set(atomic_numbers)}
    )
    assert formula == cell_formula(np.array(atomic_numbers[::-1]))


@pytest.mark.parametrize(
    ("atomic_numbers", "formula"),
    [
        ([17, 11, 11, 17], "Na2Cl2"),
        ([8], "O1"),
        ([8, 38, 22, 8, 8], "Sr1Ti1O3"),
        ([2, 1], "H1He1"),  # helium has no electronegativity and comes last
    ],
)
def test_cell_formula_by_electronegativity(atomic_numbers, formula):
    assert cell_formula(np.array(atomic_numbers)) == formula


def test_textbook_crystals():
    assert rocksalt().formula == "Na1Cl1"
    assert perovskite().num_atoms == 5
    assert rocksalt().to_structure().volume == pytest.approx(5.64**3 / 4, rel=1e-6)


@given(hnp.arrays(float, 3, elements=st.floats(20, 179)))
def test_three_angles_span_a_volume(angles):
    """They do where each is below the sum of the other two and their sum is below 360."""
    largest = angles.max()
    margin = min(angles.sum() - 2 * largest, 360 - angles.sum())
    assume(abs(margin) > 0.5)
    assert lattice_has_volume(angles) == (margin > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atomic_numbers": []}, "atomic_numbers has shape"),
        ({"atomic_numbers": [[11]]}, "atomic_numbers has shape"),
        ({"atomic_numbers": [0]}, "no element"),
        ({"atomic_numbers": [119]}, "no element"),
        ({"frac_coords": [[0, 0]]}, "frac_coords has shape"),
        ({"frac_coords": [[0, 0, 0]] * 2}, "frac_coords has shape"),
        ({"frac_coords": [[0, 0, math.nan]]}, "not a finite number"),
        ({"lengths": [3, 4]}, "lengths and angles have shapes"),
        ({"lengths": [3, 4, 0]}, "must be positive"),
        ({"lengths": [3, 4, -5]}, "must be positive"),
        ({"lengths": [3, 4, math.inf]}, "not a finite number"),
        ({"lengths": [3, 4, 1e39]}, "not a finite number"),  # beyond float32
        ({"lengths": [3, 4, 1e-50]}, "must be positive"),
        ({"angles": [80, 90]}, "lengths and angles have shapes"),
        ({"angles": [120, 120, 120]}, "span no volume"),
        ({"angles": [30, 30, 70]}, "span no volume"),
        ({"angles": [0, 90, 90]}, "span no volume"),
        ({"angles": [90, 90, 180]}, "span no volume"),
    ],
)
def test_impossible_crystals_are_refused(change, message):
    with pytest.raises(FlowllmError, match=message):
        Crystal.from_arrays(**{**ONE_ATOM, **change})


def test_disordered_and_elementless_structures_are_refused():
    lattice = Lattice.cubic(4)
    with pytest.raises(FlowllmError, match="disordered"):
        Crystal.from_structure(Structure(lattice, [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]))
    with pytest.raises(FlowllmError, match="no element"):
        Crystal.from_structure(Structure(lattice, [DummySpecies("X")], [[0, 0, 0]]))


def test_left_handed_cell_is_not_turned_into_its_mirror_image():
    """Four atoms at a chiral arrangement: the mirror image has another signed volume."""
    matrix = np.array([[0, 4, 0], [5, 0, 0], [0, 0, 6]])
    assert np.linalg.det(matrix) < 0
    coords = [[0.1, 0.1, 0.1], [0.3, 0.1, 0.1], [0.1, 0.4, 0.1], [0.1, 0.1, 0.5]]
    given = Structure(Lattice(matrix), ["Li", "Na", "K", "Rb"], coords)
    made = Crystal.from_structure(given).to_structure()
    assert signed_volume(made) == pytest.approx(signed_volume(given), rel=1e-4)
    assert StructureMatcher().fit(given, made)


def signed_volume(structure: Structure) -> float:
    """Of the tetrahedron from the first atom to the nearest images of the next three."""
    lattice = structure.lattice
    origin = structure.frac_coords[0]
    edges = []
    for other in structure.frac_coords[1:4]:
        _, image = lattice.get_distance_and_image(origin, other)
        edges.append(lattice.get_cartesian_coords(other + image - origin))
    return float(np.linalg.det(edges)) / 6
