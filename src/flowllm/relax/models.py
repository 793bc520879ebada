"""Machine-learned potentials by name, all behind torch-sim's model interface.

CHGNet comes with the package. The others are optional extras: their networks are torch-sim's
wrappers around each project's own package, loaded with the weights that project publishes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch_sim.models.interface import ModelInterface

from flowllm.errors import FlowllmError

_IN_MATERIALS_PROJECT = frozenset([*range(1, 84), *range(89, 95)])
"""The 89 elements, by atomic number, of the data these networks were fitted to: none from polonium
to radium, none beyond plutonium. CHGNet has weights for polonium to radium too, but they are those
that it started its training with (tests/relax/test_potential.py)."""


@dataclass(frozen=True)
class LoadedPotential:
    """A potential that is ready to evaluate crystals.

    Attributes:
        model: as torch-sim takes it; its output may hold `failures`, a `RelaxationFailure` by place
            in the batch for each crystal it cannot evaluate.
        known_elements: atomic numbers it was fitted to.
    """

    model: ModelInterface
    known_elements: frozenset[int]


def _chgnet(device: torch.device) -> LoadedPotential:
    from flowllm.relax.chgnet import CHGNetModel

    return LoadedPotential(CHGNetModel(device), _IN_MATERIALS_PROJECT)


def _mace(device: torch.device) -> LoadedPotential:
    from mace.calculators import mace_mp
    from torch_sim.models.mace import MaceModel

    network = mace_mp(
        "medium-mpa-0", device=str(device), default_dtype="float64", return_raw_model=True
    )
    model = MaceModel(network, device=device, dtype=torch.float64)
    return LoadedPotential(model, frozenset(model.z_table.zs))


def _mattersim(device: torch.device) -> LoadedPotential:
    from mattersim.forcefield import Potential as MatterSim
    from torch_sim.models.mattersim import MatterSimModel

    network = MatterSim.from_checkpoint(
        "mattersim-v1.0.0-1m", load_training_state=False, device=str(device)
    )
    return LoadedPotential(MatterSimModel(network, device=device), _IN_MATERIALS_PROJECT)


def _sevennet(device: torch.device) -> LoadedPotential:
    from sevenn.util import load_checkpoint
    from torch_sim.models.sevennet import SevenNetModel

    network = load_checkpoint("7net-0_11July2024").build_model("e3nn")
    return LoadedPotential(SevenNetModel(network, device=device), frozenset(network.type_map))


def _orb(device: torch.device) -> LoadedPotential:
    from orb_models.forcefield import pretrained
    from torch_sim.models.orb import OrbModel

    network = pretrained.orb_v3_conservative_inf_mpa(
        device=device, precision="float32-high", compile=False
    )
    return LoadedPotential(OrbModel(network, device=device), _IN_MATERIALS_PROJECT)


_LOADERS: dict[str, Callable[[torch.device], LoadedPotential]] = {
    "chgnet": _chgnet,
    "mace": _mace,
    "mattersim": _mattersim,
    "sevennet": _sevennet,
    "orb": _orb,
}
"""How each potential is loaded; its packages are imported only then."""

LABELS = {
    "chgnet": "CHGNet 0.3.0",
    "mace": "MACE-MPA-0 medium",
    "mattersim": "MatterSim v1.0.0 1M",
    "sevennet": "SevenNet-0 11Jul2024",
    "orb": "ORB v3 conservative inf MPA",
}
"""What a potential's energies are called in tables and reports."""


def load_potential(name: str, device: torch.device) -> LoadedPotential:
    """Load the potential of a name.

    Raises:
        FlowllmError: there is no such potential, its package is not installed, or its weights
            cannot be fetched.
    """
    if name not in _LOADERS:
        raise FlowllmError(f"potential.name: no potential {name!r}; there are {sorted(_LOADERS)}")
    with _naming_what_is_missing(name):
        return _LOADERS[name](device)


@contextmanager
def _naming_what_is_missing(name: str) -> Iterator[None]:
    """Say what to do where a package or its weights are missing."""
    try:
        yield
    except ImportError as error:
        raise FlowllmError(
            f"potential.name: {name} needs packages that are not installed ({error}); "
            "docs/energies.md tells how to install it"
        ) from error
    # The packages fetch their weights on first use, each in its way.
    except (OSError, RuntimeError) as error:
        raise FlowllmError(
            f"potential.name: {name} could not be loaded ({error}); its weights are fetched on "
            "first use, so load it once on a machine with internet access"
        ) from error
