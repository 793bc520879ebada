"""The velocity network as appendix B describes it, with a list of edges.

`flowllm.rfm.network` must agree with this plain version. Crystals of any size are joined to one
graph. The inputs of each directed edge (h_i, h_j, count, lattice, sin, cos, angles) are joined and
mapped by one linear map. The weights are those of a dense network, without shared code.
"""

import math

import torch
from torch import nn
from torch.nn import functional


class ReferenceLayer(nn.Module):
    def __init__(self, dense):
        super().__init__()
        receiver, sender, update = dense.from_nodes.weight.chunk(3)
        crystal = dense.from_crystal.weight
        odd = dense.from_odd.weight
        joined = [receiver, sender, crystal, odd[:, :-3], dense.from_even.weight, odd[:, -3:]]
        self.norm = layer_norm(dense.norm)
        self.edge_mlp = nn.Sequential(
            linear(torch.cat(joined, dim=1), dense.from_crystal.bias),
            nn.SiLU(),
            linear(dense.edge_out.weight, dense.edge_out.bias),
            nn.SiLU(),
        )
        node_in = torch.cat([update, dense.from_messages.weight], dim=1)
        self.node_mlp = nn.Sequential(
            linear(node_in, dense.from_messages.bias),
            nn.SiLU(),
            linear(dense.node_out.weight, dense.node_out.bias),
            nn.SiLU(),
        )

    def forward(self, nodes, crystal_of_edge, receiver, sender, sines, cosines, angles):
        h = self.norm(nodes)
        inputs = [h[receiver], h[sender], crystal_of_edge, sines, cosines, angles]
        messages = self.edge_mlp(torch.cat(inputs, dim=1))  # equation 11
        summed = torch.zeros_like(h).index_add(0, receiver, messages)  # equation 12
        return nodes + self.node_mlp(torch.cat([h, summed], dim=1))  # equation 13


class ReferenceNetwork(nn.Module):
    """The function of a dense `VelocityNetwork`, with its weights."""

    def __init__(self, dense):
        super().__init__()
        self.frequencies = dense.size.num_frequencies
        one_hot_elements = dense.element.weight.T.contiguous()
        one_hot_counts = dense.count.weight.T.contiguous()
        self.element = linear(one_hot_elements, None)
        self.count = linear(one_hot_counts, None)
        self.time = linear(dense.time.weight, None)
        self.embed = nn.Sequential(
            linear(dense.embed[0].weight, dense.embed[0].bias),
            nn.SiLU(),
            linear(dense.embed[2].weight, dense.embed[2].bias),
        )
        self.layers = nn.ModuleList(ReferenceLayer(layer) for layer in dense.layers)
        self.norm = layer_norm(dense.norm)
        self.coords_head = linear(dense.coords_head.weight, None)
        self.lattice_head = linear(dense.lattice_head.weight, dense.lattice_head.bias)

    def forward(self, elements, coords, num_atoms, lattice, gram, time):
        """Evaluate joined crystals: elements (N,), coords (N, 3), others (B, ...)."""
        crystal = torch.repeat_interleave(torch.arange(len(num_atoms)), num_atoms)
        receiver, sender = all_edges(num_atoms.tolist())
        atom_types = functional.one_hot(elements, self.element.in_features).to(coords.dtype)
        counts = functional.one_hot(num_atoms, self.count.in_features).to(coords.dtype)
        moments = self.time(time[:, None])[crystal]
        nodes = self.embed(torch.cat([self.element(atom_types), moments], dim=1))
        shown = torch.cat([self.count(counts), lattice], dim=1)[crystal[receiver]]
        displacement = coords[sender] - coords[receiver]
        sines, cosines = self.sinusoids(displacement)
        angles = angles_to_lattice(displacement, gram[crystal[receiver]])
        for layer in self.layers:
            nodes = layer(nodes, shown, receiver, sender, sines, cosines, angles)
        nodes = self.norm(nodes)
        per_crystal = torch.split(nodes, num_atoms.tolist())
        pooled = torch.stack([torch.cat([h.mean(0), h.sum(0)]) for h in per_crystal])
        velocities = torch.split(self.coords_head(nodes), num_atoms.tolist())
        return torch.cat([v - v.mean(0) for v in velocities]), self.lattice_head(pooled)

    def sinusoids(self, displacement):
        """Return equation 16 for k = 1 ... K, per direction of the cell."""
        k = torch.arange(1, self.frequencies + 1, dtype=displacement.dtype)
        phases = torch.cat([2 * math.pi * k * displacement[:, d : d + 1] for d in range(3)], dim=1)
        return torch.sin(phases), torch.cos(phases)


def all_edges(num_atoms):
    """Return all ordered pairs of different atoms of the same crystal."""
    edges, offset = [], 0
    for n in num_atoms:
        atoms = torch.arange(offset, offset + n)
        edges.append(torch.cartesian_prod(atoms, atoms).reshape(-1, 2))
        offset += n
    edges = torch.cat(edges)
    edges = edges[edges[:, 0] != edges[:, 1]]
    return edges[:, 0], edges[:, 1]


def angles_to_lattice(displacement, gram):
    """Return cosines of edge and lattice vectors, with Cartesian vectors by Cholesky decomposition.

    A component of half a cell (within 1e-4) counts as zero, and distances below 0.01 angstrom count
    as 0.01 angstrom.
    """
    shortest = displacement - torch.round(displacement)
    shortest = torch.where(shortest.abs() > 0.5 - 1e-4, 0.0, shortest)
    vectors = torch.linalg.cholesky(gram)  # rows are the lattice vectors
    edge = torch.einsum("ed,edx->ex", shortest, vectors)
    lengths = torch.linalg.vector_norm(vectors, dim=-1)
    distance = torch.linalg.vector_norm(edge, dim=-1).clamp_min(1e-2)
    return torch.einsum("ex,edx->ed", edge, vectors) / (distance[:, None] * lengths)


def linear(weight, bias):
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    made.weight.data.copy_(weight.data)
    if bias is not None:
        made.bias.data.copy_(bias.data)
    return made


def layer_norm(dense):
    made = nn.LayerNorm(dense.weight.shape, dtype=dense.weight.dtype)
    made.load_state_dict(dense.state_dict())
    return made
