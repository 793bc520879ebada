"""dft_hull: reference entries of DFT energies from a file, Matbench Discovery or the API."""

import gzip
import hashlib
import http.server
import json
import logging
import threading
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import pytest

from energy_rows import settings
from flowllm import tables
from flowllm.dft import reference_sources
from flowllm.errors import FlowllmError
from flowllm.stages import dft_hull


def test_entries_carry_kind_and_correction(tmp_path):
    source = tmp_path / "entries.json"
    entry = {"composition": {"Na": 4, "Cl": 4}, "energy": -27.0, "correction": -2.456}
    source.write_text(json.dumps([entry | {"entry_id": "mp-22862"}]))
    out = tmp_path / "dft.parquet"
    dft_hull.run(settings("dft_hull", dft_hull={"source": str(source)}), out=out)
    (row,) = tables.read_table(out, tables.HULL_ENTRIES).to_pylist()
    assert row["energy_per_atom"] == pytest.approx((-27.0 - 2.456) / 8)
    assert (row["kind"], row["source"]) == ("dft", "DFT, correction MP2020")
    assert (row["entry_id"], row["formula"], row["num_atoms"]) == ("mp-22862", "Na4Cl4", 8)


@pytest.mark.parametrize(
    ("text", "message"), [(None, r"dft_hull\.source is null"), ("[]", "no entry")]
)
def test_without_entries_it_says_what_to_do(tmp_path, text, message):
    source = None
    if text is not None:
        source = str(tmp_path / "entries.json")
        (tmp_path / "entries.json").write_text(text)
    given = settings("dft_hull", dft_hull={"source": source})
    with pytest.raises(FlowllmError, match=message):
        dft_hull.run(given, out=tmp_path / "dft.parquet")


KEY = "k3y" * 10
DOCUMENTS = [
    {"material_id": f"mp-{n}", "composition": {"Na": n, "Cl": 1.0}, "energy_per_atom": -n / 8}
    for n in range(1, 6)
]
FILE = gzip.compress(
    json.dumps(
        [{"entry_id": "mp-1", "composition": {"Si": 2}, "energy": -10.8, "correction": 0.0}]
    ).encode()
)


class Handler(http.server.BaseHTTPRequestHandler):
    """/thermo/ in pages of documents, /file with bytes, as the attributes of the server say."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        if self.path.startswith("/file"):
            self.answer(200, server.file)
        elif self.headers["X-API-KEY"] != KEY:
            self.answer(403, b"{}")
        elif server.location:
            self.answer(302, b"", server.location)
        else:
            query = {
                name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()
            }
            assert query["thermo_types"] == "GGA_GGA+U"
            first, count = int(query["_skip"]), int(query["_limit"])
            page = {"data": DOCUMENTS[first : first + count], "meta": {"total_doc": server.total}}
            self.answer(200, json.dumps(page).encode() if server.json else b"<html>")

    def answer(self, status, body, location=None):
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def serving():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.total, server.json, server.location = [], len(DOCUMENTS), True, None
    server.file = FILE
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MP_API_KEY", KEY)
    monkeypatch.setattr(reference_sources, "_PAGE", 2)
    with serving() as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(reference_sources, "MP_API", f"{url}/thermo/")
        monkeypatch.setattr(reference_sources, "MATBENCH_URL", f"{url}/file")
        digest = hashlib.md5(FILE).hexdigest()
        monkeypatch.setattr(reference_sources, "MATBENCH_MD5", digest)
        yield server


def run(tmp_path, source):
    out = tmp_path / "hull" / "dft.parquet"
    dft_hull.run(settings("dft_hull", dft_hull={"source": source}), out=out)
    return tables.read_table(out, tables.HULL_ENTRIES).to_pylist()


def test_the_materials_projects_api_page_by_page(tmp_path, server, caplog):
    with caplog.at_level(logging.DEBUG):
        rows = run(tmp_path, "mp_api")
    assert [row["entry_id"] for row in rows] == [f"mp-{n}" for n in range(1, 6)]
    assert [row["energy_per_atom"] for row in rows] == [-n / 8 for n in range(1, 6)]
    assert (rows[1]["formula"], rows[1]["source"]) == ("Na2Cl1", "DFT, correction MP2020")
    assert len(server.asked) == 3
    # The key is in the header alone: not in an address, the log, or any file.
    assert KEY not in caplog.text + "".join(server.asked)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(KEY.encode() in content for content in written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total": 9}, "gave 5 of 9 entries, then none"),
        ({"json": False}, "thermo/: Expecting value"),
        ({"location": "http://127.0.0.1:1/elsewhere"}, "thermo/: 302"),
    ],
)
def test_an_api_that_does_not_give_all_is_an_error(tmp_path, server, change, message):
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(FlowllmError, match=message) as caught:
        run(tmp_path, "mp_api")
    assert KEY not in str(caught.value)
    assert not (tmp_path / "hull" / "dft.parquet").exists()


@pytest.mark.parametrize(
    ("key", "message"), [("", "set MP_API_KEY to your key"), ("wrong", "403 .*is MP_API_KEY right")]
)
@pytest.mark.usefixtures("server")
def test_without_a_right_key_it_says_so(tmp_path, monkeypatch, key, message):
    monkeypatch.setenv("MP_API_KEY", key)
    with pytest.raises(FlowllmError, match=message):
        run(tmp_path, "mp_api")


def test_matbench_discoverys_file_is_fetched_once_and_checked(tmp_path, server):
    for _ in range(2):
        (row,) = run(tmp_path, "matbench_discovery")
        assert (row["entry_id"], row["energy_per_atom"]) == ("mp-1", -5.4)
    assert server.asked == ["/file"]


def test_another_file_than_matbench_discoverys_is_refused(tmp_path, server):
    server.file = gzip.compress(b"[]")
    with pytest.raises(FlowllmError, match=r"MD5 .* expected"):
        run(tmp_path, "matbench_discovery")
    assert not list((tmp_path / "hull").iterdir())


def test_the_projects_energies_have_its_correction():
    changes = {"source": "mp_api", "correction_scheme": "none"}
    with pytest.raises(FlowllmError, match="the energies of mp_api have MP2020's"):
        settings("dft_hull", dft_hull=changes)
