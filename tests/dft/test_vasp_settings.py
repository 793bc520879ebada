"""A run with other settings than its inputs has a status of its own, and no energy."""

import hashlib

import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp import Poscar
from pymatgen.io.vasp.sets import MPRelaxSet

from flowllm.dft.results import read_run
from flowllm.dft.runs import RequestedRun, RunProblem

from vasp_runs import IRON_CELL, Step, made_run  # isort: skip

ASKED = RequestedRun("MPRelaxSet", ["Fe_pv", "O"])
DONE = [Step(-17.0), Step(-17.0005)]


def read(tmp_path, asked=ASKED, **settings):
    (tmp_path / "vasprun.xml").write_text(made_run(DONE, **settings))
    return read_run(tmp_path, asked)


HARMLESS = [
    {},
    {"ALGO": "Normal", "NCORE": 4, "KPAR": 2, "LREAL": "False", "NELM": 200, "SYMPREC": 1e-8},
    {"ISMEAR": 0, "SIGMA": 0.1, "POTIM": 0.1, "ISTART": 1, "ICHARG": 1, "ADDGRID": True},
    {"ENCUT": 520.004, "LDAUU": [5.3, 0], "LDAUTYPE": [2], "PREC": "accura"},
    {"mesh": (8, 8, 8), "potcars": ("PAW_PBE Fe_pv 02Aug2007", "PAW_PBE O 08Apr2002")},
    {"GGA": "PE", "EDIFF": 1e-6},
]


@pytest.mark.parametrize("settings", HARMLESS)
def test_what_changes_no_energy_is_taken(tmp_path, settings):
    run = read(tmp_path, **settings)
    assert (run.energy, run.shortfall) == (-17.0005, None)


OTHER = [
    (
        {"potcars": ("PAW_PBE Fe 06Sep2000", "PAW_PBE O 08Apr2002")},
        "POTCAR = Fe, O, expected Fe_pv",
    ),
    ({"potcars": ("PAW_PBE Fe_pv 06Sep2000", "PAW_PBE O_s 07Sep2000")}, "POTCAR = Fe_pv, O_s"),
    ({"ENCUT": 400.0}, "ENCUT = 400 eV, expected 520 (MPRelaxSet)"),
    ({"ENCUT": 600.0}, "ENCUT = 600 eV, expected 520"),
    ({"LDAUU": [4.0, 0.0]}, "U of Fe = 4 eV (l = 2), expected 5.3 eV (l = 2)"),
    ({"LDAUJ": [1.0, 0.0]}, "U of Fe = 4.3 eV"),
    ({"LDAUU": [5.3, 2.0]}, "U of O = 2 eV"),
    ({"LDAUL": [3, 0]}, "U of Fe = 5.3 eV (l = 3)"),
    ({"LDAUTYPE": 1}, "LDAUTYPE = 1, expected 2"),
    ({"LDAU": False}, "U of Fe = none, expected 5.3 eV"),
    ({"LDAU": None, "LDAUU": None, "LDAUL": None, "LDAUJ": None}, "U of Fe = none"),
    ({"LDAUL": [2]}, "does not have one number per element (Fe, O)"),
    ({"ISPIN": 1}, "ISPIN = 1, expected 2"),
    ({"LASPH": False}, "LASPH = off, expected on"),
    ({"PREC": "Normal"}, "PREC = normal, expected Accurate"),
    ({"PREC": "Low"}, "PREC = low"),
    ({"mesh": (1, 1, 1)}, "k-points = 1x1x1, expected 9x9x9"),
    ({"NELECT": 27.0}, "NELECT = 27 is set"),
    ({"PSTRESS": 50.0}, "PSTRESS = 50 kbar"),
    ({"LSORBIT": True}, "LSORBIT is on"),
    ({"ICHARG": 11}, "not self-consistent"),
    ({"IALGO": 3}, "not self-consistent"),
]


@pytest.mark.parametrize(("settings", "said"), OTHER)
def test_other_settings_are_named_with_what_was_expected(tmp_path, settings, said):
    with pytest.raises(RunProblem) as caught:
        read(tmp_path, **settings)
    assert caught.value.status == "other_settings"
    assert said in str(caught.value)
    # Where the manifest names no input set, the INCAR in the folder is compared.
    structure = Structure(Lattice.cubic(2 * IRON_CELL), ["Fe", "O"], [[0] * 3, [0.5] * 3])
    (tmp_path / "INCAR").write_text(str(MPRelaxSet(structure).incar))
    if "mesh" not in settings:
        with pytest.raises(RunProblem) as caught:
            read_run(tmp_path, RequestedRun(None, ["Fe_pv", "O"]))
        assert caught.value.status == "other_settings"


def test_all_differences_are_named(tmp_path):
    with pytest.raises(RunProblem, match=r"ENCUT = 400.*U of Fe = 4 eV.*PREC = low"):
        read(tmp_path, ENCUT=400.0, LDAUU=[4.0, 0.0], PREC="Low")


@pytest.mark.parametrize(
    "settings",
    [
        {"GGA": "PS"},
        {"GGA": "91"},
        {"METAGGA": "R2SCAN"},
        {"IVDW": 11},
        {"LVDW": True},
        {"LMETAGGA": True},
        {"potcars": ("PAW Fe_pv 03Mar1998", "PAW O 22Mar2012")},
        {"potcars": ("PAW_GGA Fe_pv 05Jan2001", "PAW_PBE O 08Apr2002")},
    ],
)
@pytest.mark.parametrize("asked", [ASKED, RequestedRun()])
def test_another_functional(tmp_path, settings, asked):
    with pytest.raises(RunProblem) as caught:
        read(tmp_path, asked, **settings)
    assert caught.value.status == "wrong_functional"


def test_a_gga_run_in_a_folder_of_the_newer_set(tmp_path):
    with pytest.raises(RunProblem, match="METAGGA = not set, expected R2SCAN") as caught:
        read(tmp_path, RequestedRun("MPScanRelaxSet", ["Fe_pv", "O"]), ENCUT=680.0)
    assert caught.value.status == "other_settings"


def written(tmp_path, scale=1.0):
    """Write FeO's POSCAR as `dft_inputs` does, and return its hash."""
    a = scale * IRON_CELL
    cell = Lattice([[0, a, a], [a, 0, a], [a, a, 0]])
    text = Poscar(Structure(cell, ["Fe", "O"], [[0] * 3, [0.5] * 3])).get_str()
    (tmp_path / "POSCAR").write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


STATIC = {"NSW": 0, "IBRION": -1}


@pytest.mark.parametrize("settings", [STATIC, {"IBRION": -1}])
def test_a_static_run_of_the_inputs_is_an_upper_bound(tmp_path, settings):
    """The crystal of the inputs is the potential's, which the input set relaxes."""
    asked = RequestedRun("MPRelaxSet", ["Fe_pv", "O"], written(tmp_path))
    run = read(tmp_path, asked, **settings)
    assert (run.energy, run.converged_ionic) == (-17.0005, False)
    assert "a static run of the structure of the inputs, MPRelaxSet relaxes it" in run.shortfall
    # A relaxation of the same crystal is what was requested.
    assert read(tmp_path, asked).converged_ionic


def test_a_static_run_after_a_relaxation_is_taken(tmp_path):
    first = written(tmp_path, scale=1.03)
    asked = RequestedRun("MPRelaxSet", ["Fe_pv", "O"], first)
    assert read(tmp_path, asked, **STATIC).converged_ionic
    # A user has put the relaxed structure in the place of the first one.
    written(tmp_path)
    assert read(tmp_path, asked, **STATIC).converged_ionic
    # A static set is not relaxed.
    asked = RequestedRun("MPStaticSet", ["Fe_pv", "O"], written(tmp_path))
    assert read(tmp_path, asked, **STATIC).converged_ionic


def test_a_vasp_run_in_a_folder_of_another_code(tmp_path):
    with pytest.raises(RunProblem, match=r"vasprun\.xml is from VASP, expected .* GPAWStatic"):
        read(tmp_path, RequestedRun("GPAWStatic", ["Fe.PBE", "O.PBE"]))


def test_without_inputs_nothing_is_compared(tmp_path):
    (tmp_path / "INCAR").write_bytes(b"\xff\x00 no INCAR")
    assert read(tmp_path, RequestedRun(), ENCUT=400.0, LDAUU=[4.0, 0.0]).energy == -17.0005


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ISIF": 2}, "ISIF = 2 fixes a part of the crystal"),
        ({"fixed": ["T T T", "F F F"]}, "selective dynamics fixes atoms"),
        ({"EDIFFG": 0.01}, "EDIFFG = 0.01 is looser than 0.001"),
        ({"EDIFFG": -0.5}, "EDIFFG = -0.5 is looser"),
    ],
)
def test_less_relaxed_than_the_set_asks_is_an_upper_bound(tmp_path, settings, said):
    run = read(tmp_path, **settings)
    assert not run.converged_ionic
    assert said in run.shortfall
    assert read(tmp_path, RequestedRun(), **settings).converged_ionic
