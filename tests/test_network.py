"""The dense velocity network: its symmetries, its size, and the plain edge list it must equal."""

import math
import shutil
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from flow_pairs import BOUNDS, prototypes
from flowllm.errors import FlowllmError
from flowllm.rfm.manifold import gram_matrix, lattice_vector
from flowllm.rfm.model import build_field, load_model, save_model
from flowllm.rfm.network import (
    NetworkSize,
    Standardization,
    edge_angles,
    sinusoidal_embedding,
)
from flowllm.rfm.start import LlmStart
from reference_network import ReferenceNetwork

SIZE = NetworkSize(hidden_dim=32, num_layers=3, time_dim=16, num_frequencies=8)
SCALES = Standardization(
    lattice_mean=[5.0, 6.0, 7.0, 0.1, 0.2, 0.3],
    lattice_std=[1.0, 2.0, 3.0, 1.5, 1.5, 1.5],
    coords_velocity_std=0.2,
    lattice_velocity_mean=[0.1] * 6,
    lattice_velocity_std=[0.5] * 6,
)


def field_of(dtype, size=SIZE):
    return build_field(size, BOUNDS, SCALES, seed=5).to(dtype)


def crystals_by_size(dtype, per_size=3):
    """Real crystals, shaken a little and grouped by number of atoms, with lattices and times."""
    groups = {}
    for crystal in prototypes():
        groups.setdefault(crystal.num_atoms, []).append(crystal)
    rng = np.random.default_rng(0)
    for size, members in sorted(groups.items()):
        chosen = members[:per_size]
        coords = np.stack([c.frac_coords for c in chosen]).astype(np.float64)
        coords += rng.normal(0, 0.02, coords.shape)
        elements = torch.tensor(np.stack([c.atomic_numbers for c in chosen])).long()
        lengths = torch.tensor(np.stack([c.lengths for c in chosen])).to(dtype)
        angles = torch.tensor(np.stack([c.angles for c in chosen])).to(dtype)
        lattice = lattice_vector(lengths, angles, BOUNDS)
        time = torch.tensor(rng.random(len(chosen))).to(dtype)
        yield size, (elements, torch.tensor(coords).to(dtype), lattice, time), (lengths, angles)


def test_number_of_parameters_of_the_full_size():
    field = build_field(NetworkSize(512, 6, 256, 128), BOUNDS, SCALES)
    assert round(sum(p.numel() for p in field.parameters()) / 1e6, 1) == 14.2


@pytest.mark.parametrize("num_frequencies", [SIZE.num_frequencies, 128])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equals_the_edge_list_with_its_gradients(dtype, tolerance, num_frequencies):
    """All crystals as one graph against the same crystals batch by batch of one size."""
    field = field_of(dtype, replace(SIZE, num_frequencies=num_frequencies))
    reference = ReferenceNetwork(field.network)
    outputs, joined = [], {"elements": [], "coords": [], "n": [], "l": [], "gram": [], "time": []}
    for size, inputs, (lengths, angles) in crystals_by_size(dtype):
        elements, coords, lattice, time = inputs
        outputs.append(field(*inputs))
        joined["elements"].append(elements.flatten())
        joined["coords"].append(coords.flatten(0, 1))
        joined["n"].append(torch.full((len(time),), size))
        joined["l"].append((lattice - field.lattice_mean) / field.lattice_std)
        joined["gram"].append(gram_matrix(lengths, angles))
        joined["time"].append(time)
    coords = torch.cat([v.flatten(0, 1) for v, _ in outputs])
    lattice = torch.cat([v for _, v in outputs])
    expected = reference(*(torch.cat(values) for values in joined.values()))
    expected = (
        field.coords_velocity_std * expected[0],
        field.lattice_velocity_mean + field.lattice_velocity_std * expected[1],
    )
    torch.testing.assert_close(coords, expected[0], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lattice, expected[1], atol=tolerance, rtol=tolerance)

    (coords.square().mean() + lattice.square().mean()).backward()
    (expected[0].square().mean() + expected[1].square().mean()).backward()
    network = field.network
    for mine, plain in zip(network.layers, reference.layers, strict=True):
        receiver, sender, update = mine.from_nodes.weight.grad.chunk(3)
        odd = mine.from_odd.weight.grad
        parts = [receiver, sender, mine.from_crystal.weight.grad, odd[:, :-3]]
        parts += [mine.from_even.weight.grad, odd[:, -3:]]
        close(torch.cat(parts, dim=1), plain.edge_mlp[0].weight.grad, tolerance)
        close(mine.from_crystal.bias.grad, plain.edge_mlp[0].bias.grad, tolerance)
        close(mine.edge_out.weight.grad, plain.edge_mlp[2].weight.grad, tolerance)
        node_in = torch.cat([update, mine.from_messages.weight.grad], dim=1)
        close(node_in, plain.node_mlp[0].weight.grad, tolerance)
        close(mine.node_out.weight.grad, plain.node_mlp[2].weight.grad, tolerance)
        close(mine.norm.weight.grad, plain.norm.weight.grad, tolerance)
    close(network.element.weight.grad.T, reference.element.weight.grad, tolerance)
    close(network.count.weight.grad.T, reference.count.weight.grad, tolerance)
    close(network.time.weight.grad, reference.time.weight.grad, tolerance)
    close(network.coords_head.weight.grad, reference.coords_head.weight.grad, tolerance)
    close(network.lattice_head.weight.grad, reference.lattice_head.weight.grad, tolerance)


def close(found, expected, tolerance):
    """Equal to `tolerance` of the largest entry: gradients of one tensor share one scale."""
    scale = max(expected.abs().max().item(), 1e-3)
    assert (found - expected).abs().max().item() <= tolerance * scale


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_give_the_same_with_their_gradients():
    """Two graphs serve all numbers of crystals and of atoms: five atoms are a case of their own.

    Sizes of 0 and 1 do without.
    """
    size = NetworkSize(hidden_dim=8, num_layers=1, time_dim=4, num_frequencies=2)
    eager = build_field(size, BOUNDS, SCALES, seed=1)
    compiled = deepcopy(eager)
    torch.compiler.reset()
    counts = torch._dynamo.utils.counters["stats"]
    graphs_before = counts["unique_graphs"]
    compiled.network.compile_layers()
    rng = torch.Generator().manual_seed(2)
    shapes = [(4, 5), (4, 3), (4, 1), (4, 2), (1, 5), (1, 1), (1, 2), (3, 20), (2, 7), (5, 5)]
    for num_crystals, num_atoms in shapes:
        elements = torch.randint(1, 90, (num_crystals, num_atoms), generator=rng)
        coords = torch.rand(num_crystals, num_atoms, 3, generator=rng)
        lattice = 4 + torch.rand(num_crystals, 6, generator=rng)
        inputs = elements, coords, lattice, torch.rand(num_crystals, generator=rng)
        found, expected = compiled(*inputs), eager(*inputs)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        for velocities in (found, expected):
            sum(velocity.square().sum() for velocity in velocities).backward()
    assert counts["unique_graphs"] - graphs_before <= 2
    for one, other in zip(compiled.parameters(), eager.parameters(), strict=True):
        close(one.grad, other.grad, 1e-4)


@pytest.mark.parametrize("shift", [(0.1, 0.2, 0.3), (0.5, 0.5, 0.5), (0.97, 0.0, 0.01)])
def test_translations_of_all_atoms_change_nothing(shift):
    """Also of unshaken crystals, whose atoms often lie exactly half a cell apart."""
    field = field_of(torch.float64)
    for size, (elements, _, lattice, time), _ in crystals_by_size(torch.float64):
        members = [c for c in prototypes() if c.num_atoms == size][: len(time)]
        coords = torch.tensor(np.stack([c.frac_coords for c in members])).double()
        moved = torch.remainder(coords + torch.tensor(shift).double(), 1.0)
        for found, expected in zip(
            field(elements, moved, lattice, time),
            field(elements, coords, lattice, time),
            strict=True,
        ):
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_permutations_of_atoms_permute_the_velocities():
    field = field_of(torch.float64)
    for size, (elements, coords, lattice, time), _ in crystals_by_size(torch.float64):
        order = torch.tensor(np.random.default_rng(size).permutation(size))
        plain = field(elements, coords, lattice, time)
        permuted = field(elements[:, order], coords[:, order], lattice, time)
        torch.testing.assert_close(permuted[0], plain[0][:, order], atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(permuted[1], plain[1], atol=1e-12, rtol=1e-10)


def test_coordinate_velocities_have_zero_mean_and_are_not_zero():
    field = field_of(torch.float64)
    for size, inputs, _ in crystals_by_size(torch.float64):
        coords, _ = field(*inputs)
        assert coords.mean(dim=1).abs().max() < 1e-15
        assert (coords.abs().max() > 1e-3) == (size > 1)


def test_a_crystal_does_not_see_its_neighbours_in_the_batch():
    field = field_of(torch.float64)
    for _, inputs, _ in crystals_by_size(torch.float64):
        together = field(*inputs)
        for index in range(len(inputs[0])):
            alone = field(*(x[index : index + 1] for x in inputs))
            torch.testing.assert_close(alone[0][0], together[0][index], atol=1e-12, rtol=1e-10)


def test_every_input_matters():
    """Elements, coordinates, lengths, angles, time and number of atoms each change the output."""
    field = field_of(torch.float64)
    _, (elements, coords, lattice, time), _ = list(crystals_by_size(torch.float64))[2]
    plain = field(elements, coords, lattice, time)[1]
    longer, wider = lattice.clone(), lattice.clone()
    longer[:, 0] += 0.5
    wider[:, 4] += 0.5
    changed = [
        field(elements + 1, coords, lattice, time),
        field(elements, coords + 0.05 * torch.rand_like(coords), lattice, time),
        field(elements, coords, longer, time),
        field(elements, coords, wider, time),
        field(elements, coords, lattice, time + 0.1),
    ]
    assert all((other[1] - plain).abs().min() > 1e-6 for other in changed)
    field.network.count.weight.data += torch.randn_like(field.network.count.weight)
    assert (field(elements, coords, lattice, time)[1] - plain).abs().min() > 1e-6


def test_sinusoidal_embedding_is_equation_16():
    x = np.random.default_rng(0).uniform(-1, 1, (5, 3))
    sines, cosines = sinusoidal_embedding(torch.tensor(x), 4)
    for row in range(5):
        expected = [2 * math.pi * k * x[row, d] for d in range(3) for k in (1, 2, 3, 4)]
        np.testing.assert_allclose(sines[row], np.sin(expected), atol=1e-12)
        np.testing.assert_allclose(cosines[row], np.cos(expected), atol=1e-12)


def test_edge_angles_by_hand():
    """Cubic cell of 4 angstrom: along a, along a + b, half a cell, and no distance at all."""
    gram = gram_matrix(torch.full((1, 3), 4.0), torch.full((1, 3), 90.0)).double()
    x = [[0.25, 0, 0], [-0.25, 0.75, 0], [0.5, 0.25, -0.5], [0, 0, 0], [0.5, 0.5, 0.5]]
    found = edge_angles(torch.tensor([x], dtype=torch.float64), gram)
    half = math.sqrt(0.5)
    expected = [[1, 0, 0], [-half, -half, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("file", ["weights.safetensors", "model.json"])
@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_flow_with_damaged_files_is_named(tmp_path, file, share):
    field, start, cpu = field_of(torch.float32), LlmStart(0.0, 0.0, 0.0), torch.device("cpu")
    folder = tmp_path / "flow"
    save_model(folder, field, field.state_dict(), start, {}, [{"step": 1, "seconds": 1.0}])
    load_model(folder, cpu)
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: int(share * len(data))])
    with pytest.raises(
        FlowllmError, match=r"flow.*: not a (model of train_rfm|whole safetensors file) .*delete"
    ):
        load_model(folder, cpu)
    (folder / file).unlink()
    with pytest.raises(
        FlowllmError, match=r"flow.*(not a model of train_rfm|No such file).*delete"
    ):
        load_model(folder, cpu)
