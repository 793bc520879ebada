"""dft_inputs: folders with the inputs of pymatgen's sets, one manifest row per relaxed row."""

import errno
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pymatgen.io.pwscf import PWInput
from pymatgen.io.vasp import Incar, Kpoints, Poscar
from pymatgen.io.vasp.sets import MPRelaxSet

from crystals import fcc, perovskite, rocksalt
from energy_rows import relaxed_row, settings
from flowllm.dft.inputs import folder_name, missing_pseudopotentials
from flowllm.dft.selection import n_ary_weights
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import dft_collect, dft_inputs
from slurm_cluster import missing_programs, slurm_cluster

ROWS = [
    relaxed_row(rocksalt(), "base-000000", -3.4),
    relaxed_row(None, "base-000001"),
    relaxed_row(fcc("Po", 3.3), "base-000002", -1.0),
    relaxed_row(perovskite("Sr", "Fe"), "base-000003", -6.0),
    relaxed_row(fcc(), "base-000004", -4.0),
]
DISTANCES = [0.02, None, 0.0, 0.3, -0.01]


@pytest.fixture(autouse=True)
def _no_pseudopotentials(monkeypatch):
    """Ignore POTCARs in the user's configuration of pymatgen."""
    monkeypatch.setattr("flowllm.dft.inputs.SETTINGS", {})


def run(
    tmp_path,
    rows=ROWS,
    distances=DISTANCES,
    compounds=None,
    code="vasp",
    per_crystal=(),
    **changes,
):
    relaxed, stability = tmp_path / "relaxed.parquet", tmp_path / "stability.parquet"
    tables.write_table(relaxed, rows, schemas.RELAXED, {})
    stable = [
        {
            "id": row["id"],
            "e_above_hull": distance,
            "hull_compounds": number,
            "status": row["status"],
        }
        for row, distance, number in zip(
            rows, distances, compounds or [None] * len(rows), strict=True
        )
    ]
    tables.write_table(stability, stable, schemas.STABILITY, {})
    out = tmp_path / "dft_inputs" / "manifest.parquet"
    given = settings("dft_inputs", dft={"code": code}, dft_inputs=changes)
    dft_inputs.run(given, relaxed=[relaxed], stability=stability, out=out, per_crystal=per_crystal)
    return out, tables.read_table(out, schemas.DFT_MANIFEST).to_pylist()


def test_every_relaxed_row_has_a_row_with_a_folder_or_a_reason(tmp_path):
    out, rows = run(tmp_path)
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    statuses = ["ok", "bad_number", "no_pseudopotential", "ok", "ok"]
    assert [row["status"] for row in rows] == statuses
    assert rows[2]["error"] == "MPRelaxSet has no pseudopotential for Po"
    for row in rows:
        assert (row["path"] is not None) == (row["status"] == "ok")
    counts = read_provenance(out)["counts"]
    assert counts["without_folder"] == {"bad_number": 1, "no_pseudopotential": 1}
    assert (counts["rows_in"], counts["rows_out"]) == (5, 3)


def test_a_crystal_with_an_implausible_energy_is_not_computed(tmp_path):
    run(tmp_path)
    path = tmp_path / "stability.parquet"
    placed = tables.read_table(path, schemas.STABILITY).to_pylist()
    placed[0] |= {"status": "implausible_energy", "error": "-40 eV/atom", "e_above_hull": None}
    tables.write_table(path, placed, schemas.STABILITY, {})
    out, given = tmp_path / "again" / "manifest.parquet", settings("dft_inputs")
    dft_inputs.run(given, relaxed=[tmp_path / "relaxed.parquet"], stability=path, out=out)
    rows = tables.read_table(out, schemas.DFT_MANIFEST).to_pylist()
    assert rows[0]["path"] is None
    assert (rows[0]["status"], rows[0]["error"]) == ("implausible_energy", "-40 eV/atom")
    assert rows[0]["reason"] == "implausible_energy: -40 eV/atom"
    assert rows[3]["status"] == "ok"


NOT_IN_THE_PAPERS_SET = ("Po", "At", "Rn", "Fr", "Ra", "Am", "Cm", "Cf")


@pytest.mark.parametrize("input_set", ["MPRelaxSet", "MPStaticSet"])
def test_elements_without_pseudopotential(input_set):
    for symbol in (*NOT_IN_THE_PAPERS_SET, "Bk"):
        assert missing_pseudopotentials(fcc(symbol), input_set) == [symbol]
    for symbol in ("H", "Xe", "Bi", "Ac", "Th", "U", "Np", "Pu"):
        assert missing_pseudopotentials(fcc(symbol), input_set) == []


def test_the_newer_set_has_more_pseudopotentials():
    for symbol in NOT_IN_THE_PAPERS_SET:
        assert missing_pseudopotentials(fcc(symbol), "MPScanRelaxSet") == []
    assert missing_pseudopotentials(fcc("Bk"), "MPScanRelaxSet") == ["Bk"]


def test_the_folder_holds_what_pymatgens_set_makes(tmp_path):
    out, rows = run(tmp_path)
    folder = out.parent / rows[3]["path"]
    assert sorted(p.name for p in folder.iterdir()) == ["INCAR", "KPOINTS", "POSCAR", "POTCAR.spec"]
    crystal = tables.crystal_of(ROWS[3])
    expected = MPRelaxSet(crystal.to_structure())
    incar = Incar.from_file(folder / "INCAR")
    assert incar == expected.incar
    # Values of the set for an iron oxide: +U, and high-spin initial moments.
    assert incar["LDAUU"] == [0, 5.3, 0]
    assert incar["MAGMOM"] == [0.6, 5.0, 0.6, 0.6, 0.6]
    assert Kpoints.from_file(folder / "KPOINTS").kpts == expected.kpoints.kpts
    structure = Poscar.from_file(folder / "POSCAR").structure
    assert structure.composition == crystal.to_structure().composition
    np.testing.assert_allclose(structure.lattice.abc, crystal.lengths, atol=1e-5)
    spec = (folder / "POTCAR.spec").read_text().split()
    assert spec == rows[3]["potcar_symbols"] == ["Sr_sv", "Fe_pv", "O"]
    assert re.fullmatch(r"pymatgen \d+\.\d+\.\d+", rows[3]["input_set_version"])


@pytest.mark.parametrize("input_set", ["MPRelaxSet", "MPScanRelaxSet", "MPStaticSet"])
def test_each_input_set(tmp_path, input_set):
    out, rows = run(tmp_path, [ROWS[0]], [0.0], input_set=input_set)
    assert rows[0]["input_set"] == input_set
    incar = Incar.from_file(out.parent / rows[0]["path"] / "INCAR")
    assert ("METAGGA" in incar) == (input_set == "MPScanRelaxSet")
    assert (incar["NSW"] == 0) == (input_set == "MPStaticSet")


def test_gpaw_inputs(tmp_path):
    out, rows = run(tmp_path, code="gpaw", kpoint_density=64.0)
    given = json.loads((out.parent / rows[3]["path"] / "gpaw.json").read_text())
    structure = tables.crystal_of(ROWS[3]).to_structure()
    assert given["atomic_numbers"] == list(structure.atomic_numbers)
    np.testing.assert_allclose(given["cell"], structure.lattice.matrix)
    assert given["cutoff_ev"] == 520
    # Mesh and initial moments of MPRelaxSet for the same cell; iron is in high spin.
    assert given["kpoints"] == list(MPRelaxSet(structure).kpoints.kpts[0])
    assert given["magnetic_moments"] == [0.6, 5.0, 0.6, 0.6, 0.6]
    assert rows[3]["potcar_symbols"] == ["Sr.PBE", "Fe.PBE", "O.PBE"]
    assert rows[3]["input_set"] == "GPAWStatic"
    assert rows[2]["error"] == "GPAWStatic has no pseudopotential for Po"


def test_quantum_espresso_inputs(tmp_path):
    out, rows = run(tmp_path, code="espresso")
    found = PWInput.from_file(out.parent / rows[3]["path"] / "pw.in")
    crystal = tables.crystal_of(ROWS[3])
    assert found.structure.composition == crystal.to_structure().composition
    np.testing.assert_allclose(found.structure.lattice.abc, crystal.lengths, atol=1e-5)
    assert found.sections["control"]["calculation"] == "vc-relax"
    assert found.sections["system"]["ecutwfc"] == pytest.approx(520 / 13.605693, abs=1e-3)
    assert rows[3]["input_set"] == "EspressoRelax"
    assert rows[3]["potcar_symbols"] == ["Sr.UPF", "Fe.UPF", "O.UPF"]


def run_task(root, task, **variables):
    """Run one line of the list as SLURM does, with `echo` in place of VASP."""
    environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": str(task)}
    environment |= {"VASP_COMMAND": "echo ran"} | variables
    subprocess.run(["bash", "job_array.sh"], cwd=root, env=environment, check=True)


WHOLE = b"<modeling>\n</modeling>\n"


@pytest.mark.parametrize(
    "finished",
    [
        {"vasprun.xml": WHOLE},
        {"vasprun.xml.gz": gzip.compress(WHOLE)},
        {"vasprun.xml.relax1": WHOLE, "vasprun.xml.relax2": WHOLE},
        {"vasprun.xml.relax1.gz": b"", "vasprun.xml.relax2.gz": gzip.compress(WHOLE)},
    ],
)
def test_scripts_run_each_folder_once(tmp_path, finished):
    """The array's task for a line calls DFT in that folder; finished runs are skipped."""
    out, rows = run(tmp_path)
    folders = (out.parent / "folders.txt").read_text().splitlines()
    assert folders == [row["path"] for row in rows if row["path"]]
    for folder in folders:
        (out.parent / folder / "POTCAR").write_text("made by the user")
    for name, content in finished.items():
        (out.parent / folders[1] / name).write_bytes(content)
    for task in range(1, 4):
        run_task(out.parent, task)
    ran = [(out.parent / folder / "vasp.out").exists() for folder in folders]
    assert ran == [True, False, True]


def test_an_offset_leads_beyond_the_largest_index(tmp_path):
    """SLURM limits the index itself, to MaxArraySize - 1."""
    out, rows = run(tmp_path)
    folders = [out.parent / row["path"] for row in rows if row["path"]]
    for folder in folders:
        (folder / "POTCAR").write_text("made by the user")
    run_task(out.parent, 1, OFFSET="2")
    assert [(folder / "vasp.out").exists() for folder in folders] == [False, False, True]
    with pytest.raises(subprocess.CalledProcessError):
        run_task(out.parent, 2, OFFSET="2")


@pytest.mark.parametrize(
    "unfinished",
    [{"vasprun.xml": b"<modeling>\n"}, {"vasprun.xml": WHOLE, "vasprun.xml.relax1": WHOLE}],
)
def test_a_run_that_was_cut_short_goes_on_and_its_result_is_kept(tmp_path, unfinished):
    """A run is killed twice, in its course or between the legs of custodian's relaxation."""
    out, rows = run(tmp_path)
    folder = out.parent / rows[0]["path"]
    (folder / "POTCAR").write_text("made by the user")
    (folder / "CONTCAR").write_text("further")
    for attempt in (1, 2):
        for name, content in unfinished.items():
            (folder / name).write_bytes(content)
        run_task(out.parent, 1)
        assert (folder / "vasp.out").read_text() == "ran\n"
        assert (folder / "POSCAR").read_text() == "further"
        assert (folder / f"vasprun.xml.cut{attempt}").read_bytes() == unfinished["vasprun.xml"]
        assert not (folder / "vasprun.xml").exists()


def test_slurm_runs_the_array(tmp_path):
    """One task per line of the list, in a real SLURM, with a program in place of VASP."""
    if missing := missing_programs():
        pytest.skip(f"not installed: {', '.join(missing)} (packages: see .ci/run)")
    out, _ = run(tmp_path / "run")
    folders = (out.parent / "folders.txt").read_text().splitlines()
    for folder in folders:
        (out.parent / folder / "POTCAR").write_text("made by the user")
    with slurm_cluster(tmp_path / "slurm") as conf:
        environment = {"PATH": os.environ["PATH"], "SLURM_CONF": str(conf)}
        command = ["sbatch", "--wait", f"--array=1-{len(folders)}", "--ntasks=1", "job_array.sh"]
        subprocess.run(
            command,
            cwd=out.parent,
            env=environment | {"VASP_COMMAND": "sed -n 1p POSCAR"},
            check=True,
            timeout=120,
        )
    outputs = [(out.parent / folder / "vasp.out").read_text().split() for folder in folders]
    # The POSCAR's first line is the formula.
    assert outputs == [["Na1", "Cl1"], ["Sr1", "Fe1", "O3"], ["Cu1"]]


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({"selection": "all"}, [0, 3, 4]),
        ({"selection": "all", "max_crystals": 1}, [0, 3, 4]),
        ({"selection": "first", "max_crystals": 2}, [0, 3]),
        ({"selection": "e_above_hull", "max_e_above_hull": 0.1}, [0, 4]),
        # Nearest to the hull first.
        ({"selection": "e_above_hull", "max_e_above_hull": 0.1, "max_crystals": 1}, [4]),
    ],
)
def test_selection(tmp_path, changes, chosen):
    _, rows = run(tmp_path, **changes)
    assert [n for n, row in enumerate(rows) if row["path"]] == chosen
    for place in {0, 3, 4} - set(chosen):
        assert rows[place]["status"] == "not_selected"
        assert f"{DISTANCES[place]:.3f} eV/atom" in rows[place]["error"]


def write_matches(tmp_path, matches):
    """Write metrics per crystal: class, novelty and known crystal by number of the row."""
    flags = [field.name for field in schemas.METRICS_PER_CRYSTAL if field.type == "bool"]
    rows = [
        dict.fromkeys(flags, False)
        | {"id": row["id"], "duplicate_group": group, "novel": novel, "matched_material_id": known}
        for row, (group, novel, known) in zip(ROWS, matches, strict=True)
    ]
    path = tmp_path / "per_crystal.parquet"
    tables.write_table(path, rows, schemas.METRICS_PER_CRYSTAL, {})
    return path


NO_MATCHES = [(row["id"], row["status"] == "ok", None) for row in ROWS]


def test_candidates_and_why_each_crystal_was_taken_or_not(tmp_path):
    matches = [*NO_MATCHES[:4], ("base-000004", False, "mp-30")]
    path = write_matches(tmp_path, matches)
    changes = {"selection": "candidates", "max_e_above_hull": 0.1, "control_share": 0.5}
    out, rows = run(tmp_path, per_crystal=[path], **changes)
    # Rock salt is the candidate; one of copper, which is known, and the far perovskite is drawn.
    assert rows[0]["taken_as"] == "candidate"
    assert sorted(str(rows[place]["taken_as"]) for place in (3, 4)) == ["None", "control"]
    probabilities = [row["inclusion_probability"] for row in rows]
    assert probabilities == [1.0, None, None, 0.5, 0.5]
    assert [row["leads_class"] for row in rows] == [True, None, None, True, False]
    parts = [
        "candidate 1: novel",
        "bad_number: line 1: 'x' is not a number",
        "no_pseudopotential: MPRelaxSet has no pseudopotential for Po",
        "e_above_hull 0.300 eV/atom is not within 0.1",
        "known, matches mp-30",
    ]
    for row, part in zip(rows, parts, strict=True):
        assert part in row["reason"]
        assert (row["path"] is None) == (row["taken_as"] is None)
    assert read_provenance(out)["counts"]["taken_as"] == {"candidate": 1, "control": 1}
    collected = tmp_path / "dft.parquet"
    dft_collect.run(settings("dft_collect"), manifest=out, out=collected)
    columns = ["id", "taken_as", "inclusion_probability", "leads_class"]
    results = tables.read_table(collected, schemas.DFT_RESULTS, columns).to_pylist()
    assert results == [{name: row[name] for name in columns} for row in rows]


def test_a_crystal_without_a_compound_in_the_hull_is_the_last_candidate(tmp_path):
    """Rock salt at 0.02 eV/atom, without a compound, comes after the perovskite at 0.3."""
    path = write_matches(tmp_path, NO_MATCHES)
    changes = {"selection": "candidates", "max_e_above_hull": 0.5, "control_share": 0.0}
    compounds = [0, None, None, 3, None]
    _, rows = run(tmp_path, per_crystal=[path], compounds=compounds, **changes)
    first, last = rows[3]["reason"], rows[0]["reason"]
    assert first.startswith("candidate 2: ")
    assert last.startswith("candidate 3: ")
    assert last.endswith("; the hull has no compound of its elements")


def test_candidates_without_metrics_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(FlowllmError, match="candidates needs --per-crystal"):
        run(tmp_path, selection="candidates")
    assert not (tmp_path / "dft_inputs").exists()


def test_metrics_of_other_crystals_are_refused(tmp_path):
    path = write_matches(tmp_path, NO_MATCHES)
    rows = tables.read_table(path, schemas.METRICS_PER_CRYSTAL).slice(1)
    tables.write_table(path, rows, schemas.METRICS_PER_CRYSTAL, {})
    with pytest.raises(FlowllmError, match=r"no row for id base-000000 .* run metrics again"):
        run(tmp_path, per_crystal=[path], selection="candidates")
    footer = {"stage": "metrics", "inputs": {"stability": "of another run"}}
    tables.write_table(path, rows, schemas.METRICS_PER_CRYSTAL, footer)
    with pytest.raises(FlowllmError, match="run the stage metrics again"):
        run(tmp_path, per_crystal=[path], selection="candidates")


def many_rows() -> list[dict]:
    """Return rows of 90 binary crystals and 10 elements."""
    rows = [relaxed_row(rocksalt(), f"binary-{n:03d}", -3.4) for n in range(90)]
    return rows + [relaxed_row(fcc(), f"element-{n:03d}", -4.0) for n in range(10)]


def chosen_ids(tmp_path, selection, count):
    tmp_path.mkdir()
    rows = many_rows()
    _, manifest = run(tmp_path, rows, [0.0] * len(rows), selection=selection, max_crystals=count)
    return {row["id"] for row in manifest if row["path"]}


def test_random_selections_repeat_and_grow(tmp_path):
    few = chosen_ids(tmp_path / "few", "random", 10)
    assert len(few) == 10
    assert chosen_ids(tmp_path / "again", "random", 10) == few
    assert few < chosen_ids(tmp_path / "more", "random", 20)


def test_n_ary_gives_each_number_of_elements_the_same_chance(tmp_path):
    """A uniform draw of 10 from 90 and 10 rows has 1 element on average, this one more.

    A simulation of 4,000 such draws has mean 4.5 and 1 to 8 in 99.8 % of them.
    """
    weights = n_ary_weights([row["formula"] for row in many_rows()])
    assert sum(weights[:90]) == pytest.approx(1)
    assert sum(weights[90:]) == pytest.approx(1)
    taken = chosen_ids(tmp_path / "n-ary", "n_ary", 10)
    assert 2 <= sum(name.startswith("element") for name in taken) <= 8


def test_no_directory_holds_more_than_its_share(tmp_path):
    rows = [relaxed_row(rocksalt(), f"base-{n:06d}", -3.4) for n in range(5)]
    _, manifest = run(tmp_path, rows, [0.0] * 5, folders_per_directory=2)
    assert [row["path"] for row in manifest] == [f"{n // 2:05d}/base-{n:06d}" for n in range(5)]


def test_another_selection_leaves_the_folders_in_place(tmp_path):
    """Finished runs are found again when the sample grows."""
    rows = [relaxed_row(rocksalt(), f"base-{n:06d}", -3.4) for n in range(8)]
    given = {"selection": "random", "folders_per_directory": 2}
    paths = []
    for number in (2, 5):
        _, manifest = run(tmp_path, rows, [0.0] * 8, max_crystals=number, **given)
        paths.append({row["path"] for row in manifest if row["path"]})
    assert (len(paths[0]), len(paths[1])) == (2, 5)
    assert paths[0] < paths[1]


def test_an_edited_script_stays(tmp_path, caplog):
    out, _ = run(tmp_path)
    script = out.with_name("job_array.sh")
    first = script.read_text()
    edited = first.replace("--ntasks=24", "--ntasks=4")
    script.write_text(edited)
    run(tmp_path)
    assert script.read_text() == edited
    assert script.with_name("job_array.sh.new").read_text() == first
    assert "kept, since it was edited" in caplog.text


def all_bytes(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "provenance" not in path.name
    }


def test_the_same_bytes_again_and_finished_runs_stay(tmp_path):
    out, rows = run(tmp_path)
    before = all_bytes(out.parent)
    result = out.parent / rows[0]["path"] / "vasprun.xml"
    result.write_text("<modeling/>")
    run(tmp_path)
    assert result.exists()
    result.unlink()
    assert all_bytes(out.parent) == before
    # No temporary folder is left.
    assert not list(out.parent.rglob(".*"))


def test_a_restarted_run_keeps_its_folder(tmp_path):
    """job_array.sh and custodian replace inputs, and keep the first ones under `.orig`."""
    out, rows = run(tmp_path)
    folder = out.parent / rows[0]["path"]
    for name in ("POSCAR", "INCAR"):
        (folder / name).rename(folder / f"{name}.orig")
        (folder / name).write_text("changed")
    (folder / "vasprun.xml").write_text("<modeling/>")
    run(tmp_path)
    assert (folder / "POSCAR").read_text() == "changed"


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    """Kill a process with SIGKILL while it writes the second folder."""
    script = (
        "import os, pathlib\n"
        "from pathlib import Path\n"
        "import test_dft_inputs as tests\n"
        "written = []\n"
        "write_text = Path.write_text\n"
        "def write(path, *args, **kwargs):\n"
        "    write_text(path, *args, **kwargs)\n"
        "    written.append(path)\n"
        "    if len(written) == 6: os.kill(os.getpid(), 9)\n"
        "Path.write_text = write\n"
        f"tests.run(Path({str(tmp_path)!r}))\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == -9
    root = tmp_path / "dft_inputs"
    left = [path.name for path in root.rglob(".*") if path.is_dir()]
    assert len(left) == 1
    assert re.fullmatch(r"\.base-000003\..*\.[0-9]+\.tmp", left[0])
    out, _ = run(tmp_path)
    assert not list(root.rglob(".*"))
    dft_collect.run(settings("dft_collect"), manifest=out, out=tmp_path / "dft.parquet")
    assert read_provenance(tmp_path / "dft.parquet")["counts"]["foreign_folders"] == 0


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_folders_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        out, rows = run(tmp_path)
    finally:
        os.umask(before)
    folder = out.parent / rows[0]["path"]
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
    assert (folder / "POSCAR").stat().st_mode & 0o777 == 0o666 & ~mask


FAILURES = [
    (errno.ENOSPC, "free some, or raise the quota (also of files)"),
    (errno.EDQUOT, "free some, or raise the quota (also of files)"),
    (errno.EROFS, "give a path that can be written to"),
    (errno.EACCES, "ask its owner for access"),
    (errno.EMLINK, "lower dft_inputs.folders_per_directory"),
]


@pytest.mark.parametrize(("number", "cure"), FAILURES)
@pytest.mark.parametrize("where", ["mkdir", "write_text", "rename"])
def test_a_folder_that_cannot_be_written_is_named_with_a_cure(
    tmp_path, monkeypatch, number, cure, where
):
    """Simulate the errors of a file system without space or inodes, or without permission."""
    original = getattr(Path, where)

    def fail(path, *args, **kwargs):
        if "base-000003" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, where, fail)
    with pytest.raises(FlowllmError, match="base-000003") as caught:
        run(tmp_path)
    # Writing to a temporary name has its own message for a full disk.
    assert cure in str(caught.value) or "no space left on the device" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    out, rows = run(tmp_path)
    assert (out.parent / rows[3]["path"] / "POSCAR").exists()
    assert not list(out.parent.rglob(".*"))


@pytest.fixture
def few_inodes(tmp_path):
    """Mount a disk with space for twelve files and folders."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "nr_inodes=12", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_no_inodes_are_left(few_inodes):
    """Without free inodes, complete folders are kept, and the next run writes the others."""
    with pytest.raises(
        FlowllmError, match=r"base-00000\d: .*[Nn]o space left on .*device"
    ) as caught:
        run(few_inodes)
    assert "inodes" in str(caught.value) or "quota (also of files)" in str(caught.value)
    subprocess.run(["mount", "-o", "remount,nr_inodes=99", str(few_inodes)], check=True)
    out, rows = run(few_inodes)
    assert [row["path"] is not None for row in rows] == [True, False, False, True, True]
    assert not list(out.parent.rglob(".*"))


def test_a_file_in_a_folders_place(tmp_path):
    (tmp_path / "dft_inputs").mkdir()
    (tmp_path / "dft_inputs" / "00000").write_text("in the way")
    with pytest.raises(FlowllmError, match="move that file away"):
        run(tmp_path)
    (tmp_path / "dft_inputs" / "00000").unlink()
    (tmp_path / "dft_inputs" / "00000").mkdir()
    (tmp_path / "dft_inputs" / "00000" / "base-000000").write_text("in the way")
    with pytest.raises(FlowllmError, match=r"base-000000.*move (it|that file) away"):
        run(tmp_path)


def test_a_manifest_that_is_a_folder_is_said_before_anything_is_written(tmp_path):
    (tmp_path / "dft_inputs" / "manifest.parquet").mkdir(parents=True)
    with pytest.raises(FlowllmError, match=r"manifest\.parquet: is a folder.*move it away"):
        run(tmp_path)
    assert not (tmp_path / "dft_inputs" / "00000").exists()


def test_results_of_other_inputs_are_not_overwritten(tmp_path):
    out, rows = run(tmp_path)
    folder = out.parent / rows[0]["path"]
    run(tmp_path, input_set="MPStaticSet")  # nothing computed there yet: replaced
    (folder / "vasprun.xml").write_text("<modeling/>")
    with pytest.raises(FlowllmError, match=r"base-000000 contains other inputs and vasprun\.xml"):
        run(tmp_path)
    assert (folder / "vasprun.xml").exists()


@pytest.mark.parametrize("place", [0, 1])
def test_an_earlier_manifest_stays_unless_a_folder_of_it_was_replaced(tmp_path, place):
    """Other inputs are refused where there are results, in the first or the second folder."""
    out, rows = run(tmp_path)
    before = out.read_bytes()
    paths = [row["path"] for row in rows if row["path"]]
    (out.parent / paths[place] / "vasprun.xml").write_text("<modeling/>")
    with pytest.raises(FlowllmError, match="contains other inputs and"):
        run(tmp_path, input_set="MPStaticSet")
    assert out.exists() == (place == 0)
    assert place == 1 or out.read_bytes() == before


def test_stability_of_other_crystals_is_refused(tmp_path):
    relaxed, stability = tmp_path / "relaxed.parquet", tmp_path / "stability.parquet"
    tables.write_table(relaxed, ROWS, schemas.RELAXED, {})
    tables.write_table(stability, [{"id": "x", "status": "ok"}], schemas.STABILITY, {})
    with pytest.raises(FlowllmError, match="no row for id base-000000 and 4 more"):
        dft_inputs.run(
            settings("dft_inputs"),
            relaxed=[relaxed],
            stability=stability,
            out=tmp_path / "manifest.parquet",
        )


@pytest.mark.parametrize("crystal_id", ["../../etc", "a/b", ".hidden", "a b", "x" * 300, "é"])
def test_any_id_gives_a_folder_name_that_stays_below(crystal_id):
    name = folder_name(crystal_id)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,110}", name)
    assert name not in (".", "..")
    assert folder_name("base-000001") == "base-000001"
    assert folder_name("a/b") != folder_name("a_b")


def test_missing_pseudopotential_files_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr("flowllm.dft.inputs.SETTINGS", {"PMG_VASP_PSP_DIR": str(tmp_path)})
    monkeypatch.setattr("pymatgen.io.vasp.inputs.SETTINGS", {"PMG_VASP_PSP_DIR": str(tmp_path)})
    with pytest.raises(FlowllmError, match="a POTCAR is missing under PMG_VASP_PSP_DIR"):
        run(tmp_path)
