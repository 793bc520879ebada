"""Structure prediction's sampling with real vLLM on a tiny model."""

import pytest
from pymatgen.core import Element

from flowllm.errors import FlowllmError
from flowllm.stages import sample_csp
from flowllm.tables import CSP_BASE, crystal_of, read_table
from llm_run import merged_model, settings_for, small_crystals

K = 3


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return merged_model(tmp_path_factory.mktemp("csp"))


def predict(paths, out, start, count, chunk_size=4):
    settings = settings_for(
        "sample_csp",
        paths["base"],
        row="csp",
        csp_bases=[{"name": "csp", "temperature": 0.7, "top_p": 0.9, "attempts": K}],
        sample_base={"structured": True, "chunk_size": chunk_size},
    )
    model, crystals = paths["model"], paths["train"]
    sample_csp.run(
        settings, model=model, crystals=crystals, start=start, count=count, out=out, gpus=0
    )
    return read_table(out, CSP_BASE).to_pylist()


def test_every_attempt_has_the_atoms_of_its_test_crystal(paths, tmp_path):
    rows = predict(paths, tmp_path / "shard.parquet", 2, 4)
    expected = [(number, attempt) for number in range(2, 6) for attempt in range(K)]
    assert [row["id"] for row in rows] == [f"csp-{n:06d}-{k:03d}" for n, k in expected]
    for row, (number, _) in zip(rows, expected, strict=True):
        target = small_crystals()[number]
        assert row["material_id"] == f"crystal-{number}"
        atoms = " ".join(Element.from_Z(int(z)).symbol for z in target.atomic_numbers)
        assert f" {atoms}." in row["prompt"]
        assert row["status"] == "ok"
        found = crystal_of(row)
        assert sorted(found.atomic_numbers) == sorted(target.atomic_numbers)
    assert len({row["text"] for row in rows}) == len(rows)


def test_more_test_crystals_than_there_are(paths, tmp_path):
    with pytest.raises(FlowllmError, match=r"holds 8 crystals, .*lower sizes.num_csp_crystals"):
        predict(paths, tmp_path / "shard.parquet", 6, 3)
