"""CHGNet with torch-sim's model interface, so that torch-sim can relax crystals in batches.

The network and its weights are those of the chgnet package. This module converts a batch of
crystals to the network's input. chgnet's own converter makes Python objects bond by bond, and its
model differentiates twice and keeps the graph of the gradient; at inference both take most of the
time. Here array operations build the graphs of a batch, and one backward pass gives forces and
stress.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import chgnet
import numpy as np
import torch
from chgnet.model.model import BatchedGraph, CHGNet
from pymatgen.optimization.neighbors import find_points_in_spheres
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

from flowllm.relax.failures import RelaxationFailure

_WEIGHTS = {
    "0.2.0": "pretrained/0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar",
    "0.3.0": "pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
}
"""Paths inside the chgnet package of the versions that are fitted to MPtrj."""

_TOLERANCE = 1e-8
"""Angstrom; tolerance on the cutoff and on an atom's distance to itself, as in chgnet."""

MIN_DISTANCE = 0.01
"""Angstrom; two atoms nearer than this overlap, and their bond has no usable direction."""

MAX_ANGLES = 100_000
"""Limit on the angles per crystal, about 1.5 GB in the network; MP-20 crystals have hundreds."""


@dataclass(frozen=True)
class NeighborGraph:
    """Bonds and angles of one crystal.

    Attributes:
        edges: int64 (num_edges, 2), center and neighbor of each directed bond.
        images: int64 (num_edges, 3), the periodic image that the neighbor is in.
        undirected: int64 (num_edges,), index of the undirected bond of each directed one.
        representatives: int64 (num_undirected,), index of one directed bond of each undirected one.
        angles: int64 (num_angles, 5), center, undirected and directed first bond, undirected and
            directed second bond.
    """

    edges: np.ndarray
    images: np.ndarray
    undirected: np.ndarray
    representatives: np.ndarray
    angles: np.ndarray


_EMPTY = np.zeros(0, dtype=np.int64)
NO_NEIGHBORS = NeighborGraph(
    _EMPTY.reshape(0, 2), _EMPTY.reshape(0, 3), _EMPTY, _EMPTY, _EMPTY.reshape(0, 5)
)


class CHGNetModel(ModelInterface):
    """CHGNet (Deng et al. 2023) as a torch-sim model: energies, forces and stresses.

    States are in float64. The network computes in float32, the precision of its training.
    """

    def __init__(self, device: torch.device, version: str = "0.3.0") -> None:
        """Load the weights of a version, which the chgnet package contains."""
        super().__init__()
        self._device = device
        self._dtype = torch.float64
        self._compute_forces = True
        self._compute_stress = True
        path = Path(chgnet.__file__).parent / _WEIGHTS[version]
        state = torch.load(path, map_location="cpu", weights_only=True)
        # As in CHGNet.load.
        bias = version == "0.2.0"
        self.network = CHGNet.from_dict(state["model"], mlp_out_bias=bias, version=version)
        self.network.to(device).eval().requires_grad_(False)
        # Energies in eV per atom of each element, added to the output of the network.
        self.element_energies = self.network.get_parameter("composition_model.fc.weight").view(-1)
        self.cutoff = float(self.network.graph_converter.atom_graph_cutoff)
        self.bond_cutoff = float(self.network.graph_converter.bond_graph_cutoff)

    def forward(self, state: SimState) -> dict[str, Any]:
        """Evaluate a batch.

        Args:
            state: n_systems crystals with n_atoms atoms in total.

        Returns:
            `energy` (n_systems,) in eV, `forces` (n_atoms, 3) in eV/angstrom, `stress`
            (n_systems, 3, 3) in eV/angstrom^3, and `failures` (`RelaxationFailure` by index in the
            batch) of the crystals that cannot be evaluated, whose numbers are meaningless.
        """
        counts = torch.zeros_like(state.cell[:, 0, 0])
        counts.index_add_(0, state.system_idx, torch.ones_like(state.positions[:, 0]))
        points, matrices = _in_main_memory(state, counts)
        atoms_of_each = np.array([len(atoms) for atoms in points])
        cells = state.row_vector_cell.to(torch.float32)
        positions = state.positions.to(torch.float32).requires_grad_(True)
        strain = torch.zeros_like(cells, requires_grad=True)
        graphs, failures = self._graphs(points, matrices)
        if len(failures) == len(graphs):
            nothing = torch.zeros_like(state.cell)
            return {
                "energy": nothing[:, 0, 0],
                "forces": torch.zeros_like(state.positions),
                "stress": nothing,
                "failures": failures,
            }
        batch = self._batch(state, graphs, atoms_of_each, positions, cells, strain)
        per_atom = self.network._compute(batch)["e"]
        energy = per_atom * counts.to(per_atom)
        references = torch.zeros_like(per_atom).index_add_(
            0, state.system_idx, self.element_energies[state.atomic_numbers.long() - 1]
        )
        gradient, strain_gradient = torch.autograd.grad(energy.sum(), (positions, strain))
        volumes = torch.linalg.det(cells).abs()
        return {
            "energy": (energy.detach() + references).to(self._dtype),
            "forces": -gradient.to(self._dtype),
            "stress": (strain_gradient / volumes[:, None, None]).to(self._dtype),
            "failures": failures,
        }

    def _graphs(
        self, points: list[np.ndarray], cells: np.ndarray
    ) -> tuple[list[NeighborGraph], dict[int, RelaxationFailure]]:
        """Find the bonds and angles of each crystal; a crystal with a failure has none."""
        graphs: list[NeighborGraph] = []
        failures: dict[int, RelaxationFailure] = {}
        for index, (atoms, cell) in enumerate(zip(points, cells, strict=True)):
            found = neighbor_graph(atoms, cell, self.cutoff, self.bond_cutoff)
            if isinstance(found, RelaxationFailure):
                failures[index] = found
                found = NO_NEIGHBORS
            graphs.append(found)
        return graphs, failures

    def _batch(
        self,
        state: SimState,
        graphs: list[NeighborGraph],
        counts: np.ndarray,
        positions: torch.Tensor,
        cells: torch.Tensor,
        strain: torch.Tensor,
    ) -> BatchedGraph:
        """Join the crystals' graphs and expand bonds and angles in the network's basis sets."""
        strained_cells = cells + cells @ strain
        positions = positions + (positions[:, None] @ strain[state.system_idx])[:, 0]
        graph = _joined(graphs, counts)
        edges, images, undirected, representatives, angles = (
            torch.from_numpy(getattr(graph, field.name)).to(self._device)
            for field in fields(NeighborGraph)
        )
        images = images.to(torch.float32)
        shifts = (images[:, None] @ strained_cells[state.system_idx[edges[:, 0]]])[:, 0]
        vectors = positions[edges[:, 0]] - positions[edges[:, 1]] - shifts
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        directions = vectors / lengths[:, None]
        bond_lengths = lengths[representatives]
        encoder = self.network.bond_basis_expansion
        angle_bases = self.network.angle_basis_expansion(
            directions[angles[:, 2]], directions[angles[:, 4]]
        )
        return BatchedGraph(
            atomic_numbers=state.atomic_numbers.long(),
            bond_bases_ag=encoder.rbf_expansion_ag(bond_lengths),
            bond_bases_bg=encoder.rbf_expansion_bg(bond_lengths),
            angle_bases=angle_bases,
            batched_atom_graph=edges,
            batched_bond_graph=angles[:, [0, 1, 3]],
            atom_owners=state.system_idx,
            directed2undirected=undirected,
            atom_positions=[],
            strains=[],
            volumes=[],
        )


def _in_main_memory(state: SimState, counts: torch.Tensor) -> tuple[list[np.ndarray], np.ndarray]:
    """Copy a batch's positions, crystal by crystal, and cells, in one transfer."""
    parts = [state.positions.detach().ravel(), state.row_vector_cell.detach().ravel(), counts]
    ends = np.cumsum([part.numel() for part in parts])[:-1]
    positions, cells, atoms = np.split(torch.cat(parts).cpu().numpy(), ends)
    points = np.split(positions.reshape(-1, 3), np.cumsum(atoms.astype(np.int64))[:-1])
    return points, cells.reshape(-1, 3, 3)


def _joined(graphs: list[NeighborGraph], counts: np.ndarray) -> NeighborGraph:
    """Join the graphs of a batch; `counts` are the numbers of atoms per crystal.

    Atoms and bonds are numbered consecutively through the batch.
    """
    first_atom = np.cumsum(counts) - counts
    num_edges = np.array([len(graph.edges) for graph in graphs])
    num_bonds = np.array([len(graph.representatives) for graph in graphs])
    firsts = (first_atom, np.cumsum(num_edges) - num_edges, np.cumsum(num_bonds) - num_bonds)
    numbered = [
        NeighborGraph(
            edges=graph.edges + atom,
            images=graph.images,
            undirected=graph.undirected + bond,
            representatives=graph.representatives + edge,
            angles=graph.angles + np.array([atom, bond, edge, bond, edge]),
        )
        for graph, atom, edge, bond in zip(graphs, *firsts, strict=True)
    ]
    names = [field.name for field in fields(NeighborGraph)]
    return NeighborGraph(*(np.concatenate([getattr(g, name) for g in numbered]) for name in names))


def neighbor_graph(
    positions: np.ndarray, cell: np.ndarray, cutoff: float, bond_cutoff: float
) -> NeighborGraph | RelaxationFailure:
    """Find the bonds up to `cutoff` and the angles between bonds up to `bond_cutoff`.

    Args:
        positions: float64 (n, 3), angstrom.
        cell: float64 (3, 3), rows are the lattice vectors.
        cutoff: angstrom.
        bond_cutoff: angstrom.

    Returns:
        The graph, or the reason why the network cannot evaluate the crystal.
    """
    points = np.ascontiguousarray(positions)
    centers, neighbors, images, distances = find_points_in_spheres(
        points,
        points,
        r=cutoff,
        pbc=np.ones(3, dtype=np.int64),
        lattice=np.ascontiguousarray(cell),
        tol=_TOLERANCE,
    )
    others = np.flatnonzero((centers != neighbors) | (distances > _TOLERANCE))
    # Angles need bonds sorted by center; a stable sort gives the same order on every run.
    order = others[np.argsort(centers[others], kind="stable")]
    distances = distances[order]
    edges = np.stack([centers[order], neighbors[order]], axis=1).astype(np.int64)
    short = np.flatnonzero(distances < bond_cutoff)
    failure = _graph_failure(edges, distances, edges[short, 0], len(points), cutoff)
    if failure is not None:
        return failure
    images = np.rint(images[order]).astype(np.int64)
    representatives, undirected = _undirected(edges, images, len(points))
    first, second = _pairs_of_one_center(edges[short, 0], len(points))
    first, second = short[first], short[second]
    angles = np.stack(
        [edges[first, 0], undirected[first], first, undirected[second], second], axis=1
    )
    return NeighborGraph(edges, images, undirected, representatives, angles)


def _graph_failure(
    edges: np.ndarray,
    distances: np.ndarray,
    short_centers: np.ndarray,
    num_atoms: int,
    cutoff: float,
) -> RelaxationFailure | None:
    """Return the reason why the network cannot evaluate a crystal with these bonds, or None.

    Args:
        edges: center and neighbor of each directed bond (num_edges, 2).
        distances: lengths of these bonds (num_edges,), angstrom.
        short_centers: centers of the bonds that form angles (num_short,).
        num_atoms: atoms of the crystal.
        cutoff: angstrom, of the bonds.
    """
    isolated = num_atoms - len(np.unique(edges[:, 0]))
    if isolated:
        detail = f"{isolated} of {num_atoms} atoms have no neighbor within {cutoff:g} angstrom"
        return RelaxationFailure("isolated_atoms", detail)
    if distances.min() < MIN_DISTANCE:
        detail = f"two atoms are {distances.min():.2g} angstrom apart, limit {MIN_DISTANCE:g}"
        return RelaxationFailure("overlapping_atoms", detail)
    degrees = np.bincount(short_centers, minlength=num_atoms)
    num_angles = int((degrees * (degrees - 1)).sum())
    if num_angles > MAX_ANGLES:
        return RelaxationFailure(
            "too_dense", f"{num_angles} angles between bonds, limit {MAX_ANGLES}"
        )
    return None


def _undirected(
    edges: np.ndarray, images: np.ndarray, num_atoms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Number the undirected bonds; (i, j, image) and (j, i, -image) are the same bond.

    Returns:
        `representatives` and `undirected` of `NeighborGraph`.
    """
    base = 2 * int(np.abs(images).max(initial=0)) + 1
    weights = base ** np.arange(3)
    shift = images @ weights
    offset = weights.sum() * (base // 2)
    span = base**3
    forward = (edges[:, 0] * num_atoms + edges[:, 1]) * span + shift + offset
    backward = (edges[:, 1] * num_atoms + edges[:, 0]) * span - shift + offset
    _, representatives, undirected = np.unique(
        np.minimum(forward, backward), return_index=True, return_inverse=True
    )
    return representatives, undirected


def _pairs_of_one_center(centers: np.ndarray, num_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all ordered pairs of different bonds with the same center.

    Args:
        centers: center of each bond (num_bonds,), sorted.
        num_atoms: atoms of the crystal.

    Returns:
        Indices of the first and of the second bond, each (num_pairs,).
    """
    degrees = np.bincount(centers, minlength=num_atoms)
    starts = np.concatenate([[0], np.cumsum(degrees)])[:-1]
    repeats = degrees[centers]
    first = np.repeat(np.arange(len(centers)), repeats)
    within = np.arange(len(first)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    second = starts[centers[first]] + within
    different = first != second
    return first[different], second[different]
