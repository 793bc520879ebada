"""Machine-learned potentials by name, all with torch-sim's model interface.

CHGNet is always installed. The others are optional extras: torch-sim wraps each project's own
package, loaded with the weights that the project publishes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch_sim.models.interface import ModelInterface

from flowllm.errors import FlowllmError

_IN_MATERIALS_PROJECT = frozenset([*range(1, 84), *range(89, 95)])
"""Atomic numbers of the 89 elements in the training data of these networks. The data has no element
from polonium to radium and none beyond plutonium. CHGNet has weights for polonium to radium, but
they still have their initial values (tests/relax/test_potential.py)."""


@dataclass(frozen=True)
class LoadedPotential:
    """A loaded potential.

    Attributes:
        model: torch-sim model; its output may contain `failures`, a `RelaxationFailure` by index in
            the batch for each crystal that it cannot evaluate.
        known_elements: atomic numbers that it was fitted to.
    """

    model: ModelInterface
    known_elements: frozenset[int]


def _chgnet(device: torch.device) -> LoadedPotential:
    from flowllm.relax.chgnet import CHGNetModel

    return LoadedPotential(CHGNetModel(device), _IN_MATERIALS_PROJECT)


def _chgnet_0_2_0(device: torch.device) -> LoadedPotential:
    from flowllm.relax.chgnet import CHGNetModel

    return LoadedPotential(CHGNetModel(device, "0.2.0"), _IN_MATERIALS_PROJECT)


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
    "chgnet-0.2.0": _chgnet_0_2_0,
    "mace": _mace,
    "mattersim": _mattersim,
    "sevennet": _sevennet,
    "orb": _orb,
}
"""Loaders by the potential's name; each imports its packages only when it is called."""

LABELS = {
    "chgnet": "CHGNet 0.3.0",
    "chgnet-0.2.0": "CHGNet 0.2.0",
    "mace": "MACE-MPA-0 medium",
    "mattersim": "MatterSim v1.0.0 1M",
    "sevennet": "SevenNet-0 11Jul2024",
    "orb": "ORB v3 conservative inf MPA",
}
"""Names of the potentials in tables and reports, by their names in the configuration."""


def load_potential(name: str, device: torch.device, key: str = "potential.name") -> LoadedPotential:
    """Load a potential by its name in the configuration.

    Args:
        name: name in the configuration.
        device: device of the potential.
        key: key of the name, for messages.

    Raises:
        FlowllmError: the name is unknown, the potential's package is not installed, or its weights
            cannot be downloaded.
    """
    if name not in _LOADERS:
        known = ", ".join(sorted(_LOADERS))
        raise FlowllmError(f"{key}: unknown potential {name!r}; choose one of {known}")
    with _explaining_load_errors(name, key):
        return _LOADERS[name](device)


@contextmanager
def _explaining_load_errors(name: str, key: str) -> Iterator[None]:
    """Turn the errors of a missing package or missing weights into a `FlowllmError`."""
    try:
        yield
    except ImportError as error:
        raise FlowllmError(
            f"{key}: {name} needs packages that are not installed ({error}); "
            "docs/energies.md describes how to install them"
        ) from error
    # Each package downloads its weights on first use, and raises its own errors.
    except (OSError, RuntimeError) as error:
        raise FlowllmError(
            f"{key}: {name} could not be loaded ({error}); its weights are "
            "downloaded on first use, so load it once on a machine with internet access"
        ) from error
