"""`flowllm generate`: options, what a run may lack, the order of the table, and its warnings."""

import io
import re
from pathlib import Path

import pytest
import yaml

from crystals import caesium_chloride, perovskite, rocksalt
from flowllm.cli import main
from flowllm.commands.generate import run as command
from flowllm.commands.generate_chain import Followed
from flowllm.commands.generate_files import check_output, page, printed_table, warnings_of
from flowllm.commands.generate_run import open_run
from flowllm.commands.generate_table import table_rows, verdict, wishes_text
from flowllm.config.load import load_config
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import HullFile, ReferenceHull
from flowllm.io.tables import crystal_columns
from flowllm.report.gallery import BARE
from flowllm.runtime.log import Progress, log, progress_bars, setup_logging
from tiny_run import ROOT

CONFIGS = [ROOT / "config.yaml", ROOT / "workflow" / "config" / "smollm2.yaml"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a run that has started and finished nothing."""
    values = load_config(CONFIGS).model_dump(mode="json")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(values | {"run_dir": str(run)}))
    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model m --out o", r"is now --run FOLDER"),
        ("--run r --model m --out o", r"is now --run FOLDER"),
        ("--run r --conditions=c.csv --out o", "now named --wishes"),
        ("--run r --space-group-number 225 --out o", "now named --space-group"),
        ("--run r --space-group 999 --out o", "Must be <= 230"),
        ("--run r --count 0 --out o", "--count"),
    ],
)
def test_options_of_earlier_versions_name_their_successors(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        main(["generate", *words.split()])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_what_the_run_lacks_is_named_with_the_command_that_makes_it(folder, tmp_path):
    with pytest.raises(FlowllmError) as caught:
        command(run=folder, out=tmp_path / "out", formula="NaCl")
    said = str(caught.value)
    for part in ("llm/model", "rfm/llm", "hull/potential.parquet", "crystals/train.parquet"):
        assert f"no {part}" in said
    assert f"snakemake --cores all --configfile {folder}/config.yaml {folder}/llm/model" in said
    assert not (tmp_path / "out").exists()


def test_drafts_alone_need_the_language_model_alone(folder, tmp_path):
    with pytest.raises(FlowllmError) as caught:
        command(run=folder, out=tmp_path / "out", drafts_only=True)
    assert "llm/model" in str(caught.value)
    assert "hull" not in str(caught.value)


def test_given_crystals_need_no_language_model(folder, tmp_path):
    with pytest.raises(FlowllmError) as caught:
        command(run=folder, out=tmp_path / "out", given=tmp_path)
    assert "hull/potential.parquet" in str(caught.value)
    assert "llm/model" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"formula": "NaCl", "wishes": Path("w.csv")}, "either as options or as a file"),
        ({"given": Path("cifs"), "formula": "NaCl"}, "takes no conditions"),
        ({"given": Path("cifs"), "count": 3}, "takes no conditions, no --count"),
        ({"given": Path("cifs"), "drafts_only": True}, "no --drafts-only"),
        ({"name": "nothing"}, "--name nothing: not one of the run's methods FlowLLM"),
    ],
)
def test_options_that_contradict_each_other_are_refused(folder, tmp_path, given, message):
    with pytest.raises(FlowllmError, match=message):
        command(run=folder, out=tmp_path / "out", **given)


def test_the_first_method_that_samples_the_language_model_is_followed(folder):
    values = yaml.safe_load((folder / "config.yaml").read_text())
    flow = next(method for method in values["methods"] if method["flow"])
    other = {"name": "uniform", "base": "train_compositions", "flow": "types", "num_steps": 5}
    values |= {"methods": [other, flow]}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert open_run(folder, None, None, drafts=True).method.name == flow["name"]
    assert open_run(folder, None, None, drafts=False).method.name == "uniform"


def test_folders_that_are_no_run_are_said(tmp_path):
    with pytest.raises(FlowllmError, match="no such folder"):
        open_run(tmp_path / "none", None, None, drafts=True)
    with pytest.raises(FlowllmError, match=r"config\.yaml: does not exist"):
        open_run(tmp_path, None, None, drafts=True)


def test_no_folder_of_the_user_or_the_run_is_replaced(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(FlowllmError, match="has content; name a new folder"):
        check_output(tmp_path / "full", tmp_path / "run")
    with pytest.raises(FlowllmError, match="in the folder of the run"):
        check_output(tmp_path / "run" / "wishes", tmp_path / "run")
    check_output(tmp_path / "new", tmp_path / "run")


ENTRIES = [({"Na": 1}, -1.0), ({"Cl": 1}, -2.0), ({"Cs": 1}, -1.0), ({"Na": 1, "Cl": 1}, -3.0)]
HULL = HullFile(ReferenceHull(ENTRIES), ("CHGNet",), 0, ReferenceHull([]), frozenset())


def followed(name: str, crystal=None, energy=None, **judged) -> Followed:
    """What became of a draft, with the columns that the table reads."""
    columns = crystal_columns(crystal)
    formula = None if crystal is None else crystal.formula
    status = {"status": "ok" if crystal else "exhausted", "error": None if crystal else "none"}
    relaxed = {"formula": formula, "max_force": 0.01, "converged": crystal is not None} | columns
    energies = {"energy_per_atom": -3.0, "formation_energy_per_atom": -0.5, "e_above_hull": energy}
    placed = energies | {"stable": False, "metastable": False}
    placed |= {"check_e_above_hull": None, "hull_compounds": 1}
    flags = ("structurally_valid", "compositionally_valid", "unique", "novel", "sun")
    known = {"duplicate_group": name, "matched_material_id": None, "error": None}
    return Followed(
        draft={"id": name, "attempts": 1, "prompt": ""},
        generated={"id": name, **columns},
        relaxed=relaxed,
        stability=placed | status,
        judged=dict.fromkeys(flags, True) | known | judged,
    )


def rows_of(*all_followed: Followed, metastable: tuple[str, ...] = ()) -> list[dict]:
    for one in all_followed:
        one.stability["metastable"] = one.draft["id"] in metastable
    return table_rows(all_followed, {})


def test_crystals_are_ordered_by_energy_and_those_without_one_are_last():
    rows = rows_of(
        followed("a"),
        followed("b", caesium_chloride()),
        followed("c", rocksalt(), 0.2),
        followed("d", rocksalt(), -0.1),
    )
    assert [row["id"] for row in rows] == ["d", "c", "b", "a"]
    assert [row["rank"] for row in rows] == [1, 2, 3, None]
    assert rows[0]["cif"] == "cif/0001_NaCl_-0.100eV.cif"
    assert rows[2]["cif"] == "cif/0003_CsCl_no-hull.cif"


def test_known_repeated_and_novel_crystals_are_told_apart():
    rows = rows_of(
        followed("a", rocksalt(), 0.1),
        followed("b", rocksalt(), 0.2, unique=False, duplicate_group="a"),
        followed("c", rocksalt(), 0.3, novel=False, matched_material_id="mp-1"),
        followed("d"),
    )
    assert [verdict(row) for row in rows] == ["novel", "as a", "known: mp-1", "-"]


def test_matching_crystals_are_printed_once_with_their_number():
    """The nearest to the hull, which is not the first draft of its class."""
    answers = [{"all_met": met} for met in (True, False, None)]
    rows = rows_of(
        followed("a", rocksalt(), 0.2, **answers[0]),
        followed("b", rocksalt(), 0.1, unique=False, duplicate_group="a", sun=False, **answers[1]),
        followed("c", caesium_chloride(), 0.3, novel=False, matched_material_id="mp-1", sun=False),
        followed("d", **answers[1]),
    )
    lines = list(printed_table(rows, Path("out")))
    assert lines[0].split()[:2] == ["rank", "formula"]
    assert "Fm-3m (225)" in lines[1]
    assert lines[1].split()[-4:] == ["+0.100", "novel", "2", "out/cif/0001_NaCl_+0.100eV.cif"]
    assert lines[2].split()[-2:] == ["1", "out/cif/0003_CsCl_+0.300eV.cif"]
    assert lines[3:] == [
        "3 of 4 drafts relaxed, 2 different crystals, 1 of 3 drafts meet their conditions, 0 "
        "metastable or stable, 1 novel, 1 stable, unique and novel",
        "page: out/index.html",
    ]


def test_the_page_says_what_each_class_is():
    """The nearest to the hull of a stable and novel class is S.U.N. where an earlier draft is."""
    sun, again = followed("a", rocksalt(), -0.1), {"duplicate_group": "a", "unique": False}
    nearest = followed("b", rocksalt(), -0.2, sun=False, **again)
    for one in (sun, nearest):
        one.stability["stable"] = True
    failed = {"duplicate_group": None, "unique": False, "novel": False, "sun": False}
    rows = rows_of(
        sun,
        nearest,
        followed("c", caesium_chloride(), 0.1, **failed),
        followed("d", perovskite(), 0.2, sun=False),
        followed("e", rocksalt("K", "Br"), 0.3, novel=False, matched_material_id="mp-1", sun=False),
    )
    shown = page(rows, HULL, "#0072B2")
    assert re.findall(r"\(\d+\); ([^<]+)</p>", shown) == [
        "S.U.N.",
        "not compared with known crystals",
        "novel, not stable",
        "known: mp-1",
    ]


def test_a_hull_without_the_chemical_system_is_said():
    """The energy of such a crystal is too low, so it is no better than the others."""
    lacking = followed("b", caesium_chloride(), -1.0)
    lacking.stability["hull_compounds"] = 0
    unplaced = followed("c", perovskite())
    rows = rows_of(unplaced, lacking, followed("a", rocksalt(), 0.1))
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    [said] = warnings_of(rows, HULL)
    assert "no compound of the chemical system of 2 of 3 crystals (" in said
    assert "CsCl" in said
    shown = page(rows, HULL, "#0072B2")
    assert said.removeprefix("the hull") in shown
    assert shown.count(BARE) == 1


def test_metastable_crystals_are_counted_once():
    rows = rows_of(
        followed("a", rocksalt(), 0.05),
        followed("b", rocksalt(), 0.06, unique=False, duplicate_group="a", sun=False),
        followed("c", caesium_chloride(), 0.3, sun=False),
        metastable=("a", "b"),
    )
    assert ", 1 metastable or stable, 2 novel," in list(printed_table(rows, Path("out")))[-2]


def test_failed_drafts_and_relaxations_that_did_not_converge_are_said():
    loose = followed("a", rocksalt(), 0.1)
    loose.relaxed["converged"] = False
    first, second = warnings_of(rows_of(loose, followed("b")), HULL)
    assert first == "1 of 2 drafts have no relaxed crystal: exhausted"
    assert second.startswith("1 of 1 relaxations did not converge")


def test_asked_and_got_stand_beside_each_other():
    answers = {
        "asked": [("elements", "Na,Cl"), ("elements_mode", "exact"), ("band_gap", "1.0")],
        "got": [("elements", "Na,Cl")],
        "met": [("elements", True)],
        "all_met": True,
    }
    missed = {"asked": [("num_atoms", "4")], "got": [("num_atoms", "2")]}
    missed |= {"met": [("num_atoms", False)], "all_met": False}
    rows = rows_of(
        followed("a", rocksalt(), 0.1, **answers), followed("b", rocksalt(), 0.2, **missed)
    )
    assert wishes_text(rows[0]) == "elements Na,Cl: Na,Cl, met; band_gap 1.0: not measured"
    assert wishes_text(rows[1]) == "num_atoms 4: 2, not met"
    [said] = warnings_of(rows, HULL)
    assert said == "1 of 2 crystals do not meet the conditions asked for"
    assert "num_atoms 4: 2, not met" in list(printed_table(rows, Path("out")))[2]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_at_a_terminal_alone(monkeypatch, terminal):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stderr", stream)
    setup_logging(None)
    with progress_bars():
        progress = Progress("drafts", 2)
        log.info("between")
        progress.advance(2)
    Progress("later", 1).advance()
    bar, _, later = stream.getvalue().rpartition("INFO later: 1 of 1")
    assert later, "after the block, progress is a line again"
    assert ("100%|" in bar) == terminal
    assert ("INFO drafts: 2 of 2" in bar) != terminal
    assert "INFO between" in bar
