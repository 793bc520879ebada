"""dft_hull: reference entries of DFT energies from the file the configuration names."""

import json

import pytest

from energy_rows import settings
from flowllm import tables
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
