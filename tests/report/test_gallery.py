"""The gallery's choice of crystals, and its drawings against the structures they show."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from crystals import caesium_chloride, fcc, perovskite, rattled, rocksalt
from evaluated_run import Draw, stage_settings, write_run
from flowllm.crystal import Crystal
from flowllm.report.gallery import find_candidates
from flowllm.report.metrics_files import read_results
from flowllm.report.page import Section, render
from flowllm.report.sections import make_sections
from flowllm.stages import metrics, report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    known, caesium, oxide = rocksalt(), caesium_chloride(), perovskite()
    draws = [
        Draw(known, known, -0.9),  # in train
        Draw(oxide, rattled(oxide, 0.01, 1), 0.02),  # novel, not stable
        Draw(caesium, caesium, -0.1),  # S.U.N.
        Draw(caesium, caesium, -0.2),  # the same again, a later id
        Draw(fcc(), fcc(), -0.5),  # one element
        Draw(rocksalt("Mg", "O", 4.2), rocksalt("Mg", "O", 4.2), None),  # no reference
    ]
    run = write_run(tmp_path_factory.mktemp("gallery"), draws, {"train": {"mp-1": known}})
    metrics.run(stage_settings("metrics"), **run.paths(), out=run.out, workers=1)
    return run


def test_sun_crystals_come_first_then_the_nearest_to_the_hull(run):
    found = find_candidates(read_results([run.out]), run.folder)
    assert [(one.formula, one.e_above_hull, one.sun) for one in found] == [
        ("CsCl", -0.1, True),
        ("SrTiO3", 0.02, False),
    ]
    assert found[0].space_group == "Pm-3m (221)"
    assert found[0].source == "FlowLLM-test"


def test_crystals_that_are_compared_with_the_elements_alone_come_last(tmp_path):
    oxide, caesium = perovskite(), caesium_chloride()
    draws = [
        Draw(caesium, caesium, -2.0, hull_compounds=0),
        Draw(oxide, oxide, 0.02, hull_compounds=1),
    ]
    run = write_run(tmp_path, draws, {})
    metrics.run(stage_settings("metrics"), **run.paths(), out=run.out, workers=1)
    found = find_candidates(read_results([run.out]), run.folder)
    assert [(one.formula, bool(one.note)) for one in found] == [("SrTiO3", False), ("CsCl", True)]


def test_a_class_of_duplicates_is_shown_once(tmp_path):
    """Its first member is not stable, a later one is."""
    caesium = caesium_chloride()
    draws = [Draw(caesium, caesium, 0.2), Draw(caesium, caesium, -0.02, converged=False)]
    run = write_run(tmp_path, draws, {})
    metrics.run(stage_settings("metrics"), **run.paths(), out=run.out, workers=1)
    (found,) = find_candidates(read_results([run.out]), run.folder)
    assert (found.e_above_hull, found.sun, found.converged) == (-0.02, True, False)


def test_a_crystal_of_two_settings_is_shown_once(run):
    (result,) = read_results([run.out])
    found = find_candidates([result, result], run.folder)
    assert [one.formula for one in found] == ["CsCl", "SrTiO3"]


def test_limit_and_missing_files(run, tmp_path):
    results = read_results([run.out])
    assert len(find_candidates(results, run.folder, limit=1)) == 1
    assert find_candidates(results, tmp_path) == []


def test_absent_files_are_not_called_an_absence_of_candidates(run, tmp_path):
    results = read_results([run.out])
    whole, absent = (
        make_sections(results, [], folder, "#0072B2", {})[0].note
        for folder in (run.folder, tmp_path)
    )
    assert "cannot be shown" not in whole
    assert absent == (
        "Candidates of FlowLLM-test cannot be shown: their relaxed crystals are not in the folder "
        "of the run (--run-dir)."
    )


def test_a_crystal_without_a_space_group_is_shown_all_the_same(tmp_path):
    coords = [[0, 0, 0], [0, 0, 0.001], [0.5, 0.5, 0.5]]
    close = Crystal.from_arrays([11, 11, 17], coords, [3, 3, 3], [90, 90, 90])
    run = write_run(tmp_path, [Draw(close, close, -0.1)], {})
    metrics.run(stage_settings("metrics"), **run.paths(), out=run.out, workers=1)
    (found,) = find_candidates(read_results([run.out]), run.folder)
    assert (found.formula, found.space_group) == ("Na2Cl", "not found")


def test_the_files_are_the_relaxed_crystal(run):
    found = find_candidates(read_results([run.out]), run.folder)[0]
    assert StructureMatcher().fit(
        Structure.from_str(found.files["CIF"], fmt="cif"), caesium_chloride().to_structure()
    )
    written = Structure.from_str(found.files["POSCAR"], fmt="poscar")
    assert StructureMatcher().fit(written, caesium_chloride().to_structure())


class Gallery(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.scenes, self.downloads = [], {}
        self.feed(text)

    def handle_starttag(self, _tag, attrs):
        given = dict(attrs)
        if "data-scenes" in given:
            self.scenes.append(json.loads(given["data-scenes"]))
        if "download" in given:
            self.downloads[given["download"]] = given["href"]


def test_page_holds_scenes_and_downloads(run):
    out = run.folder / "report" / "index.html"
    report.run(stage_settings("report"), metrics=[run.out], run_dir=run.folder, out=out)
    gallery = Gallery(out.read_text())
    assert [[len(one["edges"]) for one in drawn] for drawn in gallery.scenes] == [[12, 27]] * 2
    name, address = next(iter(gallery.downloads.items()))
    assert name == "CsCl_FlowLLM-test-000002.cif"
    head, text = address.split(",", 1)
    assert head == "data:chemical/x-cif;charset=utf-8"
    assert len(Structure.from_str(unquote(text), fmt="cif")) == 2
    for suffix in ("svg", "png"):
        assert (out.parent / "figures" / f"candidates.{suffix}").stat().st_size > 1000
    assert "candidates.svg" not in out.read_text()  # the page has the crystals themselves


def test_texts_of_others_are_escaped_on_the_page(run):
    """An id from a file, and a wish, may have any characters."""
    found = find_candidates(read_results([run.out]), run.folder)[0]
    hostile = '"><script>alert(1)</script>'
    page = render(
        title=hostile,
        subtitle=hostile,
        color="#0072B2",
        sections=[Section("a", hostile, gallery=[replace(found, name=hostile, note=hostile)])],
    )
    assert page.count("<script>") == 1
    assert page.count("&lt;script&gt;alert(1)") >= 5
