"""Descriptions in the standard setting, for crystals in all settings of Hall's table."""

import numpy as np
import pytest
import spglib

from crystals import rocksalt, translated_and_permuted
from flowllm.crystal import Crystal
from flowllm.data.space_groups import number_of
from flowllm.data.standard_cell import NoDescriptionError, describe, expand, standardized
from symmetric_crystals import are_same_crystal, orbit_in, primitive

POINTS = [[0.0931, 0.2217, 0.3583], [0.3119, 0.0417, 0.1731]]


@pytest.mark.parametrize("settings", [range(first, first + 53) for first in range(1, 531, 53)])
def test_crystals_of_every_setting_are_described_in_the_standard_one(settings):
    for setting in settings:
        # The first atom of the cubic orbits is left out, which have up to 96 atoms already.
        points = POINTS if number_of(setting) < 195 else POINTS[:1]
        crystal = primitive(orbit_in(setting, points, [11, 17][: len(points)], setting))
        described = describe(crystal)
        found = spglib.get_symmetry_dataset(
            (crystal.to_structure().lattice.matrix, crystal.frac_coords, crystal.atomic_numbers),
            symprec=0.01,
        )
        assert described.group.number == found.number, setting
        made = expand(described)
        assert are_same_crystal(made.crystal, crystal), setting
        again = standardized(crystal).crystal
        fixed = expand(describe(again)).crystal
        assert fixed.atomic_numbers.tolist() == again.atomic_numbers.tolist()
        steps = fixed.frac_coords - again.frac_coords
        assert np.abs(steps - steps.round()).max() < 1e-3, setting
        np.testing.assert_allclose(fixed.lengths, again.lengths, atol=1e-3)


def test_the_description_does_not_depend_on_origin_and_order():
    described = describe(translated_and_permuted(rocksalt(), seed=3))
    assert described.group.number == 225
    assert sorted(orbit.site.label for orbit in described.orbits) == ["4a", "4b"]
    np.testing.assert_allclose(described.cell, [5.64], atol=1e-5)


def test_a_cell_that_is_not_primitive_has_no_description():
    doubled = rocksalt().to_structure() * (2, 1, 1)
    with pytest.raises(NoDescriptionError, match="not primitive"):
        describe(Crystal.from_structure(doubled))


def test_operations_map_the_crystal_to_itself():
    made = expand(describe(translated_and_permuted(rocksalt(), seed=1)))
    coords = made.crystal.frac_coords.astype(float)
    assert len(made.operations) == 48
    for rotation, translation in zip(
        made.operations.rotations, made.operations.translations, strict=True
    ):
        steps = (coords @ rotation.T + translation)[:, None] - coords
        distances = np.abs(steps - steps.round()).max(axis=-1)
        distances[made.crystal.atomic_numbers[:, None] != made.crystal.atomic_numbers] = 1
        assert distances.min(axis=1).max() < 1e-6
