"""dft_hull: reference entries of DFT energies from a file, Matbench Discovery or the API."""

import gzip
import hashlib
import http.server
import json
import logging
import re
import threading
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedStructureEntry

from crystals import skutterudite, spread
from energy_rows import settings
from flowllm.dft import reference_sources
from flowllm.dft.results import corrected_energy
from flowllm.dft.runs import DftRun
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import dft_hull


def test_entries_carry_kind_and_correction(tmp_path):
    source = tmp_path / "entries.json"
    entry = {"composition": {"Na": 4, "Cl": 4}, "energy": -27.0, "correction": -2.456}
    source.write_text(json.dumps([entry | {"entry_id": "mp-22862"}]))
    out = tmp_path / "dft.parquet"
    dft_hull.run(settings("dft_hull", dft_hull={"source": str(source)}), out=out)
    (row,) = tables.read_table(out, schemas.HULL_ENTRIES).to_pylist()
    assert row["energy_per_atom"] == pytest.approx((-27.0 - 2.456) / 8)
    assert (row["kind"], row["source"]) == ("dft", "DFT, correction MP2020 (require_bound)")
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


def take(tmp_path, entries, scheme="MP2020", rule="require_bound"):
    """Run dft_hull on a file of these entries, and return its rows by entry id."""
    source, out = tmp_path / "entries.json", tmp_path / "dft.parquet"
    source.write_text(json.dumps(entries))
    given = settings(
        "dft_hull",
        dft_hull={"source": str(source), "correction_scheme": scheme},
        dft_collect={"strict_anions": rule},
    )
    dft_hull.run(given, out=out)
    rows = tables.read_table(out, schemas.HULL_ENTRIES).to_pylist()
    return {row["entry_id"]: row for row in rows}


GGA = {"run_type": "GGA", "hubbards": {}, "is_hubbard": False}


def of_2023(structure, energy, name, **parameters):
    """Return an entry in the form and with the correction rule of 2023."""
    entry = ComputedStructureEntry(
        structure, energy, parameters=GGA | parameters, entry_id=name, data={"material_id": name}
    )
    scheme = MaterialsProject2020Compatibility(check_potcar=False, strict_anions="no_check")
    return json.loads(json.dumps(scheme.process_entry(entry).as_dict()))


STRUCTURES = {
    "CoSb3": skutterudite("Co", "Sb"),
    "CoAs3": skutterudite("Co", "As", 8.2),
    "RhSb3": skutterudite("Rh", "Sb", 9.23),
    "Ca6Al7O16Cl": spread("Ca6Al7O16Cl"),
    "NaCl": spread("Na4Cl4"),
    "Li2O2": Structure(
        Lattice.hexagonal(3.14, 7.65),
        ["Li"] * 4 + ["O"] * 4,
        [
            *([0, 0, 0], [0, 0, 0.5], [1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]),
            *([1 / 3, 2 / 3, 0.65], [2 / 3, 1 / 3, 0.15]),
            *([1 / 3, 2 / 3, 0.85], [2 / 3, 1 / 3, 0.35]),
        ],
    ),
    "MgS": spread("Mg4S4"),
}


@pytest.mark.parametrize("rule", ["require_bound", "require_exact", "no_check"])
def test_a_result_is_on_the_hull_of_the_same_crystals_entry(tmp_path, rule):
    """Entries corrected by the rule of 2023 get the correction of the results, by any rule."""
    entries = [of_2023(structure, -50.0, name) for name, structure in STRUCTURES.items()]
    rows = take(tmp_path, entries, rule=rule)
    assert {row["source"] for row in rows.values()} == {f"DFT, correction MP2020 ({rule})"}
    for name, structure in STRUCTURES.items():
        run = DftRun(structure, -50.0, "GGA", GGA, True, True, 1)
        ours = corrected_energy(run, "MP2020", rule) / len(structure)
        assert rows[name]["energy_per_atom"] == pytest.approx(ours, abs=1e-9), name
    corrected = rows["CoSb3"]["energy_per_atom"] != -50.0 / 16
    assert corrected is (rule == "no_check")
    counts = read_provenance(tmp_path / "dft.parquet")["counts"]
    # pymatgen makes no guess for a formula of 30 atoms, so that Ca6Al7O16Cl differs by every
    # rule; CoSb3 differs by two, and RhSb3, whose antimony is at -1, by require_exact.
    assert counts["recorrected"] == {"no_check": 1, "require_bound": 2, "require_exact": 3}[rule]


def test_the_skutterudites_correction_is_taken_back(tmp_path, caplog):
    entry = of_2023(STRUCTURES["CoSb3"], -50.0, "mp-1317")
    assert entry["correction"] / 16 == pytest.approx(-0.144, abs=1e-3)
    with caplog.at_level(logging.INFO):
        row = take(tmp_path, [entry])["mp-1317"]
    assert row["energy_per_atom"] == -50.0 / 16
    assert r"1 of 1 entries (first: mp-1317, Co4Sb12, by +0.144 eV/atom)" in caplog.text


def test_entries_without_their_calculation_keep_a_correction_that_every_rule_gives(tmp_path):
    entries = [of_2023(STRUCTURES[name], -50.0, name) for name in ("NaCl", "Li2O2", "CoSb3")]
    for entry in entries:
        del entry["parameters"], entry["structure"]
    kept = take(tmp_path, entries[:2])
    for entry in entries[:2]:
        expected = (-50.0 + entry["correction"]) / 8
        assert kept[entry["entry_id"]]["energy_per_atom"] == pytest.approx(expected)
    message = r"entries\.json: the correction of 1 of 3 entries \(first: CoSb3, Co4Sb12\) depends"
    with pytest.raises(FlowllmError, match=message + r".*strict_anions to no_check"):
        take(tmp_path, entries)
    row = take(tmp_path, entries, rule="no_check")["CoSb3"]
    assert row["source"] == "DFT, correction MP2020 (no_check)"
    assert row["energy_per_atom"] == pytest.approx((-50.0 + entries[2]["correction"]) / 16)


@pytest.mark.parametrize(
    "run_type", ["R2SCAN", "r2SCAN", "SCAN", "PBEsol", "HSE06", "GGA+U+vdW", "LDA"]
)
@pytest.mark.parametrize("where", ["parameters", "data"])
def test_entries_of_other_functionals_are_rejected(tmp_path, run_type, where):
    good = [of_2023(STRUCTURES[name], -50.0, name) for name in ("NaCl", "MgS")]
    bad = [of_2023(STRUCTURES["NaCl"], -90.0, f"bad-{n}") for n in range(2)]
    for entry in bad:
        entry["parameters"] = {}
        entry[where]["run_type"] = run_type
    message = rf"{re.escape(run_type)}: 2 of 4 entries \(first: bad-0, Na4Cl4\) are not"
    with pytest.raises(FlowllmError, match=message):
        take(tmp_path, [*good, *bad])
    # Results are GGA and GGA+U energies, without corrections as well.
    for scheme in ("none", "GPAW"):
        with pytest.raises(FlowllmError, match=f"{scheme} is for GGA.*{message}"):
            take(tmp_path, [*good, *bad], scheme=scheme)


def test_the_scheme_none_takes_the_calculations_energies(tmp_path):
    """The corrections of a file are removed where the results have none."""
    row = take(tmp_path, [of_2023(STRUCTURES["NaCl"], -50.0, "a")], scheme="none")["a"]
    assert (row["energy_per_atom"], row["source"]) == (-50.0 / 8, "DFT, correction none")


def test_a_file_without_any_correction_is_warned_of(tmp_path, caplog):
    plain = [
        {"entry_id": name, "composition": composition, "energy": -8.0, "correction": 0.0}
        for name, composition in (
            ("Fe", {"Fe": 1}),
            ("O2", {"O": 2}),
            ("hematite", {"Fe3+": 2, "O2-": 3}),
        )
    ]
    take(tmp_path, plain)
    warned = (
        "no entry has a correction, but MP2020 corrects 1 of 3 entries (first: hematite, Fe2O3)"
    )
    assert warned in caplog.text
    assert "3 of 3 entries (first: Fe, Fe1) have no parameters.run_type" in caplog.text
    caplog.clear()
    take(tmp_path, plain[:2])
    assert "no entry has a correction" not in caplog.text
    caplog.clear()
    take(tmp_path, [*plain, of_2023(STRUCTURES["NaCl"], -50.0, "NaCl")])
    assert "no entry has a correction" not in caplog.text
    # Entries that describe their calculation are corrected.
    raw = of_2023(STRUCTURES["NaCl"], -50.0, "NaCl") | {"correction": 0.0, "energy_adjustments": []}
    caplog.clear()
    row = take(tmp_path, [raw])["NaCl"]
    assert row["energy_per_atom"] == pytest.approx((-50.0 - 4 * 0.614) / 8)
    assert "no entry has a correction" in caplog.text


def test_entries_with_other_u_values_are_left_out_and_named(tmp_path, caplog):
    oxide = ComputedStructureEntry(
        spread("Fe2O3"),
        -33.0,
        parameters={"run_type": "GGA+U", "hubbards": {"Fe": 4.0}},
        entry_id="other-u",
    )
    entries = [json.loads(json.dumps(oxide.as_dict())), of_2023(STRUCTURES["NaCl"], -50.0, "NaCl")]
    assert set(take(tmp_path, entries)) == {"NaCl"}
    assert "1 of 2 entries (first: other-u, Fe2O3) have U values" in caplog.text
    counts = read_provenance(tmp_path / "dft.parquet")["counts"]
    assert (counts["rows_in"], counts["rows_out"], counts["rows_failed"]) == (2, 1, 1)


KEY = "k3y" * 10
DOCUMENTS = [
    {"material_id": f"mp-{n}", "composition": {"Na": n, "Cl": 1.0}, "energy_per_atom": -n / 8}
    for n in range(1, 5)
]
DOCUMENTS.append(
    {
        "material_id": "mp-5",
        "composition": {"Co": 4.0, "Sb": 12.0},
        "energy_per_atom": -3.0,
        "energy_type": "GGA",
        "entries": {"GGA": of_2023(STRUCTURES["CoSb3"], -50.0, "mp-5-GGA")},
    }
)
"""Documents of the API, without the calculation (four) and with it (one)."""
FILE = gzip.compress(
    json.dumps(
        [{"entry_id": "mp-1", "composition": {"Si": 2}, "energy": -10.8, "correction": 0.0}]
    ).encode()
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve /thermo/ in pages of documents and /file, by the attributes of the server."""

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
    return tables.read_table(out, schemas.HULL_ENTRIES).to_pylist()


def test_the_materials_projects_api_page_by_page(tmp_path, server, caplog):
    with caplog.at_level(logging.DEBUG):
        rows = run(tmp_path, "mp_api")
    assert [row["entry_id"] for row in rows] == [f"mp-{n}" for n in range(1, 6)]
    # CoSb3 has the correction by the rule for anions of the results.
    assert [row["energy_per_atom"] for row in rows] == [-1 / 8, -2 / 8, -3 / 8, -4 / 8, -50 / 16]
    assert rows[1]["formula"] == "Na2Cl1"
    assert rows[1]["source"] == "DFT, correction MP2020 (require_bound)"
    assert len(server.asked) == 3
    # The key is only in the header: not in a URL, the log, or any file.
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
    ("key", "message"), [("", "set MP_API_KEY to your key"), ("wrong", "403 .*Check MP_API_KEY")]
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


def test_another_file_than_matbench_discoverys_is_rejected(tmp_path, server):
    server.file = gzip.compress(b"[]")
    with pytest.raises(FlowllmError, match=r"MD5 .* expected"):
        run(tmp_path, "matbench_discovery")
    assert not list((tmp_path / "hull").iterdir())


def test_the_projects_energies_have_its_correction():
    changes = {"source": "mp_api", "correction_scheme": "none"}
    with pytest.raises(FlowllmError, match="mp_api has energies of MP2020; set MP2020"):
        settings("dft_hull", dft_hull=changes)
