"""The sites of the space groups, against spglib's operations and its analysis of crystals."""

import numpy as np
import pytest
import spglib

from flowllm.data.space_groups import number_of
from flowllm.data.wyckoff import NUM_GROUPS, space_group
from symmetric_crystals import orbit_in

GENERIC = np.array([0.1372, 0.2614, 0.3931])
NUMBERS = range(1, NUM_GROUPS + 1)


def setting_of(number: int) -> int:
    return next(setting for setting in range(1, 531) if number_of(setting) == number)


def test_every_site_has_the_multiplicity_of_its_name():
    for number in NUMBERS:
        found = spglib.get_symmetry_from_database(setting_of(number))
        for site in space_group(number).sites.values():
            point = site.projector @ GENERIC + site.offset
            images = found["rotations"] @ point + found["translations"]
            steps = images[:, None] - images[None]
            same = np.abs(steps - steps.round()).max(axis=-1) < 1e-6
            assert len(np.unique(same, axis=0)) == int(site.label[:-1]), (number, site.label)


@pytest.mark.parametrize("numbers", [range(first, first + 46) for first in range(1, 231, 46)])
def test_letters_are_those_of_spglib_up_to_another_origin(numbers):
    """spglib may choose another origin, which exchanges letters of sites of one kind.

    Therefore its own origin and axes are undone: the point that it sees is looked up in our table.
    """
    for number in numbers:
        group = space_group(number)
        general = [*group.sites.values()][-1]
        for site in group.sites.values():
            points = [GENERIC, site.projector @ GENERIC[::-1] + site.offset]
            if site is general:
                points = [GENERIC, GENERIC[::-1] + 0.05]
            structure = orbit_in(setting_of(number), [p.tolist() for p in points], [11, 17], number)
            cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
            found = spglib.get_symmetry_dataset(cell, symprec=1e-5)
            if found.number != number:
                continue  # two orbits can have a higher symmetry than the group
            atom = structure.atomic_numbers.index(17)
            standard = found.transformation_matrix @ structure.frac_coords[atom]
            standard += found.origin_shift
            letter = found.wyckoffs[atom]
            named = next(one for label, one in group.sites.items() if label[-1] == letter)
            assert group.on_site(named, standard) is not None, (number, site.label, letter)
            moved = group.on_site(named, standard)
            np.testing.assert_allclose(moved - standard, np.round(moved - standard), atol=1e-6)
            assert named.label[:-1] == site.label[:-1]


def test_orbits_of_a_site_are_those_of_its_points():
    for number in NUMBERS:
        group = space_group(number)
        for site in group.sites.values():
            points = np.stack([GENERIC, GENERIC[::-1]]) @ site.projector.T + site.offset
            expected = [group.orbit(point) for point in points]
            np.testing.assert_allclose(group.orbits(site, points), expected, atol=1e-9)


def test_the_nearest_point_of_a_site_is_that_among_all_translations():
    steps = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    points = np.random.default_rng(0).integers(0, 100, (20, 3)) / 100
    for number in NUMBERS:
        for site in space_group(number).sites.values():
            moved, distances = site.nearest(points)
            repeated = points[:, None] + steps
            shifts = repeated @ (site.projector - np.eye(3)).T + site.offset
            expected = np.abs(shifts).max(axis=-1).min(axis=-1)
            np.testing.assert_allclose(distances, expected, atol=1e-8)
            np.testing.assert_allclose(np.abs(moved - points).max(axis=-1), distances, atol=1e-8)


def test_only_sites_without_freedom_have_one_point():
    group = space_group(225)
    assert not group.sites["4a"].has_freedom
    assert group.sites["24e"].has_freedom
    assert group.sites["4a"].num_atoms == 1
    assert group.sites["192l"].num_atoms == 48


def test_a_point_is_moved_onto_the_nearest_position_of_its_site():
    group = space_group(194)
    site = group.sites["2c"]
    np.testing.assert_allclose(
        group.on_site(site, np.array([0.33, 0.67, 0.25])), [1 / 3, 2 / 3, 0.25]
    )
    # The other position of the orbit is accepted as well.
    np.testing.assert_allclose(
        group.on_site(site, np.array([0.67, 0.33, 0.75])), [2 / 3, 1 / 3, 0.75]
    )
    assert group.on_site(site, np.array([0.33, 0.67, 0.3])) is None
