"""download: real HTTP servers on this machine, local folders, pymatgen's prototypes."""

import csv
import hashlib
import http.server
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from crystals import MP_20_SAMPLE
from flowllm.config.stage_settings import StageSettings
from flowllm.data import bundled, fetch, sources
from flowllm.data.manifest import read_manifest
from flowllm.data.rows import read_rows, write_rows
from flowllm.errors import FlowllmError
from flowllm.stages import download

REPOSITORY = Path(__file__).parents[2]

CONTENT = {
    f"{split}.csv": b"material_id,cif\n"
    + b"".join(b"%s-%d,cif text %d\n" % (split.encode(), i, i) for i in range(5000))
    for split in ("train", "val", "test")
}


def settings(source: str | Path, url: str | None = None) -> StageSettings:
    return StageSettings(
        "download", {"seed": 42, "version": 1, "data": {"source": str(source), "url": url}}
    )


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; how well, its attributes say. Keeps the log of what was asked and sent."""

    def __init__(self, content: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = dict(content)
        self.ranges = True  # honours Range
        self.cut_after = None  # sends at most this many bytes an answer, then hangs up
        self.statuses = []  # answers with these first
        self.location = None  # redirects there
        self.seconds_a_block = 0.0
        self.asked = []  # (path, Range)
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/mp_20"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append((self.path, wanted))
        if server.location:
            self.send_response(302)
            self.send_header("Location", server.location)
            self.end_headers()
            return
        status = server.statuses.pop(0) if server.statuses else 200
        body = server.content.get(Path(self.path).name)
        if status != 200 or body is None:
            self.send_error(404 if body is None else status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.send_body(body[start:])

    def send_body(self, body: bytes):
        body = body[: self.server.cut_after]
        for begin in range(0, len(body), 4096):
            block = body[begin : begin + 4096]
            try:
                self.wfile.write(block)
            except OSError:
                return
            self.server.sent += len(block)
            time.sleep(self.server.seconds_a_block)

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pause between attempts, and no proxy of the machine between the test and its server."""
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


def write_catalogue(path: Path, url: str) -> Path:
    """A catalogue in the real one's form, for the files that the test's server has."""
    train, val, test = (CONTENT[f"{split}.csv"] for split in ("train", "val", "test"))
    blob = hashlib.sha1(b"blob %d\0" % len(train) + train).hexdigest()
    other = {"origin": "another copy", "git_blob": "0" * 40}
    copies = {
        "train": [other, {"origin": "in git", "git_blob": blob}],
        "val": [{"origin": "lfs", "size": len(val), "sha256": hashlib.sha256(val).hexdigest()}],
        "test": [{"origin": "lfs", "sha256": hashlib.sha256(test).hexdigest()}, other],
    }
    files = {s: {"name": f"{s}.csv", "rows": 5000, "copies": c} for s, c in copies.items()}
    entry = {"title": "t", "licence": "CC BY 4.0", "date": "2021-12-09", "url": url, "files": files}
    path.write_text(yaml.safe_dump({"mp_20": entry}, sort_keys=False))
    return path


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A running server, and a catalogue in which its files are MP-20."""
    server = Server(CONTENT)
    path = write_catalogue(tmp_path / "sources.yaml", "https://unreachable.invalid/data")
    monkeypatch.setattr(sources, "CATALOGUE", path)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


def test_fetches_checks_and_lists(tmp_path, server):
    out = tmp_path / "download" / "manifest.json"
    download.run(settings("mp_20", server.url), out=out)
    assert files_of(out.parent) == CONTENT
    manifest = json.loads(out.read_text())
    assert manifest["kind"] == "mp_20"
    assert manifest["licence"] == "CC BY 4.0"
    listed = {file["name"]: file for file in manifest["files"]}
    for name, content in CONTENT.items():
        assert listed[name] == {
            "name": name,
            "split": name.removesuffix(".csv"),
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "rows": 5000,
            "origin": "in git" if name == "train.csv" else "lfs",
        }
    assert [path.name for path in out.parent.glob(".*")] == []
    record = json.loads((out.parent / "_manifest.json.provenance.json").read_text())
    assert record["settings"]["data"]["url"] == server.url


def test_manifest_does_not_depend_on_the_mirror(tmp_path, server):
    for name in ("a", "b"):
        url = f"{server.url}/{name}/"
        download.run(settings("mp_20", url), out=tmp_path / name / "manifest.json")
    texts = [(tmp_path / name / "manifest.json").read_bytes() for name in ("a", "b")]
    assert texts[0] == texts[1]


def test_what_is_there_and_right_is_not_fetched_again(tmp_path, server):
    folder = tmp_path / "download"
    folder.mkdir()
    (folder / "train.csv").write_bytes(CONTENT["train.csv"])
    (folder / "val.csv").write_bytes(b"something else")
    download.run(settings("mp_20", server.url), out=folder / "manifest.json")
    assert [Path(path).name for path, _ in server.asked] == ["val.csv", "test.csv"]
    assert files_of(folder) == CONTENT


def test_broken_off_transfers_go_on_where_they_stopped(tmp_path, server):
    server.cut_after = 40_000
    download.run(settings("mp_20", server.url), out=tmp_path / "manifest.json")
    assert files_of(tmp_path) == CONTENT
    assert ("/mp_20/train.csv", "bytes=40000-") in server.asked
    assert server.sent == sum(map(len, CONTENT.values()))


def test_a_later_run_goes_on_where_the_last_one_stopped(tmp_path, server):
    out = tmp_path / "manifest.json"
    server.cut_after, server.statuses = 10_000, [200, 200, 503, 503, 503]
    with pytest.raises(FlowllmError, match=r"answered 503.*20000 bytes are kept.*Run again"):
        download.run(settings("mp_20", server.url), out=out)
    assert files_of(tmp_path) == {}
    assert not out.exists()
    server.cut_after = None
    download.run(settings("mp_20", server.url), out=out)
    assert files_of(tmp_path) == CONTENT
    assert server.sent == sum(map(len, CONTENT.values()))


def test_server_without_ranges_starts_over(tmp_path, server):
    out = tmp_path / "manifest.json"
    server.ranges, server.cut_after = False, 10_000
    with pytest.raises(
        FlowllmError, match=r"the transfer ended after 10000 of \d+ bytes.*10000 bytes are kept"
    ):
        download.run(settings("mp_20", server.url), out=out)
    server.cut_after = None
    download.run(settings("mp_20", server.url), out=out)
    assert files_of(tmp_path) == CONTENT


def test_complete_part_needs_no_byte(tmp_path, server):
    part = tmp_path / "train.csv.part"
    part.write_bytes(CONTENT["train.csv"])
    fetch.fetch(f"{server.url}/train.csv", part)
    assert part.read_bytes() == CONTENT["train.csv"]
    assert server.sent == 0


def test_part_longer_than_the_file_is_dropped(tmp_path, server):
    part = tmp_path / "train.csv.part"
    part.write_bytes(CONTENT["train.csv"] + b"more")
    fetch.fetch(f"{server.url}/train.csv", part)
    assert part.read_bytes() == CONTENT["train.csv"]


def test_killed_download_goes_on(tmp_path, server):
    """kill -9 of the real command's process while bytes come in."""
    write_catalogue(tmp_path / "sources.yaml", server.url)
    out = tmp_path / "run" / "manifest.json"
    program = (
        "from pathlib import Path\n"
        "from flowllm.config.stage_settings import StageSettings\n"
        "from flowllm.data import sources\n"
        "from flowllm.stages import download\n"
        f"sources.CATALOGUE = Path({str(tmp_path / 'sources.yaml')!r})\n"
        "data = {'source': 'mp_20', 'url': None}\n"
        "given = StageSettings('download', {'seed': 42, 'version': 1, 'data': data})\n"
        f"download.run(given, out=Path({str(out)!r}))\n"
    )
    server.seconds_a_block = 0.02
    process = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while server.sent < len(CONTENT["train.csv"]) + 40_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    server.seconds_a_block = 0.0
    server.asked.clear()
    subprocess.run([sys.executable, "-c", program], check=True)
    assert files_of(out.parent) == CONTENT
    # The first file is not asked for again, the second one from where it broke off.
    first, second = server.asked
    assert first[0].endswith("val.csv")
    assert int(re.fullmatch(r"bytes=(\d+)-", first[1])[1]) > 0
    assert second == ("/mp_20/test.csv", None)


def test_part_of_another_address_is_not_continued(tmp_path, server):
    out = tmp_path / "manifest.json"
    server.cut_after, server.statuses = 10_000, [200, 404]
    with pytest.raises(FlowllmError, match="404"):
        download.run(settings("mp_20", server.url), out=out)
    server.cut_after = None
    server.asked.clear()
    download.run(settings("mp_20", server.url + "/mirror"), out=out)
    assert server.asked[0] == ("/mp_20/mirror/train.csv", None)


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (CONTENT["train.csv"].replace(b"cif text 7\n", b"cif text 8\n"), ""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:9c\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><title>Login</title>", "web page"),
    ],
)
def test_wrong_content_is_deleted_and_explained(tmp_path, server, body, hint):
    server.content["train.csv"] = body
    out = tmp_path / "manifest.json"
    with pytest.raises(FlowllmError, match=rf"train\.csv: wrong checksum.*{hint}.*data\.source"):
        download.run(settings("mp_20", server.url), out=out)
    assert list(tmp_path.rglob("*.part")) == []
    assert not out.exists()
    server.content = dict(CONTENT)
    download.run(settings("mp_20", server.url), out=out)
    assert files_of(tmp_path) == CONTENT


def test_missing_file_fails_at_once(tmp_path, server):
    del server.content["train.csv"]
    with pytest.raises(FlowllmError, match=r"train\.csv: the server answered 404.*data\.url"):
        download.run(settings("mp_20", server.url), out=tmp_path / "manifest.json")
    assert len(server.asked) == 1


def test_busy_server_is_asked_again(tmp_path, server):
    server.statuses = [503, 429]
    download.run(settings("mp_20", server.url), out=tmp_path / "manifest.json")
    assert files_of(tmp_path) == CONTENT


def test_unreachable_server_says_what_to_do(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/mp_20"
    with pytest.raises(FlowllmError, match=r"cannot be reached.*data\.url to a mirror.*data\.sour"):
        download.run(settings("mp_20", url), out=tmp_path / "manifest.json")


@pytest.mark.parametrize(
    "url",
    ["http://example.org/mp_20", "ftp://localhost/mp_20", "file:///etc", "https:///x", "mp_20"],
)
def test_only_https_or_this_machine(tmp_path, url):
    with pytest.raises(FlowllmError, match=r"data\.url .*expected https"):
        download.run(settings("mp_20", url), out=tmp_path / "manifest.json")


@pytest.mark.parametrize("location", ["http://example.org/train.csv", "file:///etc/passwd"])
def test_redirects_obey_the_same_rule(tmp_path, server, location):
    server.location = location
    with pytest.raises(FlowllmError, match=r"expected https|not allowed"):
        download.run(settings("mp_20", server.url), out=tmp_path / "manifest.json")


def test_proxy_of_the_environment_is_used(tmp_path, server, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/mp_20"))
    part = tmp_path / "train.csv.part"
    fetch.fetch("http://localhost:9/data/train.csv", part)
    assert server.asked == [("http://localhost:9/data/train.csv", None)]
    assert part.read_bytes() == CONTENT["train.csv"]


def test_catalogue_is_the_file_in_data_and_names_mp_20():
    assert sources.CATALOGUE.resolve() == REPOSITORY / "data" / "sources.yaml"
    mp_20 = sources.catalogue()["mp_20"]
    fetch.check_url(mp_20.url)
    assert list(mp_20.files) == ["train", "val", "test"]
    blobs = {split: file.copies[0].git_blob for split, file in mp_20.files.items()}
    assert blobs == {
        "train": "b1c9d498565ac2fd8d075a51ff2ef5e51ba6c21f",
        "val": "7efe4d7ebeb4f460ceaad35e5326c42111d9c9a1",
        "test": "5dc643041df53f5ce4970a79930ad262b4f07acd",
    }
    assert [file.copies[1].size for file in mp_20.files.values()] == [80920549, 26864684, 26846148]


def test_a_password_in_an_address_is_refused_and_not_repeated(tmp_path, server):
    """Of a redirect: data.url itself is refused by the configuration."""
    server.location = "http://me:SECRET@127.0.0.1/elsewhere"
    with pytest.raises(FlowllmError, match=r"data\.url contains a user name or password") as caught:
        fetch.fetch(f"{server.url}/train.csv", tmp_path / "part")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [
        "/elsewhere/none.csv?token=SECRET",
        "http://127.0.0.1:1/train.csv?X-Amz-Signature=SECRET",
        "http://example.org/train.csv?token=SECRET",
        "ftp://127.0.0.1/train.csv?token=SECRET",
        "http://127.0.0.1:port/train.csv?token=SECRET",
    ],
    ids=["in circles", "refused", "not https", "another scheme", "no port"],
)
def test_a_query_that_a_server_sends_to_is_not_repeated(tmp_path, server, caplog, location):
    server.location = location
    with pytest.raises((FlowllmError, ValueError)) as caught:
        fetch.fetch(f"{server.url}/train.csv", tmp_path / "part")
    assert "SECRET" not in str(caught.value) + caplog.text
    assert isinstance(caught.value, FlowllmError)


def test_git_blob_id_is_what_git_says(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT["val.csv"])
    said = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True)
    assert sources.hash_file(path) == (
        hashlib.sha256(CONTENT["val.csv"]).hexdigest(),
        said.stdout.strip(),
    )


def test_copy_must_match_in_everything_it_states(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    sha256, blob = sources.hash_file(path)
    right = {"origin": "o", "sha256": sha256, "git_blob": blob, "size": 3}
    for change, matches in [
        ({}, True),
        ({"size": None}, True),
        ({"git_blob": None}, True),
        ({"sha256": None}, True),
        ({"size": 4}, False),
        ({"sha256": "0" * 64}, False),
        ({"git_blob": "0" * 40}, False),
        ({"sha256": None, "git_blob": None}, False),
    ]:
        copy = sources.Copy.model_validate({**right, **change})
        assert (sources.match_copy(path, (copy,)) == copy) is matches, change


def test_folder_of_splits_is_copied(tmp_path):
    if not MP_20_SAMPLE.exists():
        pytest.skip(f"needs {MP_20_SAMPLE}")
    out = tmp_path / "manifest.json"
    download.run(settings(MP_20_SAMPLE), out=out)
    manifest = read_manifest(out)
    assert [(f.name, f.split, f.rows) for f in manifest.files] == [
        ("train.csv", "train", 1200),
        ("val.csv", "val", 300),
        ("test.csv", "test", 300),
    ]
    for name, content in files_of(tmp_path).items():
        assert content == (MP_20_SAMPLE / name).read_bytes()
    assert str(MP_20_SAMPLE) not in out.read_text()


def make_folder(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("material_id,cif\na,b\n")
    return folder


def test_folder_with_one_file_for_all(tmp_path):
    out = tmp_path / "out" / "manifest.json"
    download.run(settings(make_folder(tmp_path / "source", ["all.csv"])), out=out)
    assert [(f.name, f.split) for f in read_manifest(out).files] == [("all.csv", None)]


def test_a_failed_copy_keeps_the_manifest_unless_a_file_of_it_was_replaced(tmp_path):
    names = ["train.csv", "val.csv", "test.csv"]
    source, out = make_folder(tmp_path / "source", names), tmp_path / "out" / "manifest.json"
    download.run(settings(source), out=out)
    (source / "test.csv").unlink()
    for folder in (source, tmp_path / "nowhere"):
        with pytest.raises(FlowllmError, match=r"test\.csv: missing|no such folder"):
            download.run(settings(folder), out=out)
        assert len(read_manifest(out).files) == 3
    (source / "train.csv").write_text("material_id,cif\nb,c\n")
    with pytest.raises(FlowllmError, match=r"test\.csv: missing"):
        download.run(settings(source), out=out)
    assert not out.exists()


def test_folder_without_a_split_is_refused(tmp_path):
    source = make_folder(tmp_path / "source", ["train.csv", "test.csv"])
    with pytest.raises(FlowllmError, match=r"val\.csv: missing.*all\.csv"):
        download.run(settings(source), out=tmp_path / "out" / "manifest.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"train\.csv: the file is empty"),
        ("material_id,cif\n", r"train\.csv: no row after the header"),
        ("material_id,CIF\na,b\n", r"train\.csv: column 'cif' is missing"),
        ('material_id,cif\na,"data_\n_cell_leng', r"train\.csv, line 3: not CSV.*cut off"),
        ("material_id,cif\nä,b\n".encode("latin-1"), r"train\.csv: not UTF-8"),
        ("material_id;cif\na;b\n", r"train\.csv: the cells are separated by semicolons"),
        ("material_id\tcif\na\tb\n", r"train\.csv: the cells are separated by tabs"),
        ("material_id,cif,cif\na,b,c\n", r"train\.csv: two columns are named 'cif'"),
    ],
)
def test_bad_csv_is_named(tmp_path, text, message):
    source = make_folder(tmp_path / "source", ["train.csv", "val.csv", "test.csv"])
    (source / "train.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FlowllmError, match=message):
        download.run(settings(source), out=tmp_path / "out" / "manifest.json")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_folder_of_cifs_becomes_one_file(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "NaCl.cif").write_bytes('data_NaCl\n# José, "rock salt"\n'.encode("latin-1"))
    (source / "b.CIF").write_text("data_b")
    (source / "notes.txt").write_text("not a crystal")
    out = tmp_path / "out" / "manifest.json"
    download.run(settings(source), out=out)
    (file,) = read_manifest(out).files
    assert (file.name, file.split, file.rows) == ("all.csv", None, 2)
    rows = list(read_rows(out.with_name("all.csv"), None))
    assert [(row.material_id, row.file) for row in rows] == [("NaCl", "NaCl.cif"), ("b", "b.CIF")]
    assert rows[0].cells["cif"] == 'data_NaCl\n# Jos\ufffd, "rock salt"\n'


@pytest.mark.parametrize("name", ["mp20", "/nonexistent/folder"])
def test_source_that_is_nothing(tmp_path, name):
    with pytest.raises(FlowllmError, match="no such folder; expected mp_20, bundled, or a folder"):
        download.run(settings(name), out=tmp_path / "manifest.json")


def test_folder_with_nothing_of_use(tmp_path):
    source = make_folder(tmp_path / "source", ["README"])
    with pytest.raises(FlowllmError, match="found none"):
        download.run(settings(source), out=tmp_path / "out" / "manifest.json")


def test_own_output_is_no_source(tmp_path):
    source = make_folder(tmp_path / "source", ["all.csv"])
    with pytest.raises(FlowllmError, match="writes to"):
        download.run(settings(source), out=source / "manifest.json")
    assert (source / "all.csv").read_text() == "material_id,cif\na,b\n"


def test_bundled_prototypes(tmp_path):
    out = tmp_path / "manifest.json"
    download.run(settings("bundled"), out=out)
    (file,) = read_manifest(out).files
    with (tmp_path / file.name).open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    # 288 prototypes
    assert file.rows == len(rows) == len({row["material_id"] for row in rows}) == 288
    assert "A_cF8_227_a-C" in {row["material_id"] for row in rows}  # diamond
    again = list(itertools.islice(bundled.prototypes(), 20))
    assert again == rows[:20]


def test_bundled_space_groups_are_those_that_spglib_finds():
    from pymatgen.core import Structure
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    rows = list(bundled.prototypes())[::8]
    agree = [
        SpacegroupAnalyzer(Structure.from_str(row["cif"], fmt="cif"), 0.01).get_space_group_number()
        == int(row["spacegroup.number"])
        for row in rows
    ]
    assert sum(agree) >= 0.9 * len(agree)


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_rows_survive_the_csv(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "all.csv"
    write_rows(path, ("material_id", "cif"), [{"material_id": a, "cif": b} for a, b in rows])
    found = list(read_rows(path, None))
    assert [(row.material_id, row.cells["cif"]) for row in found] == rows
    assert [row.row for row in found] == list(range(len(rows)))
    assert all(row.problem is None for row in found)


def test_a_cell_may_be_large_and_the_limit_is_left_as_it_was(tmp_path):
    before = csv.field_size_limit()
    path = tmp_path / "all.csv"
    write_rows(path, ("material_id", "cif"), [{"material_id": "a", "cif": "x" * 1_000_000}])
    (row,) = read_rows(path, None)
    assert len(row.cells["cif"]) == 1_000_000
    assert csv.field_size_limit() == before


def test_empty_lines_are_no_rows(tmp_path):
    (tmp_path / "all.csv").write_text("\ufeff\nmaterial_id,cif\n\na,b\n\nc,d\n\n", encoding="utf-8")
    rows = read_rows(tmp_path / "all.csv", None)
    assert [(row.row, row.material_id, row.problem) for row in rows] == [
        (0, "a", None),
        (1, "c", None),
    ]


def test_row_with_a_missing_cell_is_marked(tmp_path):
    path = tmp_path / "all.csv"
    path.write_text("material_id,cif,band_gap\na,b\nc,d,1.0,2.0\ne,f,0.0\n")
    assert [row.problem for row in read_rows(path, None)] == [
        "2 cells under 3 columns",
        "4 cells under 3 columns",
        None,
    ]
