"""prepare: real MP-20 rows and AFLOW prototypes against pymatgen and spglib, and every refusal."""

import contextlib
import csv
import json
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spglib
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import DummySpecies, IStructure, Lattice, Structure

from crystals import MP_20_SAMPLE
from flowllm.config.sections.data import Prepare
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.data import bundled
from flowllm.data.cif import crystal_from_cif
from flowllm.data.manifest import read_manifest
from flowllm.data.rejected import RejectedError
from flowllm.data.rows import SourceRow, read_rows, write_rows
from flowllm.data.splits import assign_splits, share_sizes
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.stages import download, prepare

SECTION = {
    "cell": "primitive",
    "max_atoms": 20,
    "max_rows": None,
    "split_shares": [0.6, 0.2, 0.2],
    "properties": {},
}

ROCK_SALT = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)


def settings(**changes) -> StageSettings:
    return StageSettings("prepare", {"seed": 42, "version": 1, "prepare": {**SECTION, **changes}})


def fetch(source: Path | str, out: Path) -> Path:
    """Run the real download and return its manifest."""
    data = {"source": str(source), "url": None}
    given = StageSettings("download", {"seed": 42, "version": 1, "data": data})
    download.run(given, out=out / "manifest.json")
    return out / "manifest.json"


def real_rows(split: str, count: int) -> list[dict[str, str]]:
    if not MP_20_SAMPLE.exists():
        pytest.skip(f"needs {MP_20_SAMPLE}")
    with (MP_20_SAMPLE / f"{split}.csv").open(newline="") as handle:
        return list(islice(csv.DictReader(handle), count))


def cif_of(*species: str, **changes: str) -> str:
    """CIF of a small tetragonal crystal; `changes` replaces pieces of its text."""
    spread = np.linspace(0, 0.8, len(species))
    coords = np.stack([spread, spread**2, spread**3], axis=1)
    structure = Structure(Lattice.tetragonal(4, 5), species, coords)
    text = structure.to(fmt="cif")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def write_csvs(folder: Path, rows: dict[str, list[dict[str, str]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, members in rows.items():
        write_rows(folder / f"{name}.csv", members[0], members)
    return folder


def small_rows(prefix: str, count: int) -> list[dict[str, str]]:
    metals = ["Li", "Na", "K", "Rb", "Cs", "Cu", "Ag", "Au", "Mg", "Ca"]
    return [{"material_id": f"{prefix}{i}", "cif": cif_of(metals[i % 10])} for i in range(count)]


@pytest.fixture
def sample(tmp_path) -> Path:
    """Manifest of the first real rows of each split."""
    rows = {split: real_rows(split, 40) for split in ("train", "val", "test")}
    return fetch(write_csvs(tmp_path / "source", rows), tmp_path / "download")


def as_dictionary(text: str) -> Structure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Structure.from_str(text, fmt="cif")


def check_niggli(lattice: Lattice) -> None:
    """The main conditions of a Niggli cell, International Tables A (2005), section 9.2.2."""
    a, b, c = lattice.matrix
    tolerance = 2e-3  # square angstrom; the record is float32
    lengths = [a @ a, b @ b, c @ c]
    products = [b @ c, a @ c, a @ b]
    assert all(np.diff(lengths) > -tolerance)
    # All angles acute, or none.
    assert min(products) > -tolerance or max(products) < tolerance
    limits = [lengths[1] / 2, lengths[0] / 2, lengths[0] / 2]
    assert all(np.abs(products) < np.array(limits) + tolerance)
    if max(products) < tolerance:
        assert np.abs(products).sum() < (lengths[0] + lengths[1]) / 2 + tolerance


def shortest_vectors(lattice: Lattice) -> list[float]:
    """Lengths of the three shortest independent lattice vectors, by trying all small ones."""
    steps = np.stack(np.meshgrid(*[np.arange(-5, 6)] * 3), axis=-1).reshape(-1, 3)
    vectors = steps @ lattice.matrix
    chosen: list[np.ndarray] = []
    for vector in vectors[np.argsort(np.linalg.norm(vectors, axis=1))]:
        trial = np.array([*chosen, vector])
        if np.linalg.matrix_rank(trial, tol=1e-3) == len(trial):
            chosen.append(vector)
        if len(chosen) == 3:
            break
    return [float(np.linalg.norm(vector)) for vector in chosen]


def check_reduced(given: Structure, crystal: Crystal) -> None:
    """The same crystal, in the cell that spglib too calls Niggli's, as pymatgen judges."""
    made = crystal.to_structure()
    # A tolerance far below that of two crystals that merely resemble each other.
    matcher = StructureMatcher(ltol=0.005, stol=0.005, angle_tol=0.5, scale=False)
    assert matcher.fit(given, made)
    atoms = given.num_sites / made.num_sites
    assert atoms == round(atoms)
    assert made.volume * atoms == pytest.approx(given.volume, rel=1e-5)
    check_niggli(made.lattice)
    np.testing.assert_allclose(shortest_vectors(made.lattice), crystal.lengths, 1e-4)
    assert crystal.frac_coords.dtype == np.float32
    assert crystal.frac_coords.min() >= 0
    assert crystal.frac_coords.max() < 1


def test_real_rows_stay_the_same_crystals(tmp_path, sample):
    out = tmp_path / "crystals"
    prepare.run(settings(), manifest=sample, out=out, workers=1)
    for split in ("train", "val", "test"):
        rows = tables.read_table(out / f"{split}.parquet", schemas.CRYSTALS).to_pylist()
        source = real_rows(split, 40)
        assert [row["id"] for row in rows] == [row["material_id"] for row in source]
        for row, original in zip(rows, source, strict=True):
            crystal = tables.crystal_of(row)
            structure = as_dictionary(original["cif"])
            check_reduced(structure, crystal)
            assert row["num_atoms"] == crystal.num_atoms
            assert row["reduced_formula"] == structure.composition.reduced_formula
            for name in ("formation_energy_per_atom", "band_gap", "e_above_hull"):
                assert row[name] == float(original[name])
            assert row["space_group_number"] == int(original["spacegroup.number"])
    assert tables.read_table(out / "rejected.parquet", schemas.REJECTED).num_rows == 0


def test_prototypes_stay_the_same_crystals():
    for row in islice(bundled.prototypes(), 0, None, 5):
        structure = as_dictionary(row["cif"])
        if len(structure) <= 20:
            crystal = crystal_from_cif(row["cif"], "primitive", 20)
            check_reduced(structure, crystal)
            # spglib's own search for the primitive cell.
            cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
            primitive = spglib.find_primitive(cell, symprec=0.01)
            assert crystal.num_atoms == len(primitive[2])


def test_bundled_source(tmp_path):
    manifest = fetch("bundled", tmp_path / "download")
    prepare.run(settings(), manifest=manifest, out=tmp_path / "crystals", workers=2)
    parts = {
        name: pd.read_parquet(tmp_path / "crystals" / f"{name}.parquet")
        for name in ("train", "val", "test", "rejected")
    }
    # 250 of 288 have at most 20 atoms.
    assert sum(len(parts[name]) for name in ("train", "val", "test")) == 250
    assert set(parts["rejected"]["reason"]) == {"too_many_atoms"}
    assert len(parts["rejected"]) == 38
    record = json.loads((tmp_path / "_crystals.provenance.json").read_text())
    assert record["counts"]["rows_in"] == 288
    assert record["counts"]["rows_failed"] == 38
    assert record["counts"]["rejected"] == {"too_many_atoms": 38}


def test_content_does_not_depend_on_the_workers(tmp_path, sample):
    for name, workers in (("a", 1), ("b", 3)):
        prepare.run(settings(), manifest=sample, out=tmp_path / name, workers=workers)
    for name in ("train", "val", "test", "rejected"):
        files = [(tmp_path / folder / f"{name}.parquet").read_bytes() for folder in ("a", "b")]
        assert files[0] == files[1]


def test_cell_as_given_keeps_the_volume():
    text = ROCK_SALT.to(fmt="cif")
    assert crystal_from_cif(text, "primitive", 20).num_atoms == 2
    kept = crystal_from_cif(text, "as_given", 20)
    assert kept.formula == "Na4Cl4"
    np.testing.assert_allclose(kept.lengths, 5.64, rtol=1e-6)


def test_small_displacements_are_not_averaged_away():
    """A doubled cell whose halves differ by more than noise is a crystal of its own."""
    doubled = Structure(Lattice.tetragonal(4, 8), ["Na", "Na"], [[0, 0, 0], [0, 0, 0.5]])
    assert crystal_from_cif(doubled.to(fmt="cif"), "primitive", 20).num_atoms == 1
    doubled.translate_sites([1], [0, 0, 0.01])  # 0.08 angstrom
    assert crystal_from_cif(doubled.to(fmt="cif"), "primitive", 20).num_atoms == 2


CELL = "_cell_length_a   4.00000000"

REJECTED = {
    "bad_cif": [
        "nonsense",
        cif_of("Na", **{CELL: "_cell_length_a   ?"}),
        cif_of("Na", **{CELL: "_cell_length_a   0.0"}),
        cif_of("Na", **{CELL: "_cell_length_a   nan"}),
        cif_of("Na") + cif_of("Cl"),
    ],
    "formula_mismatch": [
        cif_of("Na", "Cl", **{"'Na1 Cl1'": "'Na2 Cl1'"}),
        cif_of("Na", "Cl", **{"'Na1 Cl1'": "'Na1 Cl1 H2'"}),
    ],
    "disordered": [
        Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]).to(fmt="cif"),
        Structure(Lattice.cubic(4), [{"Na": 0.5}], [[0, 0, 0]]).to(fmt="cif"),
    ],
    "no_element": [Structure(Lattice.cubic(4), [DummySpecies("X")], [[0, 0, 0]]).to(fmt="cif")],
    "too_many_atoms": [
        cif_of(*["Na"] * 20, "Cl"),
        # 21 atoms of one element at places that no translation brings together.
        cif_of(*["Na"] * 21, **{"4.00000000": "40.00000000", "5.00000000": "50.00000000"}),
    ],
    "close_atoms": [cif_of(*["Na"] * 21)],
}


@pytest.mark.parametrize(
    ("reason", "text"), [(reason, text) for reason, texts in REJECTED.items() for text in texts]
)
def test_every_refusal_of_a_crystal(reason, text):
    with pytest.raises(RejectedError) as caught:
        crystal_from_cif(text, "primitive", 20)
    assert caught.value.reason == reason
    assert caught.value.detail


def test_a_reduction_that_fails_is_a_reason(monkeypatch):
    monkeypatch.setattr(spglib, "niggli_reduce", lambda *_, **__: None)
    with pytest.raises(RejectedError, match="not_reduced: ValueError: no Niggli cell"):
        crystal_from_cif(cif_of("Na"), "primitive", 20)


def test_a_hopeless_cell_is_turned_away_at_once(monkeypatch):
    monkeypatch.delattr(IStructure, "get_primitive_structure")  # nobody may search for it
    rng = np.random.default_rng(0)
    large = Structure(Lattice.cubic(30), ["Na"] * 400 + ["Cl"], rng.random((401, 3)))
    with pytest.raises(RejectedError, match="too_many_atoms: 401 atoms in the formula"):
        crystal_from_cif(large.to(fmt="cif"), "primitive", 20)


@given(text=st.text(max_size=200))
def test_any_text_is_a_crystal_or_a_reason(text):
    for cif in (text, cif_of("Na", "Cl").replace("4.00000000", text, 1)):
        with contextlib.suppress(RejectedError):
            assert crystal_from_cif(cif, "primitive", 20).num_atoms <= 20


def test_a_malformed_row_does_not_take_its_id_from_a_good_one():
    def row(number, cif, problem=None):
        return SourceRow("train", "train.csv", number, {"material_id": "a", "cif": cif}, problem)

    malformed = row(0, cif_of("Na"), "3 cells under 2 columns")
    rows = [malformed, row(1, "nonsense"), malformed, row(3, cif_of("K"))]
    assert prepare.form_problems(rows) == [
        ("bad_row", "3 cells under 2 columns"),
        None,  # its crystal is rejected when it is read, but the id is its own
        ("bad_row", "3 cells under 2 columns"),
        ("duplicate_material_id", "as train.csv, row 1"),
    ]


def test_every_bad_row_is_listed(tmp_path):
    good = small_rows("t", 3)
    bad = [
        {"material_id": "", "cif": cif_of("Na")},
        {"material_id": "t0", "cif": cif_of("K")},
        {"material_id": "broken", "cif": "nonsense"},
        {"material_id": "gap", "cif": cif_of("Na"), "band_gap": "wide"},
        {"material_id": "group", "cif": cif_of("Na"), "spacegroup.number": "inf"},
        {"material_id": "salt", "cif": cif_of("Na", **{"'P 1'": "'F m -3 m'"})},
    ]
    columns = {"material_id": "", "cif": "", "band_gap": "", "spacegroup.number": ""}
    rows = {
        "train": [{**columns, **row} for row in good[:1] + bad + good[1:]],
        "val": [*small_rows("v", 1), {"material_id": "t1", "cif": cif_of("Na")}],
        "test": small_rows("e", 1),
    }
    source = write_csvs(tmp_path / "source", rows)
    with (source / "test.csv").open("a") as handle:
        handle.write("one cell\n")
    manifest = fetch(source, tmp_path / "download")
    prepare.run(settings(), manifest=manifest, out=tmp_path / "out", workers=1)
    rejected = tables.read_table(tmp_path / "out" / "rejected.parquet", schemas.REJECTED)
    found = [
        (row["split"], row["file"], row["row"], row["material_id"], row["reason"])
        for row in rejected.to_pylist()
    ]
    assert found == [
        ("train", "train.csv", 1, None, "no_material_id"),
        ("train", "train.csv", 2, "t0", "duplicate_material_id"),
        ("train", "train.csv", 3, "broken", "bad_cif"),
        ("train", "train.csv", 4, "gap", "bad_number"),
        ("train", "train.csv", 5, "group", "bad_number"),
        ("train", "train.csv", 6, "salt", "symmetry_mismatch"),
        ("val", "val.csv", 1, "t1", "duplicate_material_id"),
        ("test", "test.csv", 1, "one cell", "bad_row"),
    ]
    # `row` is what pandas counts.
    frame = pd.read_csv(tmp_path / "download" / "train.csv")
    assert frame.iloc[3]["material_id"] == "broken"
    train = pd.read_parquet(tmp_path / "out" / "train.parquet")
    assert list(train["id"]) == ["t0", "t1", "t2"]
    assert train["band_gap"].isna().all()
    assert train["e_above_hull"].isna().all()


@pytest.mark.parametrize("word", ["", " ", "None", "NA", "N/A", "nan", "NaN", "null", "<NA>", "?"])
def test_a_missing_property_costs_no_crystal(tmp_path, word):
    rows = {name: small_rows(name, 1) for name in ("train", "val", "test")}
    rows["train"][0] |= {"band_gap": word, "e_above_hull": "0.1", "spacegroup.number": word}
    manifest = fetch(write_csvs(tmp_path / "source", rows), tmp_path / "download")
    prepare.run(settings(), manifest=manifest, out=tmp_path / "out", workers=1)
    (row,) = tables.read_table(tmp_path / "out" / "train.parquet", schemas.CRYSTALS).to_pylist()
    found = [row[name] for name in ("band_gap", "e_above_hull", "space_group_number")]
    assert found == [None, 0.1, None]


def test_rejected_cif_file_keeps_its_name(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for i in range(6):
        (source / f"good-{i}.cif").write_text(cif_of("Na"))
    (source / "broken.cif").write_text("data_broken")
    manifest = fetch(source, tmp_path / "download")
    prepare.run(settings(), manifest=manifest, out=tmp_path / "out", workers=1)
    (row,) = tables.read_table(tmp_path / "out" / "rejected.parquet", schemas.REJECTED).to_pylist()
    assert (row["file"], row["material_id"], row["reason"]) == ("broken.cif", "broken", "bad_cif")
    record = json.loads((tmp_path / "_out.provenance.json").read_text())
    assert record["counts"]["rows_in"] == 7
    assert record["counts"]["rows_out"] == 6


def splits_of(out: Path) -> dict[str, str]:
    return {
        name: split
        for split in ("train", "val", "test")
        for name in pd.read_parquet(out / f"{split}.parquet")["id"]
    }


def test_drawn_split_does_not_depend_on_the_order_of_rows(tmp_path):
    rows = small_rows("m", 20)
    for name, members in (("a", rows), ("b", rows[::-1])):
        manifest = fetch(
            write_csvs(tmp_path / f"source-{name}", {"all": members}), tmp_path / f"download-{name}"
        )
        prepare.run(settings(), manifest=manifest, out=tmp_path / name, workers=1)
    found = splits_of(tmp_path / "a")
    assert found == splits_of(tmp_path / "b")
    assert len(found) == 20
    assert [list(found.values()).count(split) for split in ("train", "val", "test")] == [12, 4, 4]


def test_drawn_split_depends_on_the_seed():
    names = [f"mp-{i}" for i in range(200)]
    one, two = (assign_splits(names, (0.6, 0.2, 0.2), seed) for seed in (1, 2))
    agree = sum(one[name] == two[name] for name in names)
    # Independent draws agree with probability 0.36 + 0.04 + 0.04.
    assert 60 < agree < 116


@given(
    total=st.integers(0, 500),
    cuts=st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted),
)
def test_shares_are_exact(total, cuts):
    shares = (cuts[0] / 100, (cuts[1] - cuts[0]) / 100, 1 - cuts[1] / 100)
    sizes = share_sizes(total, shares)
    assert sum(sizes) == total
    for size, share in zip(sizes, shares, strict=True):
        # One off for rounding, one or two more to give every share its first.
        assert abs(size - share * total) < 3
        if share == 0:
            assert size == 0
        elif total >= 3 and share > 0.001:
            assert size >= 1


def test_max_rows_takes_the_first(tmp_path):
    rows = {"train": small_rows("t", 5), "val": small_rows("v", 4), "test": small_rows("e", 1)}
    manifest = fetch(write_csvs(tmp_path / "source", rows), tmp_path / "download")
    prepare.run(settings(max_rows=2), manifest=manifest, out=tmp_path / "out", workers=1)
    assert list(splits_of(tmp_path / "out")) == ["t0", "t1", "v0", "v1", "e0"]
    record = json.loads((tmp_path / "_out.provenance.json").read_text())
    assert record["counts"]["rows_unused"] == 5


def test_empty_split_says_what_became_of_its_rows(tmp_path):
    rows = {
        "train": small_rows("t", 2),
        "val": [{"material_id": "v", "cif": "nonsense"}],
        "test": small_rows("e", 1),
    }
    manifest = fetch(write_csvs(tmp_path / "source", rows), tmp_path / "download")
    with pytest.raises(FlowllmError, match=r"split val is empty \(bad_cif 1 rejected.*max_atoms"):
        prepare.run(settings(), manifest=manifest, out=tmp_path / "out", workers=1)
    assert tables.read_table(tmp_path / "out" / "rejected.parquet", schemas.REJECTED).num_rows == 1


@pytest.fixture
def manifest(tmp_path) -> Path:
    rows = {"train": small_rows("t", 2), "val": small_rows("v", 1), "test": small_rows("e", 1)}
    return fetch(write_csvs(tmp_path / "source", rows), tmp_path / "download")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("v0", "w0"), r"val\.csv: checksum differs.*download. again"),
        (lambda text: text[:-10], r"val\.csv: \d+ bytes, but \d+ in the manifest; delete val\.csv"),
        (None, r"val\.csv: listed in the manifest, but missing"),
    ],
)
def test_files_must_be_what_the_manifest_says(manifest, change, message):
    path = manifest.with_name("val.csv")
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text()))
    with pytest.raises(FlowllmError, match=message):
        prepare.run(settings(), manifest=manifest, out=manifest.parent / "out", workers=1)


@pytest.mark.parametrize(
    "name", ["../val.csv", "/etc/passwd", "..", "a/b.csv", ".hidden", "a\\b", ""]
)
def test_manifest_cannot_lead_out_of_its_folder(manifest, name):
    text = json.loads(manifest.read_text())
    text["files"][1]["name"] = name
    manifest.write_text(json.dumps(text))
    with pytest.raises(FlowllmError, match=r"not a manifest of download(.|\n)*name"):
        read_manifest(manifest)


@pytest.mark.parametrize("splits", [["train", "val"], [None, None], ["train", "train", "test"], []])
def test_manifest_must_list_every_split_once(manifest, splits):
    text = json.loads(manifest.read_text())
    file = text["files"][0]
    text["files"] = [{**file, "split": split} for split in splits]
    manifest.write_text(json.dumps(text))
    with pytest.raises(FlowllmError, match="expected one of each"):
        read_manifest(manifest)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"kind": "bundled"}'])
def test_malformed_manifest(tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(FlowllmError, match=r"manifest\.json: not a manifest of download"):
        read_manifest(path)


def test_missing_manifest(tmp_path):
    with pytest.raises(FlowllmError, match=r"No such file.*flowllm download"):
        read_manifest(tmp_path / "manifest.json")


def test_missing_column_names_file_and_column(tmp_path):
    (tmp_path / "all.csv").write_text("material_id,structure\na,b\n")
    with pytest.raises(FlowllmError, match=r"all\.csv: column 'cif' is missing"):
        list(read_rows(tmp_path / "all.csv", None))


def test_settings_are_in_the_files(tmp_path, manifest):
    prepare.run(settings(), manifest=manifest, out=tmp_path / "out", workers=1)
    footer = tables.read_metadata(tmp_path / "out" / "train.parquet")
    assert Prepare.model_validate(footer["settings"]["prepare"]) == Prepare.model_validate(SECTION)
    assert footer["seed"] == 42
    assert str(tmp_path) not in json.dumps(footer)


def test_own_columns_are_carried_and_their_bad_values_rejected(tmp_path):
    cif = cif_of("Na", "Cl")
    cells = [("1.5", "FM"), ("", ""), ("high", "FM"), ("2", "ferro"), ("-0", "AFM"), ("3", "FM")]
    rows = [
        {"material_id": f"m{i}", "cif": cif, "mu B": moment, "order": order}
        for i, (moment, order) in enumerate(cells)
    ]
    write_rows(tmp_path / "source" / "train.csv", rows[0], rows[:4])
    write_rows(tmp_path / "source" / "val.csv", rows[0], rows[4:5])
    write_rows(tmp_path / "source" / "test.csv", rows[0], rows[5:])
    own = {
        "moment": {"column": "mu B"},
        "magnetism": {"column": "order", "categories": ["FM", "AFM"]},
    }
    manifest = fetch(tmp_path / "source", tmp_path / "download")
    prepare.run(settings(properties=own), manifest=manifest, out=tmp_path / "crystals")
    found = {}
    for split in ("train", "val", "test"):
        path = tmp_path / "crystals" / f"{split}.parquet"
        for row in tables.read_table(path, schemas.CRYSTALS_WITH_PROPERTIES).to_pylist():
            found[row["id"]] = dict(row["numbers"]), dict(row["labels"])
    assert found == {
        "m0": ({"moment": 1.5}, {"magnetism": "FM"}),
        "m1": ({}, {}),
        "m4": ({"moment": 0.0}, {"magnetism": "AFM"}),
        "m5": ({"moment": 3.0}, {"magnetism": "FM"}),
    }
    rejected = tables.read_table(tmp_path / "crystals" / "rejected.parquet", schemas.REJECTED)
    assert {(row["row"], row["reason"], row["detail"]) for row in rejected.to_pylist()} == {
        (2, "bad_number", "mu B is 'high', expected a number"),
        (3, "unknown_category", "order is 'ferro', expected one of FM, AFM"),
    }


def test_an_own_column_that_the_source_lacks_is_refused(tmp_path):
    rows = [{"material_id": f"m{i}", "cif": cif_of("Na", "Cl")} for i in range(5)]
    write_rows(tmp_path / "source" / "all.csv", rows[0], rows)
    manifest = fetch(tmp_path / "source", tmp_path / "download")
    given = settings(properties={"moment": {"column": "moment"}})
    with pytest.raises(FlowllmError, match=r"moment needs the column 'moment'.*found material_id"):
        prepare.run(given, manifest=manifest, out=tmp_path / "crystals")
