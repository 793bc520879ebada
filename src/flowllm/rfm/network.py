"""The velocity network of the paper's appendix B, computed densely.

A batch holds crystals of one number of atoms n, so nothing is padded and every sum over neighbours
is a product with a constant 0/1 matrix. Against the plain edge list of the paper (which the tests
keep as the reference, `tests/helpers/reference_network.py`) two things are done once instead of
twice or n times, with the same result:

- The first linear map of the edge network acts on (h_i, h_j, lattice, count, displacement), joined.
  A linear map of joined parts is the sum of maps of the parts: node parts are computed once a node,
  lattice and count once a crystal, only the displacement's once an edge.
- Of the displacement's features, cosines are even and sines and edge angles are odd in
  f_j - f_i. So edges ij and ji share both halves: even + odd for one, even - odd for the other.

Shapes: B crystals, n atoms, P = n (n - 1) / 2 pairs i < j, H hidden width, K frequencies.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowllm.crystal import MAX_ATOMIC_NUMBER
from flowllm.rfm.manifold import (
    AngleBounds,
    gram_matrix,
    lattice_parameters,
    remove_mean,
    torus_log,
)

MAX_ATOMS = 100
"""Numbers of atoms the network tells apart (one-hot in the public code)."""

LATTICE_DIM = 6
TIE = 1e-4
"""Displacements this near half a cell have two equally near images, and no direction."""
MIN_DISTANCE = 1e-2
"""Angstrom; atoms nearer than this have a shorter direction vector, going to zero with it."""


@dataclass(frozen=True)
class NetworkSize:
    """Hyper-parameters of the network, as in the configuration's `train_rfm`."""

    hidden_dim: int
    num_layers: int
    time_dim: int
    num_frequencies: int


def bytes_per_crystal(size: NetworkSize, num_atoms: int) -> int:
    """Memory that one crystal of a batch takes at most, without gradients, in float32.

    What is held at once an edge: sines and cosines with their phases, and four activations;
    an atom: eight.
    """
    edges = num_atoms * (num_atoms - 1)
    numbers = edges * (6 * size.num_frequencies + 4 * size.hidden_dim)
    return 4 * (numbers + 8 * num_atoms * size.hidden_dim)


@dataclass(frozen=True)
class Standardization:
    """Means and standard deviations that inputs and outputs are scaled by (appendix B).

    Coordinates have one deviation for all components and no mean: the mean is zero, and any other
    scaling would break the symmetries.

    Attributes:
        lattice_mean: of the path's lattice l_t (6).
        lattice_std: of the same (6).
        coords_velocity_std: of the target velocities of coordinates.
        lattice_velocity_mean: of the target velocities of lattices (6).
        lattice_velocity_std: of the same (6).
    """

    lattice_mean: list[float]
    lattice_std: list[float]
    coords_velocity_std: float
    lattice_velocity_mean: list[float]
    lattice_velocity_std: list[float]


@dataclass(frozen=True)
class PairFeatures:
    """Features of the displacements f_j - f_i of all pairs i < j.

    Attributes:
        even: cosines (B, P, 3 K).
        odd: sines and edge angles (B, P, 3 K + 3).
        spread: (2 P, 2 n), see `_incidence`.
        gather: (n, 2 P).
    """

    even: Tensor
    odd: Tensor
    spread: Tensor
    gather: Tensor


def sinusoidal_embedding(displacement: Tensor, num_frequencies: int) -> tuple[Tensor, Tensor]:
    """Equation 16: sin(2 pi k x) and cos(2 pi k x) of displacements (..., 3), each (..., 3 K).

    k runs from 1 to K: the term k = 0 is the constant (0, 1), which the linear map's bias holds.
    """
    # x in [-1/2, 1/2] first: 2 pi k x for k = 128 loses as many digits as x has before the point.
    x = displacement - displacement.round()
    k = torch.arange(1, num_frequencies + 1, dtype=x.dtype, device=x.device)
    phases = (2 * math.pi * x.unsqueeze(-1) * k).flatten(-2)
    return phases.sin(), phases.cos()


def edge_angles(displacement: Tensor, gram: Tensor) -> Tensor:
    """Cosines of the angles between edges and the three lattice vectors.

    The edge is the shortest displacement on the torus. A component of half a cell points both ways
    and counts as zero, else rounding would decide its sign (half cells are common in crystals).

    Args:
        displacement: f_j - f_i (B, P, 3).
        gram: scalar products of the lattice vectors (B, 3, 3).

    Returns:
        Cosines (B, P, 3), odd in the displacement.
    """
    shortest = torus_log(torch.zeros_like(displacement), displacement)
    shortest = torch.where(shortest.abs() > 0.5 - TIE, torch.zeros_like(shortest), shortest)
    projections = shortest @ gram
    squared = (shortest * projections).sum(-1, keepdim=True)
    distance = squared.clamp_min(MIN_DISTANCE**2).sqrt()
    lengths = gram.diagonal(dim1=-2, dim2=-1).clamp_min(MIN_DISTANCE**2).sqrt()
    return projections / (distance * lengths.unsqueeze(-2))


@lru_cache(maxsize=256)
def _pair_indices(num_atoms: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Atoms i and j of the pairs i < j, each (P,)."""
    with torch.inference_mode(mode=False):
        pairs = torch.triu_indices(num_atoms, num_atoms, offset=1, device=device)
        return pairs[0], pairs[1]


@lru_cache(maxsize=256)
def _incidence(num_atoms: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """0/1 matrices that spread node terms to edges and sum messages at their receivers.

    Edges are all ij with i < j, then all ji; i receives from j in ij.

    Returns:
        (2 P, 2 n) from the nodes' receiver terms and sender terms, and (n, 2 P) to the receivers.
    """
    first, second = _pair_indices(num_atoms, device)
    with torch.inference_mode(mode=False):  # kept, so they must also serve training
        receiver, sender = torch.cat([first, second]), torch.cat([second, first])
        at_receiver = functional.one_hot(receiver, num_atoms).to(dtype)
        at_sender = functional.one_hot(sender, num_atoms).to(dtype)
        return torch.cat([at_receiver, at_sender], dim=1), at_receiver.T.contiguous()


class MessageLayer(nn.Module):
    """One round of messages, equations 11 to 13, on layer-normed node states."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        hidden, waves = size.hidden_dim, 3 * size.num_frequencies
        self.norm = nn.LayerNorm(hidden)
        # The parts of the edge network's first map, and the node network's map of h.
        self.from_nodes = nn.Linear(hidden, 3 * hidden, bias=False)  # receiver, sender, update
        self.from_crystal = nn.Linear(hidden + LATTICE_DIM, hidden)  # count and lattice
        self.from_even = nn.Linear(waves, hidden, bias=False)
        self.from_odd = nn.Linear(waves + 3, hidden, bias=False)
        self.edge_out = nn.Linear(hidden, hidden)
        self.from_messages = nn.Linear(hidden, hidden)
        self.node_out = nn.Linear(hidden, hidden)
        self._initialize(hidden, 3 * hidden + LATTICE_DIM + 2 * waves + 3)

    def _initialize(self, hidden: int, edge_inputs: int) -> None:
        """Draw each part as torch draws the one linear map that it is part of."""
        edge_bound, node_bound = edge_inputs**-0.5, (2 * hidden) ** -0.5
        parts = (self.from_crystal, self.from_even, self.from_odd)
        with torch.no_grad():
            self.from_nodes.weight[: 2 * hidden].uniform_(-edge_bound, edge_bound)
            self.from_nodes.weight[2 * hidden :].uniform_(-node_bound, node_bound)
            for part in parts:
                part.weight.uniform_(-edge_bound, edge_bound)
            self.from_crystal.bias.uniform_(-edge_bound, edge_bound)
            self.from_messages.weight.uniform_(-node_bound, node_bound)
            self.from_messages.bias.uniform_(-node_bound, node_bound)

    def forward(self, nodes: Tensor, crystal: Tensor, pairs: PairFeatures) -> Tensor:
        """Return the new node states.

        Args:
            nodes: h (B, n, H).
            crystal: embedded count and standardised lattice (B, H + 6).
            pairs: features of the displacements.
        """
        normed = self.norm(nodes)
        receiver, sender, update = self.from_nodes(normed).chunk(3, dim=-1)
        receiver = receiver + self.from_crystal(crystal).unsqueeze(-2)
        summed = self._summed_messages(receiver, sender, pairs)
        hidden = functional.silu(update + self.from_messages(summed))
        return nodes + functional.silu(self.node_out(hidden))  # equation 13

    def _messages(self, edges: Tensor) -> Tensor:
        """What follows the edge network's first map, equation 11; overwrites it where it may."""
        free = not torch.is_grad_enabled()
        return functional.silu(self.edge_out(functional.silu(edges, inplace=free)), inplace=free)

    def _summed_messages(self, receiver: Tensor, sender: Tensor, pairs: PairFeatures) -> Tensor:
        """Summed messages (B, n, H), equation 12."""
        even, odd = self.from_even(pairs.even), self.from_odd(pairs.odd)
        edges = torch.cat([even + odd, even - odd], dim=-2)
        ends = torch.cat([receiver, sender], dim=-2)
        edges = torch.baddbmm(edges, pairs.spread.expand(len(ends), -1, -1), ends)
        return pairs.gather @ self._messages(edges)


class VelocityNetwork(nn.Module):
    """Appendix B's graph network: standardised inputs to standardised velocities."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        hidden = size.hidden_dim
        self.size = size
        self.element = nn.Embedding(MAX_ATOMIC_NUMBER + 1, hidden)
        self.count = nn.Embedding(MAX_ATOMS + 1, hidden)
        self.time = nn.Linear(1, size.time_dim, bias=False)
        self.embed = nn.Sequential(
            nn.Linear(hidden + size.time_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )
        self.layers = nn.ModuleList(MessageLayer(size) for _ in range(size.num_layers))
        self.norm = nn.LayerNorm(hidden)
        self.coords_head = nn.Linear(hidden, 3, bias=False)
        self.lattice_head = nn.Linear(2 * hidden, LATTICE_DIM)

    def forward(
        self, elements: Tensor, coords: Tensor, lattice: Tensor, gram: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return standardised velocities: coordinates' (B, n, 3) of zero mean, lattice's (B, 6).

        Args:
            elements: atomic numbers, int64 (B, n), n at most `MAX_ATOMS`.
            coords: fractional coordinates (B, n, 3).
            lattice: standardised l (B, 6).
            gram: scalar products of the lattice vectors (B, 3, 3).
            time: t (B,).
        """
        num_atoms = elements.shape[-1]
        count = self.count(torch.full_like(elements[:, 0], num_atoms))
        crystal = torch.cat([count, lattice], dim=-1)
        moment = self.time(time.unsqueeze(-1)).unsqueeze(-2).expand(-1, num_atoms, -1)
        nodes = self.embed(torch.cat([self.element(elements), moment], dim=-1))  # equation 10
        pairs = self._pairs(coords, gram)
        # torch compiles anew for each size that is 0 or 1, until it gives up on all sizes.
        few = min(len(elements), num_atoms * (num_atoms - 1) // 2) < 2
        for layer in self.layers:
            nodes = (layer.forward if few else layer)(nodes, crystal, pairs)
        nodes = self.norm(nodes)
        pooled = torch.cat([nodes.mean(dim=-2), nodes.sum(dim=-2)], dim=-1)
        return remove_mean(self.coords_head(nodes)), self.lattice_head(pooled)  # 14 and 15

    def _pairs(self, coords: Tensor, gram: Tensor) -> PairFeatures:
        first, second = _pair_indices(coords.shape[-2], coords.device)
        displacement = coords[:, second] - coords[:, first]
        sines, cosines = sinusoidal_embedding(displacement, self.size.num_frequencies)
        angles = edge_angles(displacement, gram)
        incidence = _incidence(coords.shape[-2], coords.device, sines.dtype)
        return PairFeatures(cosines, torch.cat([sines, angles], dim=-1), *incidence)

    def compile_layers(self) -> None:
        """Let torch compile the layers, for all numbers of crystals and of atoms together.

        It makes one graph for the first layer and one for the others, and both once more where the
        first batch has two sizes that happen to be equal (five atoms have twice as many pairs).
        Single crystals, and crystals of one or two atoms, go through the plain layers.
        """
        for layer in self.layers:
            layer.compile(dynamic=True)


class VelocityField(nn.Module):
    """The velocity v(c_t, t) in the units of the target: the network between its scalings."""

    def __init__(
        self, size: NetworkSize, bounds: AngleBounds, standardization: Standardization
    ) -> None:
        super().__init__()
        self.network = VelocityNetwork(size)
        self.bounds = bounds
        for name, value in vars(standardization).items():
            self.register_buffer(name, torch.tensor(value))

    def forward(
        self, elements: Tensor, coords: Tensor, lattice: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the velocities of coordinates (B, n, 3), zero mean, and of lattices (B, 6).

        Args:
            elements: atomic numbers, int64 (B, n).
            coords: fractional coordinates (B, n, 3).
            lattice: l of `manifold.lattice_vector` (B, 6).
            time: t (B,).
        """
        gram = gram_matrix(*lattice_parameters(lattice, self.bounds))
        scaled = (lattice - self.lattice_mean) / self.lattice_std
        coords_out, lattice_out = self.network(elements, coords, scaled, gram, time)
        return (
            self.coords_velocity_std * coords_out,
            self.lattice_velocity_mean + self.lattice_velocity_std * lattice_out,
        )
