"""What is drawn of a crystal against the structure: atoms, bonds, cells, and the picture."""

import numpy as np
import pytest
from matplotlib.patches import Circle
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystals import caesium_chloride, fcc, perovskite, rattled, rocksalt
from flowllm.report import drawing
from flowllm.report.drawing import candidates_picture
from flowllm.report.gallery import Candidate
from flowllm.report.scene import (
    MAX_CELL_ATOMS,
    MAX_SUPERCELL_ATOMS,
    drawn_cell,
    formula_parts,
    scene,
    scenes,
)


def positions(drawn):
    return np.array([atom[:3] for atom in drawn["atoms"]])


def bond_lengths(drawn):
    ends = positions(drawn)[np.array(drawn["bonds"])]
    return np.linalg.norm(ends[:, 0] - ends[:, 1], axis=-1)


def test_scene_of_caesium_chloride():
    drawn = scene(caesium_chloride(a=4.0).to_structure())
    symbols = [drawn["kinds"][kind][0] for *_, kind in drawn["atoms"]]
    assert sorted(symbols) == ["Cl"] + ["Cs"] * 8  # the corners, and the center
    assert drawn["atoms"][symbols.index("Cl")][:3] == [0, 0, 0]
    assert drawn["size"] == pytest.approx(2 * np.sqrt(3), abs=0.01)
    assert len(drawn["edges"]) == 12
    for edge in drawn["edges"]:
        assert np.linalg.norm(np.subtract(edge[:3], edge[3:])) == pytest.approx(4, abs=0.02)
    # Each bond joins the center and a corner: 8 of them, and no metal to metal.
    assert bond_lengths(drawn) == pytest.approx([2 * np.sqrt(3)] * 8, abs=0.02)


def test_a_supercell_has_the_atoms_and_bonds_of_its_cells():
    drawn = scene(caesium_chloride(a=4.0).to_structure(), 2)
    assert len(drawn["atoms"]) == 3**3 + 2**3
    assert bond_lengths(drawn) == pytest.approx([2 * np.sqrt(3)] * 64, abs=0.02)
    assert len(drawn["edges"]) == 27
    assert drawn["size"] == pytest.approx(4 * np.sqrt(3), abs=0.01)
    assert positions(drawn).mean(0) == pytest.approx([0, 0, 0], abs=0.01)


def test_bonds_are_the_neighbors_of_pymatgen():
    structure = drawn_cell(perovskite().to_structure())
    drawn = scene(structure, 2)
    inner = np.abs(positions(drawn)).max(1) < 0.1  # the atom at the center of the eight cells
    (center,) = np.flatnonzero(inner)
    bonded = sum(center in bond for bond in drawn["bonds"])
    symbol = drawn["kinds"][drawn["atoms"][center][3]][0]
    site = next(site for site in structure if site.specie.symbol == symbol)
    reach = {"Sr": 1.2 * (1.95 + 0.66), "Ti": 1.2 * (1.60 + 0.66)}[symbol]  # Cordero et al. 2008
    oxygens = [one for one in structure.get_neighbors(site, reach) if one.specie.symbol == "O"]
    assert bonded == len(oxygens) > 0


def test_metals_are_bonded_to_metals_only_where_all_are_metals():
    assert (
        len(scene(drawn_cell(fcc().to_structure()))["bonds"]) == 36
    )  # 24 corner-face, 12 face-face
    drawn = scene(drawn_cell(rocksalt().to_structure()))
    for bond in drawn["bonds"]:
        assert {drawn["kinds"][drawn["atoms"][end][3]][0] for end in bond} == {"Na", "Cl"}


@pytest.mark.parametrize("crystal", [rocksalt(), fcc(), rattled(perovskite(), 0.02, 0)])
def test_the_drawn_cell_is_the_same_crystal(crystal):
    structure = crystal.to_structure()
    drawn = drawn_cell(structure)
    matcher = StructureMatcher(primitive_cell=True, scale=False, ltol=0.01, stol=0.01, angle_tol=1)
    assert matcher.fit(structure, drawn)
    assert drawn.volume / len(drawn) == pytest.approx(structure.volume / len(structure))
    assert drawn.lattice.matrix[2, :2] == pytest.approx([0, 0], abs=1e-9)  # c is upright


def test_a_face_centered_crystal_is_drawn_in_its_cube():
    cell = drawn_cell(rocksalt(a=5.64).to_structure())
    assert len(cell) == 8
    assert cell.lattice.abc == pytest.approx([5.64] * 3)
    assert cell.lattice.angles == pytest.approx([90] * 3)


def test_large_cells_are_drawn_as_given_and_without_a_supercell():
    rng = np.random.default_rng(0)
    count = MAX_SUPERCELL_ATOMS // 8 + 1
    assert count > MAX_CELL_ATOMS
    structure = Structure(Lattice.orthorhombic(9, 10, 11), ["Si"] * count, rng.random((count, 3)))
    (drawn,) = scenes(structure)
    assert len(drawn["atoms"]) >= count


def test_atoms_at_one_point_are_drawn():
    structure = Structure(Lattice.cubic(3), ["Na", "Na"], [[0, 0, 0], [0, 0, 0]])
    assert len(scenes(structure)) == 2


def test_the_first_view_is_a_rotation():
    view = np.reshape(scene(rocksalt().to_structure())["view"], (3, 3))
    assert view @ view.T == pytest.approx(np.eye(3), abs=1e-3)
    assert np.linalg.det(view) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("formula", "parts"),
    [
        ("SrTiO3", [("SrTiO", "3")]),
        ("Ca3(PO4)2", [("Ca", "3"), ("(PO", "4"), (")", "2")]),
        ("O2", [("O", "2")]),
        ("Li0.5NiO2", [("Li", "0.5"), ("NiO", "2")]),
    ],
)
def test_numbers_of_a_formula_are_apart(formula, parts):
    assert formula_parts(formula) == parts


def candidate(crystal, energy=-0.1):
    return Candidate("a", "M", crystal.to_structure(), energy, True, True, "Pm-3m (221)")


def test_the_picture_has_a_panel_per_candidate_and_its_atoms():
    assert candidates_picture([]) is None
    figure = candidates_picture(
        [candidate(caesium_chloride(), -0.1), candidate(perovskite(), 0.02)]
    )
    first, second = figure.axes
    assert [one.get_title() for one in figure.axes] == ["CsCl", "SrTiO$_{3}$"]
    assert "Pm-3m (221)\n-0.100 eV/atom" in [text.get_text() for text in first.texts]
    (drawn,) = second.collections
    atoms = len(scenes(perovskite().to_structure())[0]["atoms"])
    bonds = len(scenes(perovskite().to_structure())[0]["bonds"])
    assert len(drawn.get_paths()) == 12 + 2 * bonds + drawing.SHADES * atoms
    many = candidates_picture([candidate(rocksalt())] * 11)
    assert len([axes for axes in many.axes if axes.collections]) == drawing.PICTURED


def test_in_the_picture_nearer_atoms_cover_the_others():
    drawn = scene(caesium_chloride().to_structure())
    shapes = sorted(drawing._shapes(drawn), key=lambda shape: shape[0])
    balls = [depth for depth, patches in shapes if isinstance(patches[0], Circle)]
    view = np.reshape(drawn["view"], (3, 3))
    assert balls == pytest.approx(sorted((positions(drawn) @ view.T)[:, 2]))
