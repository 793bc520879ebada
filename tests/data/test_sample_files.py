"""Which files of a folder are samples, in which order, and how much of a file is read."""

import gzip
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowllm.data import external, pt_file, sample_files
from flowllm.data.external import read_samples
from flowllm.data.sample_files import natural_order, read_bytes
from flowllm.errors import FlowllmError

NUMBERED = [f"gen_{index}.cif" for index in range(12)]


def names_of(folder):
    found = sample_files.sample_files(folder)
    return [path.relative_to(folder).as_posix() for path in found]


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_numbers_are_in_their_order(tmp_path):
    assert names_of(touch(tmp_path, *NUMBERED[::-1])) == NUMBERED


@given(st.lists(st.integers(0, 10**25), min_size=1, unique=True))
def test_any_numbers_are_in_their_order(numbers):
    names = [f"a{number}b.cif" for number in numbers]
    assert sorted(names, key=natural_order) == [f"a{number}b.cif" for number in sorted(numbers)]


@given(st.lists(st.text(max_size=8), unique=True))
def test_every_name_has_one_place(names):
    backwards = names[::-1]
    assert sorted(names, key=natural_order) == sorted(backwards, key=natural_order)


def test_folders_in_folders_and_every_kind_of_name(tmp_path):
    wanted = [
        *("1.cif", "2/b.CIF", "2/c.cif.gz", "10/POSCAR", "10/x.vasp", "10/y.poscar", "12.POSCAR"),
        *("CONTCAR_3.gz", "NaCl_POSCAR", "POSCAR-0001"),
    ]
    others = [
        *(".hidden.cif", "._1.cif", "__MACOSX/1.cif", ".git/a.cif", "notes.txt", "poscar_tool.py"),
        *("POTCAR", "myposcars", "log.csv", "1.cif.txt", "cif"),
    ]
    assert names_of(touch(tmp_path, *wanted, *others)) == wanted


def test_a_link_to_a_folder_is_followed_once(tmp_path):
    touch(tmp_path / "scratch", "a.cif")
    touch(tmp_path / "samples", "b.cif")
    (tmp_path / "samples" / "more").symlink_to(tmp_path / "scratch")
    (tmp_path / "scratch" / "back").symlink_to(tmp_path / "samples")
    assert names_of(tmp_path / "samples") == ["b.cif", "more/a.cif"]


@pytest.mark.parametrize("names", [[], ["a.txt", "sub/all.csv"], ["README"]])
def test_a_folder_without_samples_says_what_is_read(tmp_path, names):
    folder = touch(tmp_path / "folder", *names)
    folder.mkdir(exist_ok=True)
    with pytest.raises(FlowllmError, match=r"folder.*no file.*\.cif, .*POSCAR.*\.csv.*\.pt"):
        list(read_samples(folder))


@pytest.mark.parametrize(
    "names",
    [
        ["a.cif", "a.cif.gz"],
        ["a.cif", "a.vasp"],
        ["run/POSCAR", "run/CONTCAR"],
        ["POSCAR_1", "CONTCAR_1"],
    ],
)
def test_one_sample_in_two_files_does_not_count_twice(tmp_path, names):
    with pytest.raises(FlowllmError, match=r"named alike.* count twice; leave one"):
        names_of(touch(tmp_path, *names))


def test_alike_names_of_different_samples_are_taken(tmp_path):
    touch(tmp_path, "CO.cif", "Co.cif", "a/POSCAR", "b/CONTCAR")
    assert len(names_of(tmp_path)) == 4


def test_the_workflow_lists_files_without_scientific_packages():
    code = (
        "import sys, flowllm.data.sample_files; "
        "print([m for m in ('numpy', 'pymatgen', 'torch', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("limit", [0, 1, 99, 100, 1000])
@pytest.mark.parametrize("members", [1, 2])
def test_no_more_than_the_limit_is_unpacked(tmp_path, limit, members):
    whole = b"x" * 100
    packed = b"".join(gzip.compress(whole[i::members]) for i in range(members))
    (tmp_path / "a.csv.gz").write_bytes(packed)
    if len(packed) <= limit and limit >= 100:
        assert read_bytes(tmp_path / "a.csv.gz", limit) == whole
    else:
        with pytest.raises(FlowllmError, match=r"a\.csv\.gz: more than .*; split the samples"):
            read_bytes(tmp_path / "a.csv.gz", limit)


def test_gzip_is_known_by_its_bytes(tmp_path):
    (tmp_path / "a.csv").write_bytes(gzip.compress(b"text"))
    (tmp_path / "b.csv.gz").write_bytes(b"text")
    assert read_bytes(tmp_path / "a.csv") == read_bytes(tmp_path / "b.csv.gz") == b"text"


@pytest.mark.parametrize("name", ["a.json.gz", "a.csv.gz", "a.cif.gz", "a.extxyz.gz", "a.vasp.gz"])
def test_a_file_that_unpacks_without_end_is_refused_in_little_memory(tmp_path, name, monkeypatch):
    limit = 1 << 22
    monkeypatch.setattr(read_bytes, "__defaults__", (limit,))
    with gzip.open(tmp_path / name, "wb") as handle:
        for _ in range(64):
            handle.write(b" " * (1 << 20))
    assert (tmp_path / name).stat().st_size < 1 << 17
    with pytest.raises(FlowllmError, match=r"more than 4 MiB .*split .* external_samples"):
        list(read_samples(tmp_path / name))


def test_many_files_of_a_folder_have_one_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_files, "MAX_BYTES", 1000)
    for index in range(11):
        (tmp_path / f"{index}.cif").write_text("x" * 100)
    with pytest.raises(FlowllmError, match="the limit of one row"):
        list(read_samples(tmp_path))


def test_what_cannot_be_read_is_one_failed_sample_of_a_folder(tmp_path):
    os.mkfifo(tmp_path / "0_pipe.cif")
    (tmp_path / "1_gone.cif").symlink_to(tmp_path / "nowhere")
    (tmp_path / "2_broken.cif.gz").write_bytes(b"\x1f\x8bbroken")
    (tmp_path / "3_folder.cif").mkdir()
    (tmp_path / "4.cif").write_text("data_x\n")
    said = []
    for sample in read_samples(tmp_path):
        with pytest.raises(Exception, match=r".") as caught:
            sample()
        said.append((sample.name, str(caught.value)))
    assert [name for name, _ in said] == ["0_pipe.cif", "1_gone.cif", "2_broken.cif.gz", "4.cif"]
    assert "not a regular file" in said[0][1]
    assert "no such file" in said[1][1]
    assert "broken gzip" in said[2][1]


def test_a_pt_file_that_unpacks_without_end_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    torch.save({"atom_types": torch.zeros(1 << 18)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 15
    monkeypatch.setattr(pt_file, "MAX_BYTES", 1 << 19)
    monkeypatch.setattr(torch, "load", None)
    for name in ("bomb.pt", "plain.pt"):
        with pytest.raises(FlowllmError, match=rf"{name}: more than 0 MiB .*split"):
            list(external.read_samples(tmp_path / name))


def test_a_small_pt_file_cannot_name_a_large_array(tmp_path, monkeypatch):
    monkeypatch.setattr(pt_file, "MAX_NUMBERS", 1000)
    one = torch.zeros(1)
    torch.save({"atom_types": one.expand(10_000)}, tmp_path / "wide.pt")
    torch.save({"atom_types": [one] * 10_000}, tmp_path / "long.pt")
    nested = [0.0]
    for _ in range(40):
        nested = [nested, nested]
    torch.save({"atom_types": nested}, tmp_path / "nested.pt")
    for name in ("wide.pt", "long.pt", "nested.pt"):
        with pytest.raises(FlowllmError, match=r"atom_types is not an array \(more than 1,000"):
            list(read_samples(tmp_path / name))
