"""`flowllm generate`: conditions as users write them, sampled with the second engine."""

from pathlib import Path

import pytest

from flowllm.commands.generate_drafts import draft_rows
from flowllm.data.wishes import read_wishes
from flowllm.errors import FlowllmError
from llm_run import merged_model, settings_for


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    return merged_model(tmp_path_factory.mktemp("request"))


def draw(paths, *asked: dict[str, str], **changes) -> list[dict]:
    changes = {"backend": "transformers", "structured": False, "max_attempts": 1} | changes
    base = {"row": "tau0.7-p0.9", "sample_base": changes}
    settings = settings_for("sample_base", paths["base"], **base)
    return draft_rows(settings, model=paths["model"], asked=asked, count=2, gpus=0)


def test_formulas_in_any_order_are_asked_for_as_in_training(paths):
    rows = draw(paths, {"formula": "Cl2Na2"}, {})
    assert [row["id"][:11] for row in rows] == ["sample-0000"] * 2 + ["sample-0001"] * 2
    asked = "Na Na Cl Cl"
    assert [asked in row["prompt"] for row in rows] == [True, True, False, False]
    assert len({row["text"] for row in rows}) == 4
    assert all(row["attempts"] == 1 for row in rows)


def test_structured_decoding_gives_the_formula(paths):
    changes = {"backend": "vllm", "structured": True, "max_attempts": 20}
    rows = draw(paths, {"formula": "ClNa"}, **changes)
    assert [row["formula"] for row in rows] == ["Na1Cl1"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"e_above_hull": "0.0"}, "e_above_hull"),  # the model was trained on the formula alone
        ({"e_above_hull": "low"}, "low"),
        ({"formula": "FeO"}, "no training crystal of the model has Fe"),
        ({"formula": "Xx2"}, "Xx2"),
        ({"formula": "Na0.5Cl"}, "whole"),
        ({"formula": "Na1e400"}, "whole"),
        ({"formula": "NA"}, "not an element"),
        ({"formula": "Na0"}, "no atoms"),
        # small_crystals has at most five atoms.
        ({"formula": "Na4Cl4"}, r"Na4Cl4 has 8 atoms, .* at most 5; ask for fewer"),
        ({"formula": "Na999999999999Cl"}, "has 1000000000000 atoms, .* at most 5"),
        ({"elements": "Na,K,Rb,Cs,Li,Cl"}, "has 6 atoms, .* at most 5"),
        ({"elements": "C,o"}, "'o' is not the symbol"),
        ({"elements": ","}, "no symbol"),
        ({"band_gap": "nan"}, "band_gap is 'nan', expected a number; leave it out"),
        ({"band_gap": "inf"}, "band_gap is 'inf'"),
        ({"e_above_hull": "1e400"}, "e_above_hull is '1e400'"),
        ({"space_group_number": "999"}, "1 to 230"),
        ({"space_group_number": "225.7"}, "1 to 230"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(paths, words, message):
    with pytest.raises(FlowllmError, match=message):
        draw(paths, words)


def test_a_file_of_conditions(tmp_path):
    path = tmp_path / "wishes.csv"
    path.write_text("formula,band_gap\nNa1Cl1,1.5\n,0.0\nSi2,\n")
    expected = [{"formula": "Na1Cl1", "band_gap": "1.5"}, {"band_gap": "0.0"}, {"formula": "Si2"}]
    assert read_wishes(path) == expected
    path.write_text("formula,bandgap\nNa1Cl1,1.5\n")
    with pytest.raises(FlowllmError, match="bandgap"):
        read_wishes(path)
    path.write_text("formula\n")
    with pytest.raises(FlowllmError, match="no rows"):
        read_wishes(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeffformula,elements,band_gap\nNa4Cl4,,\n", [{"formula": "Na4Cl4"}]),
        ('formula,elements\r\n,"Ga,As"\r\n', [{"elements": "Ga,As"}]),
        ("space_group_number\n225.0\n", [{"space_group_number": "225.0"}]),
        (" band_gap , formula\n 1.5 , Na\n\n\n", [{"band_gap": "1.5", "formula": "Na"}]),
    ],
)
def test_files_of_other_programs(tmp_path, text, expected):
    path = tmp_path / "wishes.csv"
    path.write_text(text, newline="")
    assert read_wishes(path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("formula,elements\n,Ga,As\n", r'line 2: 3 cells under 2 columns.*in quotes: "Ga,As"'),
        ("formula,elements\nNa,\n,Ga,As\n", "line 3: 3 cells"),
        ("formula,band_gap\nNa\n", "line 2: 1 cells under 2 columns"),
        ("band_gap,formula\n1,5,Na\n", "line 2: 3 cells"),
        ("band_gap\ninf\n", "line 2: band_gap is 'inf'"),
        ("band_gap\n1.0\n1e400\n", "line 3: band_gap is '1e400'"),
        ("band_gap\nnan\n", "line 2: band_gap is 'nan'"),
        ("space_group_number\n999\n", "line 2: space_group_number is '999'"),
        ("formula,band_gap\nNa,1.5\n,\n", "line 3: no condition; delete the line"),
        ("formula;band_gap\nNa;1,5\n", "separated by semicolons; save the file with commas"),
        ("formula\tband_gap\nNa\t1.5\n", "separated by tabs"),
        ("band_gap,band_gap\n1,2\n", "two columns are named 'band_gap'"),
        ('formula\n"Na\n', "line 2: not CSV"),
        ("", "empty"),
        ("formula\nNa\n".encode("utf-16"), "not UTF-8.*CSV UTF-8"),
    ],
)
def test_files_that_may_mean_something_else_are_refused(tmp_path, text, message):
    path = tmp_path / "wishes.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FlowllmError, match=message):
        read_wishes(path)


def test_a_missing_file_of_conditions(tmp_path):
    with pytest.raises(FlowllmError, match=r"none\.csv: No such file"):
        read_wishes(tmp_path / "none.csv")
