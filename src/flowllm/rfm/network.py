"""The velocity network of the paper's appendix B, computed densely.

A batch contains crystals with the same number of atoms n, so nothing is padded and every sum over
neighbors is a product with a constant 0/1 matrix. The result is that of the paper's list of edges,
which the tests use as the reference (`tests/helpers/reference_network.py`). Two parts need fewer
operations; `docs/performance.md` has the measured gain (3.0 times in training, 2.5 in sampling):

- The first linear map of the edge network acts on the concatenation of h_i, h_j, lattice, count and
  displacement. This map is the sum of one map per part. The maps of h_i and h_j are computed once
  per node, those of lattice and count once per crystal, and only that of the displacement once per
  edge.
- Cosines of the displacement f_j - f_i are even in it, sines and edge angles are odd. So edges ij
  and ji share both sums: even + odd is that of one edge, even - odd is that of the other.

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
"""Largest number of atoms that the network can embed (a one-hot vector in the public code)."""

LATTICE_DIM = 6
"""Components of a lattice vector l."""

TIE = 1e-4
"""Fraction of the cell; a component of a displacement that is this near to half a cell has two
equally near images, and counts as zero in the direction."""

MIN_DISTANCE = 1e-2
"""Angstrom; at smaller distances the direction vector shrinks to zero with the distance."""


@dataclass(frozen=True)
class NetworkSize:
    """Hyperparameters of the network, as in section `train_rfm` of the configuration."""

    hidden_dim: int
    num_layers: int
    time_dim: int
    num_frequencies: int


def bytes_per_crystal(size: NetworkSize, num_atoms: int) -> int:
    """Return an upper bound of the memory per crystal of a batch, without gradients, in float32.

    At once an edge needs its phases, sines and cosines, and four activations; an atom needs eight
    activations.
    """
    edges = num_atoms * (num_atoms - 1)
    numbers = edges * (6 * size.num_frequencies + 4 * size.hidden_dim)
    return 4 * (numbers + 8 * num_atoms * size.hidden_dim)


@dataclass(frozen=True)
class Standardization:
    """Means and standard deviations that scale inputs and outputs (appendix B).

    Coordinate velocities have one deviation for all components and no mean: their mean is zero, and
    any other scaling would break the equivariance.

    Attributes:
        lattice_mean: mean of the lattice l_t along the path (6).
        lattice_std: standard deviation of l_t (6).
        coords_velocity_std: standard deviation of the target velocities of coordinates.
        lattice_velocity_mean: mean of the target velocities of lattices (6).
        lattice_velocity_std: standard deviation of the target velocities of lattices (6).
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
        spread: matrix from nodes to edges (2 P, 2 n), see `_incidence`.
        gather: matrix from edges to nodes (n, 2 P), see `_incidence`.
    """

    even: Tensor
    odd: Tensor
    spread: Tensor
    gather: Tensor


def sinusoidal_embedding(displacement: Tensor, num_frequencies: int) -> tuple[Tensor, Tensor]:
    """Return sin(2 pi k x) and cos(2 pi k x) of displacements (..., 3), each (..., 3 K).

    This is equation 16 with k from 1 to K. The term k = 0 is the constant (0, 1), which the bias of
    the linear map contains.
    """
    # Reducing x to [-1/2, 1/2] keeps the precision of 2 pi k x for large k.
    x = displacement - displacement.round()
    k = torch.arange(1, num_frequencies + 1, dtype=x.dtype, device=x.device)
    phases = (2 * math.pi * x.unsqueeze(-1) * k).flatten(-2)
    return phases.sin(), phases.cos()


def edge_angles(displacement: Tensor, gram: Tensor) -> Tensor:
    """Return the cosines of the angles between edges and the three lattice vectors.

    The edge is the shortest displacement on the torus. A component of half a cell has no sign and
    counts as zero; otherwise rounding would decide its sign (half cells are common in crystals).

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
    """Return the atoms i and j of the pairs i < j, each (P,)."""
    with torch.inference_mode(mode=False):
        pairs = torch.triu_indices(num_atoms, num_atoms, offset=1, device=device)
        return pairs[0], pairs[1]


@lru_cache(maxsize=256)
def _incidence(num_atoms: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return 0/1 matrices that copy node terms to edges and sum messages at their receivers.

    The edges are all ij with i < j, then all ji; in edge ij node i receives from node j.

    Returns:
        The matrix from the nodes' receiver terms and sender terms to the edges (2 P, 2 n), and the
        matrix from the edges to their receivers (n, 2 P).
    """
    first, second = _pair_indices(num_atoms, device)
    with torch.inference_mode(mode=False):  # cached tensors must also work in training
        receiver, sender = torch.cat([first, second]), torch.cat([second, first])
        at_receiver = functional.one_hot(receiver, num_atoms).to(dtype)
        at_sender = functional.one_hot(sender, num_atoms).to(dtype)
        return torch.cat([at_receiver, at_sender], dim=1), at_receiver.T.contiguous()


class MessageLayer(nn.Module):
    """One round of message passing, equations 11 to 13, on layer-normalized node states."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        hidden, waves = size.hidden_dim, 3 * size.num_frequencies
        self.norm = nn.LayerNorm(hidden)
        # Parts of the first map of the edge network, and the node network's map of h.
        self.from_nodes = nn.Linear(hidden, 3 * hidden, bias=False)  # receiver, sender, update
        self.from_crystal = nn.Linear(hidden + LATTICE_DIM, hidden)  # count and lattice
        self.from_even = nn.Linear(waves, hidden, bias=False)
        self.from_odd = nn.Linear(waves + 3, hidden, bias=False)
        self.edge_out = nn.Linear(hidden, hidden)
        self.from_messages = nn.Linear(hidden, hidden)
        self.node_out = nn.Linear(hidden, hidden)
        self._initialize(hidden, 3 * hidden + LATTICE_DIM + 2 * waves + 3)

    def _initialize(self, hidden: int, edge_inputs: int) -> None:
        """Draw the weights of each part as torch draws those of the whole linear map."""
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
            crystal: embedded count and standardized lattice (B, H + 6).
            pairs: features of the displacements.
        """
        normed = self.norm(nodes)
        receiver, sender, update = self.from_nodes(normed).chunk(3, dim=-1)
        receiver = receiver + self.from_crystal(crystal).unsqueeze(-2)
        summed = self._summed_messages(receiver, sender, pairs)
        hidden = functional.silu(update + self.from_messages(summed))
        return nodes + functional.silu(self.node_out(hidden))  # equation 13

    def _messages(self, edges: Tensor) -> Tensor:
        """Apply the edge network after its first map, equation 11.

        Without gradients `edges` is overwritten, which saves memory.
        """
        inplace = not torch.is_grad_enabled()
        hidden = functional.silu(edges, inplace=inplace)
        return functional.silu(self.edge_out(hidden), inplace=inplace)

    def _summed_messages(self, receiver: Tensor, sender: Tensor, pairs: PairFeatures) -> Tensor:
        """Return the summed messages (B, n, H), equation 12."""
        even, odd = self.from_even(pairs.even), self.from_odd(pairs.odd)
        edges = torch.cat([even + odd, even - odd], dim=-2)
        ends = torch.cat([receiver, sender], dim=-2)
        edges = torch.baddbmm(edges, pairs.spread.expand(len(ends), -1, -1), ends)
        return pairs.gather @ self._messages(edges)


class VelocityNetwork(nn.Module):
    """The graph network of appendix B, from standardized inputs to standardized velocities."""

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
        """Return standardized velocities of coordinates (B, n, 3), zero mean, and lattices (B, 6).

        Args:
            elements: atomic numbers, int64 (B, n), n at most `MAX_ATOMS`.
            coords: fractional coordinates (B, n, 3).
            lattice: standardized l (B, 6).
            gram: scalar products of the lattice vectors (B, 3, 3).
            time: t (B,).
        """
        num_atoms = elements.shape[-1]
        count = self.count(torch.full_like(elements[:, 0], num_atoms))
        crystal = torch.cat([count, lattice], dim=-1)
        moment = self.time(time.unsqueeze(-1)).unsqueeze(-2).expand(-1, num_atoms, -1)
        nodes = self.embed(torch.cat([self.element(elements), moment], dim=-1))  # equation 10
        pairs = self._pairs(coords, gram)
        # torch compiles again for each size of 0 or 1, and stops compiling after several times.
        is_small = min(len(elements), num_atoms * (num_atoms - 1) // 2) < 2
        for layer in self.layers:
            nodes = (layer.forward if is_small else layer)(nodes, crystal, pairs)
        nodes = self.norm(nodes)
        pooled = torch.cat([nodes.mean(dim=-2), nodes.sum(dim=-2)], dim=-1)
        return remove_mean(self.coords_head(nodes)), self.lattice_head(pooled)  # 14 and 15

    def _pairs(self, coords: Tensor, gram: Tensor) -> PairFeatures:
        """Return the features of all pairs of atoms."""
        first, second = _pair_indices(coords.shape[-2], coords.device)
        displacement = coords[:, second] - coords[:, first]
        sines, cosines = sinusoidal_embedding(displacement, self.size.num_frequencies)
        angles = edge_angles(displacement, gram)
        incidence = _incidence(coords.shape[-2], coords.device, sines.dtype)
        return PairFeatures(cosines, torch.cat([sines, angles], dim=-1), *incidence)

    def compile_layers(self) -> None:
        """Compile the layers by torch.compile, for all numbers of crystals and atoms.

        torch compiles one graph for the first layer and one for the others. It compiles both again
        if two sizes of the first batch are equal by chance (a crystal of five atoms has ten pairs).
        Single crystals, and crystals of one or two atoms, use the layers without compilation.
        """
        for layer in self.layers:
            layer.compile(dynamic=True)


class VelocityField(nn.Module):
    """The velocity v(c_t, t) in the units of the target: the network and its scalings."""

    lattice_mean: Tensor
    lattice_std: Tensor
    coords_velocity_std: Tensor
    lattice_velocity_mean: Tensor
    lattice_velocity_std: Tensor

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
        """Return the velocities of coordinates (B, n, 3), zero mean, and lattices (B, 6).

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
