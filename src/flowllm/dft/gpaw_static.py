"""Compute the energy of one crystal with GPAW: `python3 gpaw_static.py FOLDER`.

The script does not import flowllm. It needs a Python with GPAW and ASE (Debian packages gpaw and
gpaw-data) and also runs under MPI (`mpirun gpaw python gpaw_static.py FOLDER`). It reads
FOLDER/gpaw.json from dft_inputs, and writes FOLDER/gpaw_result.json for dft_collect.
"""

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Run one self-consistent calculation of the crystal in `folder`, without relaxation."""
    from ase import Atoms
    from gpaw import GPAW, PW, FermiDirac, KohnShamConvergenceError, __version__

    given = json.loads((folder / "gpaw.json").read_text())
    atoms = Atoms(
        numbers=given["atomic_numbers"],
        cell=given["cell"],
        scaled_positions=given["frac_coords"],
        magmoms=given["magnetic_moments"],  # always spin-polarized, as in MPRelaxSet
        pbc=True,
    )
    atoms.calc = GPAW(
        mode=PW(given["cutoff_ev"]),
        xc=given["xc"],
        kpts={"size": given["kpoints"], "gamma": True},
        occupations=FermiDirac(0.05),
        txt=str(folder / "gpaw.txt"),
    )
    try:
        energy, converged = atoms.get_potential_energy(), True
    except KohnShamConvergenceError:
        energy, converged = 0.0, False
    result = {**given, "energy": float(energy), "converged": converged, "version": __version__}
    if atoms.calc.wfs.world.rank == 0:
        temporary = folder / ".gpaw_result.json.tmp"
        temporary.write_text(json.dumps(result, indent=1))
        temporary.replace(folder / "gpaw_result.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
