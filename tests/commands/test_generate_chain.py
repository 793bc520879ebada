"""`flowllm generate` with a finished run: its numbers are those of the pipeline's stages."""

import json

import pyarrow.parquet as pq
import pytest
import yaml
from pymatgen.core import Element, Structure

from flowllm.commands import release
from flowllm.commands.generate import Request, generate
from flowllm.commands.generate_chain import follow, open_hull
from flowllm.commands.generate_run import open_run
from flowllm.errors import FlowllmError
from flowllm.io import schemas
from flowllm.io.release import CARD, RELEASE
from flowllm.io.tables import crystal_of, read_metadata, read_table
from flowllm.runtime.provenance import read_provenance

METHOD = "FlowLLM-tau0.7-p0.9"


@pytest.fixture(scope="module")
def run(finished_run):
    return open_run(finished_run / "run", None, None, drafts=True)


@pytest.fixture(scope="module")
def unrefined(finished_run):
    """The method without a flow, since the tiny flow's crystals are often not physical."""
    return open_run(finished_run / "run", None, "CrystalLLM-tau0.7-p0.9", drafts=True)


def drawn(run) -> Request:
    """Four drafts of light elements of the training crystals."""
    numbers = read_table(run.splits["train"], schemas.CRYSTALS)["atomic_numbers"].to_pylist()
    light = sorted({number for row in numbers for number in row if 2 < number < 50})
    symbols = ",".join(Element.from_Z(number).symbol for number in light[:6])
    return Request(({"elements": symbols, "elements_mode": "subset"},), count=4)


@pytest.fixture(scope="module")
def generated(unrefined, tmp_path_factory):
    """The folder of four drafts on request, and its rows."""
    out = tmp_path_factory.mktemp("generate") / "wishes"
    return out, generate(unrefined, drawn(unrefined), out)


@pytest.mark.parametrize("shard", ["00000", "00001"])
def test_equal_drafts_have_the_rows_of_the_stages(run, shard):
    drafts = read_table(run.folder / f"base/tau0.7-p0.9/shard-{shard}.parquet", schemas.BASE)
    followed = follow(drafts.to_pylist(), run, open_hull(run))
    folders = {"generated": schemas.GENERATED, "relaxed": schemas.RELAXED}
    for folder, schema in folders.items():
        table = read_table(run.folder / f"{folder}/{METHOD}/shard-{shard}.parquet", schema)
        assert [getattr(one, folder) for one in followed] == table.to_pylist()
    ids = [one.draft["id"] for one in followed]
    stability = read_table(run.folder / f"stability/potential/{METHOD}.parquet", schemas.STABILITY)
    expected = {row["id"]: row for row in stability.to_pylist()}
    assert [one.stability for one in followed] == [expected[name] for name in ids]
    path = run.folder / f"metrics/potential/{METHOD}.parquet"
    metrics = {row["id"]: row for row in pq.read_table(path).to_pylist()}
    for one in followed:
        # Uniqueness depends on the other crystals, which are those of one shard here.
        for name in ("structurally_valid", "stable", "novel", "matched_material_id"):
            assert one.judged[name] == metrics[one.draft["id"]][name]


def test_the_folder_has_table_cifs_and_page_in_order_of_the_energy(generated):
    out, rows = generated
    table = read_table(out / "crystals.parquet", schemas.ON_REQUEST).to_pylist()
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    energies = [row["e_above_hull"] for row in table if row["e_above_hull"] is not None]
    assert energies == sorted(energies)
    relaxed = [row for row in table if row["rank"] is not None]
    assert relaxed
    assert [row["rank"] for row in relaxed] == list(range(1, len(relaxed) + 1))
    assert sorted(path.name for path in (out / "cif").iterdir()) == [
        row["cif"].removeprefix("cif/") for row in relaxed
    ]
    for row in relaxed:
        written, crystal = Structure.from_file(out / row["cif"]), crystal_of(row)
        assert written.composition.reduced_formula == row["reduced_formula"]
        assert written.volume == pytest.approx(crystal.to_structure().volume, rel=1e-4)
    page = (out / "index.html").read_text()
    assert all(row["reduced_formula"] in page for row in relaxed)
    assert "http" not in page.replace("http-equiv", "")


def test_the_wish_is_in_table_and_drafts(unrefined, generated):
    out, _ = generated
    for name, schema in (
        ("crystals", schemas.ON_REQUEST),
        ("drafts", schemas.REQUESTED_BASE),
    ):
        for row in read_table(out / f"{name}.parquet", schema).to_pylist():
            assert dict(row["asked"]) == drawn(unrefined).asked[0]


def test_equal_requests_have_equal_tables(unrefined, generated, tmp_path):
    generate(unrefined, drawn(unrefined), tmp_path / "again")
    for name in ("crystals.parquet", "drafts.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (generated[0] / name).read_bytes()


def test_the_record_has_the_settings_of_all_stages(unrefined, generated):
    record = read_provenance(generated[0] / "crystals.parquet")
    assert {"sample_base", "refine", "method", "prerelax", "stability", "metrics"} <= set(
        record["settings"]
    )
    assert record["work"]["asked"] == [dict(drawn(unrefined).asked[0])]
    assert record["counts"]["rows_in"] == 4
    assert read_metadata(generated[0] / "crystals.parquet")["inputs"] == record["inputs"]


def test_given_crystals_take_the_place_of_drafts(run, tmp_path):
    salt = Structure.from_spacegroup(
        "Fm-3m", [[5.64, 0, 0], [0, 5.64, 0], [0, 0, 5.64]], ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]
    )
    (tmp_path / "cifs").mkdir()
    salt.to(filename=str(tmp_path / "cifs" / "salt.cif"))
    (tmp_path / "cifs" / "broken.cif").write_text("data_x\n")
    out = tmp_path / "out"
    rows = generate(run, Request((), 1, given=tmp_path / "cifs"), out)
    by_name = {row["source_name"]: row for row in rows}
    # The conventional cell of eight atoms becomes the primitive one of the training crystals.
    assert by_name["salt.cif"]["formula"] == "Na1Cl1"
    assert by_name["salt.cif"]["rank"] == 1
    assert by_name["broken.cif"]["status"] == "unreadable"
    assert len(list((out / "cif").iterdir())) == 1


def test_drafts_alone(run, tmp_path):
    out = tmp_path / "out"
    assert generate(run, Request(({},), 2, drafts_only=True), out) == []
    assert [path.name for path in out.glob("[!_]*")] == ["drafts.parquet"]
    table = read_table(out / "drafts.parquet", schemas.REQUESTED_BASE)
    assert table["id"].to_pylist() == ["sample-0000-000000", "sample-0000-000001"]


def test_a_release_of_the_run_judges_and_samples_as_the_run_does(run, unrefined, tmp_path):
    about = {"title": "Tiny", "license": "mit", "data": "Prototypes.", "limits": []}
    about |= {"attribution": ["pymatgen"], "commands": "make test"}
    (tmp_path / "about.yaml").write_text(yaml.safe_dump(about))
    for one in (run, unrefined):
        out, name = tmp_path / one.method.name, one.method.name
        release.run(run=one.folder, out=out, about=tmp_path / "about.yaml", name=name)
    released = open_run(tmp_path / unrefined.method.name, None, None, drafts=True)
    shard = run.folder / "base/tau0.7-p0.9/shard-00000.parquet"
    drafts = read_table(shard, schemas.BASE).to_pylist()
    expected = follow(drafts, unrefined, open_hull(unrefined))
    assert follow(drafts, released, open_hull(released)) == expected
    with_flow = open_run(tmp_path / run.method.name, None, None, drafts=True)
    rows = generate(with_flow, drawn(run), tmp_path / "out")  # vLLM reads the float16 weights
    assert len(rows) == 4
    record = json.loads((with_flow.folder / RELEASE).read_text())
    assert [one["method"] for one in record["results"]] == [METHOD, unrefined.method.name]
    drawn_before = record["results"][0]["rates"]["relaxed"]["denominator"]
    assert drawn_before == run.config.sizes.num_samples
    assert f"| {METHOD} | {drawn_before} |" in (with_flow.folder / CARD).read_text()


def test_a_failed_request_leaves_nothing(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlowllmError, match="contain no file"):
        generate(run, Request((), 1, given=tmp_path / "empty"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
