"""dft_collect: an unreadable result affects only its own row, in bounded time and space."""

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from energy_rows import settings as stage_settings
from flowllm.dft import bounded
from flowllm.dft.gpaw_output import GPAW_OUTPUT
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.stages import dft_collect

from vasp_runs import Step, made_run  # isort: skip

RUN = made_run([Step(-17.0), Step(-17.0005)])
GPAW = {
    "atomic_numbers": [26, 8],
    "cell": [[0.0, 2.15, 2.15], [2.15, 0.0, 2.15], [2.15, 2.15, 0.0]],
    "frac_coords": [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]],
    "xc": "PBE",
    "energy": -17.0,
    "converged": True,
}
WELL = "well"
"""Id of a good run beside the bad one, whose row must not change."""


def collect(tmp_path: Path, name: str = "bad") -> dict:
    """Run the stage on the folders `bad` and `well`, and return the row of `name`."""
    root = tmp_path / "dft_inputs"
    well = root / "00000" / WELL
    well.mkdir(parents=True, exist_ok=True)
    (well / "vasprun.xml").write_text(RUN)
    rows = [
        {"id": key, "path": f"00000/{key}", "formula": "Fe1 O1", "status": "ok"}
        for key in ("bad", WELL)
    ]
    manifest, out = root / "manifest.parquet", tmp_path / "dft.parquet"
    tables.write_table(manifest, rows, schemas.DFT_MANIFEST, {})
    dft_collect.run(stage_settings("dft_collect"), manifest=manifest, out=out)
    found = {row["id"]: row for row in tables.read_table(out, schemas.DFT_RESULTS).to_pylist()}
    assert list(found) == ["bad", WELL]
    assert found[WELL]["status"] == "ok"
    return found[name]


def bad_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dft_inputs" / "00000" / "bad"
    folder.mkdir(parents=True)
    return folder


def tar(members: dict[str, bytes | tuple[bytes, str]]) -> bytes:
    """Return an archive; a pair is the type of a link or device, and its target."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def gpaw(**changes) -> bytes:
    return json.dumps(GPAW | changes).encode()


def make(name: str, how):
    """Return a function that writes the result `name` of a folder with `how`."""
    return lambda folder: how(folder / name)


def content(data: bytes):
    return lambda path: path.write_bytes(data)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


CELL = made_run([Step(-17.0), Step(-17.0005)], cell="   <v> 0.0 0.0 0.0 </v>\n" * 3)
BAD = {
    "a folder": make("vasprun.xml", Path.mkdir),
    "a packed folder": make("vasprun.xml.gz", Path.mkdir),
    "a folder for GPAW": make(GPAW_OUTPUT, Path.mkdir),
    "a pipe": make("vasprun.xml", os.mkfifo),
    "a pipe for GPAW": make(GPAW_OUTPUT, os.mkfifo),
    "a dangling link": make("vasprun.xml", lambda path: path.symlink_to("nowhere")),
    "a link to itself": make("vasprun.xml", loop),
    "a link to a device": make("vasprun.xml", lambda path: path.symlink_to("/dev/zero")),
    "a dangling link for GPAW": make(GPAW_OUTPUT, lambda path: path.symlink_to("nowhere")),
    "energy of 400 digits": make(
        "vasprun.xml", content(made_run([Step("-" + "9" * 400)]).encode())
    ),
    "energy of 300 digits": make(
        "vasprun.xml", content(made_run([Step("-" + "9" * 300)], NSW=0).encode())
    ),
    "energy NaN": make("vasprun.xml", content(made_run([Step("NaN")], NSW=0).encode())),
    "zero cell": make("vasprun.xml", content(CELL.encode())),
    "NaN cell": make("vasprun.xml", content(CELL.replace("0.0 0.0 0.0", "NaN NaN NaN").encode())),
    "infinite cell": make("vasprun.xml", content(CELL.replace("0.0 0.0", "inf 0.0").encode())),
    "flat cell": make("vasprun.xml", content(CELL.replace("0.0 0.0 0.0", "1 2 3").encode())),
    "tiny cell": make(
        "vasprun.xml",
        content(RUN.replace("2.15000000", "0.00021500").encode()),
    ),
    "nested XML": make(
        "vasprun.xml",
        content(b"<modeling>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"</modeling>"),
    ),
    "entities": make(
        "vasprun.xml",
        content(
            b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "/etc/passwd">]>' + RUN.encode()
        ),
    ),
    "binary": make("vasprun.xml", content(bytes(range(256)) * 99)),
    "zeros": make("vasprun.xml.gz", content(gzip.compress(bytes(1 << 20)))),
    "zstandard": make("vasprun.xml.zst", content(b"\x28\xb5\x2f\xfd" + bytes(40))),
    "zstandard named gzip": make("vasprun.xml.gz", content(b"\x28\xb5\x2f\xfd" + bytes(40))),
    "zip": make("vasprun.xml.zip", content(b"PK\x03\x04" + bytes(40))),
    "damaged gzip": make("vasprun.xml.gz", content(gzip.compress(RUN.encode())[:-8] + b"12345678")),
    "damaged bzip2": make("vasprun.xml.bz2", content(b"BZh9" + bytes(99))),
    "damaged xz": make("vasprun.xml.xz", content(b"\xfd7zXZ\x00" + bytes(99))),
    "a link in an archive": make(
        "error.1.tar.gz", content(tar({"error.1/vasprun.xml": (tarfile.SYMTYPE, "/etc/passwd")}))
    ),
    "a hard link in an archive": make(
        "error.1.tar.gz", content(tar({"error.1/vasprun.xml": (tarfile.LNKTYPE, "gone")}))
    ),
    "a device in an archive": make(
        "error.1.tar.gz", content(tar({"vasprun.xml": (tarfile.CHRTYPE, "")}))
    ),
    "a pipe in an archive": make(
        "error.1.tar.gz", content(tar({"vasprun.xml": (tarfile.FIFOTYPE, "")}))
    ),
    "an archive of too many": make(
        "error.1.tar.gz", content(tar({f"{n}": b"" for n in range(1100)}))
    ),
    "no archive": make("error.1.tar.gz", content(gzip.compress(b"text" * 999))),
    "nested JSON": make(GPAW_OUTPUT, content(nested(100_000))),
    "nested list": make(GPAW_OUTPUT, content(b"[" * 100_000 + b"]" * 100_000)),
    "a list": make(GPAW_OUTPUT, content(b"[1, 2]")),
    "not JSON": make(GPAW_OUTPUT, content(b"{")),
    "not UTF-8": make(GPAW_OUTPUT, content(b'{"energy": "\xff"}')),
    "huge integer": make(GPAW_OUTPUT, content(gpaw().replace(b"-17.0", b"9" * 400))),
    "larger integer": make(GPAW_OUTPUT, content(gpaw().replace(b"-17.0", b"9" * 9000))),
    "infinite energy": make(GPAW_OUTPUT, content(gpaw(energy=float("inf")))),
    "1e999": make(GPAW_OUTPUT, content(gpaw().replace(b"-17.0", b"1e999"))),
    "NaN energy": make(GPAW_OUTPUT, content(gpaw(energy=float("nan")))),
    "energy in words": make(GPAW_OUTPUT, content(gpaw(energy="-17.0"))),
    "true energy": make(GPAW_OUTPUT, content(gpaw(energy=True))),
    "absurd energy": make(GPAW_OUTPUT, content(gpaw(energy=-1e9))),
    "converged in words": make(GPAW_OUTPUT, content(gpaw(converged="false"))),
    "NaN in the cell": make(GPAW_OUTPUT, content(gpaw(cell=[[float("nan")] * 3] * 3))),
    "no volume": make(GPAW_OUTPUT, content(gpaw(cell=[[0.0] * 3] * 3))),
    "cell of two vectors": make(GPAW_OUTPUT, content(gpaw(cell=[[1.0] * 3] * 2))),
    "ragged cell": make(GPAW_OUTPUT, content(gpaw(cell=[[1.0], [1.0, 2.0], 3.0]))),
    "a coordinate short": make(GPAW_OUTPUT, content(gpaw(frac_coords=[[0.0] * 3]))),
    "huge coordinate": make(GPAW_OUTPUT, content(gpaw(frac_coords=[[10**400] * 3] * 2))),
    "no such element": make(GPAW_OUTPUT, content(gpaw(atomic_numbers=[26, 200]))),
    "element zero": make(GPAW_OUTPUT, content(gpaw(atomic_numbers=[0, 8]))),
    "elements in words": make(GPAW_OUTPUT, content(gpaw(atomic_numbers=["Fe", "O"]))),
    "no atoms": make(GPAW_OUTPUT, content(gpaw(atomic_numbers=[], frac_coords=[]))),
    "no energy": make(GPAW_OUTPUT, content(b"{}")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_result_is_a_row_that_says_what_it_is(tmp_path, name):
    BAD[name](bad_folder(tmp_path))
    started = time.monotonic()
    row = collect(tmp_path)
    assert row["status"] == "unreadable", row
    assert row["error"]
    assert row["corrected_energy_per_atom"] is None
    assert time.monotonic() - started < 20


SAID = {
    "a folder": "vasprun.xml is a folder, not a regular file",
    "a pipe": "vasprun.xml is a pipe, not a regular file",
    "a dangling link": "vasprun.xml is a link to nowhere, which does not exist",
    "a link to itself": "vasprun.xml: Too many levels of symbolic links",
    "a link to a device": "vasprun.xml is a device, not a regular file",
    "zeros": "vasprun.xml.gz begins with b'",
    "zstandard": "vasprun.xml.zst is packed by zstandard, which is not supported. Unpack it",
    "zip": "vasprun.xml.zip is packed by zip",
    "a link in an archive": "error.1/vasprun.xml is a link or a device, not a regular file",
    "energy of 400 digits": "no step has a finite energy",
    "tiny cell": "cubic angstrom per atom",
}


@pytest.mark.parametrize("name", SAID)
def test_the_row_says_what_is_wrong(tmp_path, name):
    BAD[name](bad_folder(tmp_path))
    assert SAID[name] in collect(tmp_path)["error"]


@pytest.mark.parametrize(
    ("pack", "suffix"),
    [(gzip.compress, ".gz"), (bz2.compress, ".bz2"), (lzma.compress, ".xz"), (bytes, "")],
)
@pytest.mark.parametrize("named", ["vasprun.xml", "vasprun.xml.gz", "vasprun.xml.relax2", None])
def test_results_are_unpacked_by_what_they_are(tmp_path, pack, suffix, named):
    (bad_folder(tmp_path) / (named or f"vasprun.xml{suffix}")).write_bytes(pack(RUN.encode()))
    row = collect(tmp_path)
    assert (row["status"], row["raw_energy_per_atom"]) == ("ok", -17.0005 / 2)


@pytest.mark.parametrize("kind", ["xz", "bz2", "gz"])
def test_archives_are_unpacked_by_what_they_are(tmp_path, kind):
    """Absolute paths and `..` have no effect: no member of an archive is written to disk."""
    folder, text = bad_folder(tmp_path), gzip.compress(RUN.encode())
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{kind}") as archive:
        for name, data in (("/../../escaped", b"x"), ("../../error.1/vasprun.xml.gz", text)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (folder / "error.1.tar.gz").write_bytes(stream.getvalue())
    (folder / "vasprun.xml").write_text("")
    row = collect(tmp_path)
    assert (row["status"], row["raw_energy_per_atom"]) == ("unconverged_ionic", -17.0005 / 2)
    assert not list(tmp_path.rglob("escaped"))


def test_a_link_to_a_result_elsewhere_is_followed(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "result").write_text(RUN)
    (bad_folder(tmp_path) / "vasprun.xml").symlink_to(tmp_path / "scratch" / "result")
    assert collect(tmp_path)["status"] == "ok"


@pytest.mark.parametrize("filling", [b"\0", b" ", b"<modeling>" + b"<i/>" * 1000])
def test_unpacking_has_a_limit(tmp_path, monkeypatch, filling):
    """100 MB of zeros, blanks or tags in 100 kB; a lower limit makes the test fast."""
    monkeypatch.setattr(bounded, "RATIO_FREE_BYTES", 1 << 22)
    size = 100 << 20
    folder = bad_folder(tmp_path)
    with gzip.open(folder / "vasprun.xml.gz", "wb") as handle:
        chunk = filling * ((1 << 20) // len(filling))
        for _ in range(size // len(chunk)):
            handle.write(chunk)
    row = collect(tmp_path)
    assert row["status"] == "unreadable"
    if filling != b"\0":
        assert "vasprun.xml.gz has more than" in row["error"]
        assert "MiB unpacked" in row["error"]


def test_a_plain_file_has_a_limit_too(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_BYTES", len(RUN) - 1)
    (bad_folder(tmp_path) / GPAW_OUTPUT).write_bytes(b" " * (len(RUN) + 9))
    with pytest.raises(AssertionError):  # the good run is as large
        collect(tmp_path)
    rows = tables.read_table(tmp_path / "dft.parquet", schemas.DFT_RESULTS).to_pylist()
    assert [row["status"] for row in rows] == ["unreadable", "unreadable"]


def test_the_tail_of_zeros_that_a_file_system_leaves_is_cut(tmp_path):
    cut = RUN.encode()[: RUN.index("</calculation>") + 30]
    (bad_folder(tmp_path) / "vasprun.xml").write_bytes(cut + bytes(5000))
    row = collect(tmp_path)
    assert (row["status"], row["raw_energy_per_atom"]) == ("unconverged_ionic", -17.0 / 2)


def test_no_room_to_unpack_stops_the_stage_with_a_cure(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no such folder"))
    (bad_folder(tmp_path) / "vasprun.xml").write_text(RUN)
    with pytest.raises(FlowllmError, match=r"results are unpacked there.*set TMPDIR"):
        collect(tmp_path)


def test_a_folder_without_permission_is_a_row(tmp_path, monkeypatch):
    """The error is simulated, because root may list any folder."""

    folder = bad_folder(tmp_path)
    iterdir = Path.iterdir

    def denied(path):
        if path == folder:
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", denied)
    row = collect(tmp_path)
    assert (row["status"], row["error"]) == ("unreadable", "bad: Permission denied")


@pytest.mark.parametrize("kind", ["file", "dangling", "loop", "pipe", "absent"])
def test_whatever_is_in_the_folders_place(tmp_path, kind):
    bad = bad_folder(tmp_path)
    bad.rmdir()
    how = {
        "file": Path.touch,
        "dangling": lambda path: path.symlink_to("nowhere"),
        "loop": loop,
        "pipe": os.mkfifo,
        "absent": lambda _: None,
    }
    how[kind](bad)
    row = collect(tmp_path)
    assert row["status"] == ("missing" if kind == "absent" else "unreadable")


def test_deep_folders_and_hidden_ones(tmp_path):
    """A result 1,500 folders deep is foreign; a hidden folder of dft_inputs is not."""
    bad = bad_folder(tmp_path)
    hidden = bad.parent / ".bad.node.4242.tmp"
    hidden.mkdir()
    (hidden / "POSCAR").write_text("half written")
    stray = bad.parent / "stray\n\udcff"
    stray.mkdir()
    (stray / "vasprun.xml").write_text(RUN)
    here = Path.cwd()
    try:
        os.chdir(bad)
        for _ in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        Path("vasprun.xml").write_text(RUN)
        os.chdir(here)
        assert collect(tmp_path)["status"] == "missing"
    finally:
        os.chdir(here)
        # shutil.rmtree, with which pytest cleans up, is recursive.
        subprocess.run(["rm", "-rf", str(bad / "d")], check=True)
    record = json.loads((tmp_path / "_dft.parquet.provenance.json").read_text())
    assert record["counts"]["foreign_folders"] == 2


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_to_a_result_costs_its_row_alone(tmp_path, data):
    """Bytes are replaced, removed and inserted, in plain and packed results."""
    name, text = data.draw(
        st.sampled_from(
            [
                ("vasprun.xml", RUN.encode()),
                ("vasprun.xml.gz", gzip.compress(RUN.encode())),
                ("error.1.tar.gz", tar({"vasprun.xml": RUN.encode()})),
                (GPAW_OUTPUT, gpaw()),
            ]
        )
    )
    damaged = bytearray(text)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(damaged)))
        stop = start + data.draw(st.integers(0, 40))
        tokens = st.sampled_from(
            [
                b"NaN",
                b"1e999",
                b"-1",
                b"9" * 400,
                b"null",
                b"[[",
                b"<",
                b"</calculation>",
                b"\0",
                b"***",
            ]
        )
        damaged[start:stop] = data.draw(st.binary(max_size=20) | tokens)
    folder = tmp_path / "dft_inputs" / "00000" / "bad"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / name).write_bytes(damaged)
    row = collect(tmp_path)
    energy = row["corrected_energy_per_atom"]
    assert (energy is not None) == (row["status"] in ("ok", "unconverged_ionic"))
    assert energy is None or abs(energy) < 2000


def values() -> st.SearchStrategy:
    """Return a strategy for any JSON value."""
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(key=st.sampled_from(sorted(GPAW)), value=values(), beside=st.booleans())
def test_any_value_in_gpaws_result_costs_its_row_alone(tmp_path, key, value, beside):
    folder = tmp_path / "dft_inputs" / "00000" / "bad"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GPAW_OUTPUT).write_bytes(gpaw() if beside else gpaw(**{key: value}))
    (folder / "gpaw.json").write_bytes(gpaw(**{key: value}) if beside else gpaw())
    row = collect(tmp_path)
    assert row["status"] != "ok" or row["raw_energy_per_atom"] is not None
