"""The report's numbers against its inputs, its page on its own, its figures' data."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pyarrow as pa
import pytest

from crystals import caesium_chloride, perovskite, rattled, rocksalt
from evaluated_run import REPOSITORY, Draw, stage_settings, write_run
from flow_pairs import LLM_FLOW
from flowllm.commands.costs import costs_of_run
from flowllm.errors import FlowllmError
from flowllm.evaluate.aggregate import FORMAT
from flowllm.evaluate.statistics import rate
from flowllm.io import schemas
from flowllm.io.tables import write_table
from flowllm.report import counting_tables, figures, forms
from flowllm.report.cost_tables import estimate_table, sun_cost_table
from flowllm.report.counting_tables import protocol_tables, reading_table
from flowllm.report.metrics_files import first_of_each_sweep, read_results
from flowllm.report.process_tables import draft_table, merging_table, outcome_table, speed_table
from flowllm.report.protocol_text import energy_name, hull_name, origin
from flowllm.report.provenance import (
    draft_counts,
    flows_of,
    generation_seconds,
    read_records,
    stage_costs,
)
from flowllm.report.published import published_rows
from flowllm.report.quality_tables import (
    e_hull_table,
    ground_state_table,
    paper_table,
    sun_parts_table,
    sun_table,
)
from flowllm.report.sections import make_sections
from flowllm.report.table import Column, Table, to_csv, to_latex
from flowllm.report.training_history import belongs, read_rejections, shard_counts
from flowllm.runtime.provenance import provenance_path
from flowllm.stages import metrics, report
from tiny_run import snakemake


class Page(HTMLParser):
    """Collects what a page would fetch, its tables' rows and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.rows, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag == "tr":
            self.rows.append((dict(attrs).get("class"), []))

    def handle_data(self, data):
        self.words.append(data)
        if self.rows and data.strip():
            self.rows[-1][1].append(data.strip())


def draws():
    salt, caesium, oxide = rocksalt(), caesium_chloride(), perovskite()
    return [
        Draw(salt, salt, -0.1, rejections=["bad_number"], redraws=3),
        Draw(caesium, caesium, -0.2),
        Draw(oxide, rattled(oxide, 0.02, 0), 0.03),
        Draw(oxide, None, relaxed_status="timeout"),
        Draw(None, rejections=["truncated", "bad_number"]),
    ]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run's folder with metrics by the potential and by DFT, curves and rejected rows."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    splits = {"train": {"mp-1": rocksalt()}}
    for kind in ("potential", "dft"):
        run = write_run(folder, draws(), splits, kind=kind)
        metrics.run(stage_settings("metrics"), **run.paths(), out=run.out, workers=1)
    for place in ("llm/adapter", "rfm/llm"):
        (folder / place).mkdir(parents=True)
        curve = "step,train_loss,val_loss\n1,2.0,\n2,1.0,1.5\n"
        (folder / place / "training_curve.csv").write_text(curve)
    increases = [
        {"id": f"mp-{i}", "num_atoms": 2, "perplexity": 1.5 + i, "ipt_translation": 0.1 * i}
        | {"ipt_permutation": 0.3}
        for i in range(3)
    ]
    write_table(folder / "llm" / "invariance.parquet", increases, schemas.INVARIANCE, {})
    rejected = [
        {"split": "train", "file": "train.csv", "row": row, "reason": reason}
        for row, reason in enumerate(["too_many_atoms", "too_many_atoms", "disordered"])
    ]
    write_table(folder / "crystals" / "rejected.parquet", rejected, schemas.REJECTED, {})
    return folder


@pytest.fixture
def copied_run(run_dir, tmp_path):
    """A copy of the run's folder that a test may damage, with records of its outputs."""
    folder = tmp_path / "copy"
    shutil.copytree(run_dir, folder, ignore=shutil.ignore_patterns("report"))
    records = {
        "llm/invariance.parquet": "invariance",
        "llm/adapter": "finetune_llm",
        "crystals": "prepare",
        "dft/FlowLLM-test.parquet": "dft_collect",
    }
    for number in range(2):
        records[f"base/FlowLLM-test/shard-{number:05d}.parquet"] = "import_samples"
        records[f"relaxed/FlowLLM-test/shard-{number:05d}.parquet"] = "prerelax"
        pairs = f"pairs/train/shard-{number:05d}.parquet"
        write_table(folder / pairs, [], schemas.PAIRS, {})
        records[pairs] = "import_samples"
    for output, stage in records.items():
        write_record(folder, output, stage, 1.0, 1)
    write_record(folder, "rfm/llm", "train_rfm", 1.0, 1, settings={"flow": LLM_FLOW})
    return folder


def metrics_files(run_dir):
    return [run_dir / "metrics" / kind / "FlowLLM-test.json" for kind in ("potential", "dft")]


def write_report(run_dir, out=None, metrics_paths=None, **changes):
    out = out or run_dir / "report" / "index.html"
    paths = metrics_files(run_dir) if metrics_paths is None else metrics_paths
    report.run(stage_settings("report", **changes), metrics=paths, run_dir=run_dir, out=out)
    return out


@pytest.fixture(scope="module")
def page_path(run_dir):
    return write_report(run_dir)


def read_csv(page_path, name):
    text = (page_path.parent / "tables" / f"{name}.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))


def viewer_script(page_path):
    return re.search(r"<script>(.*)</script>", page_path.read_text(), re.DOTALL)[1]


def test_page_fetches_nothing(page_path):
    page = Page(page_path.read_text())
    assert "link" not in page.tags
    assert page.addresses
    kinds = r"data:(image/svg\+xml;base64|(chemical/x-cif|text/plain);charset=utf-8),|#"
    assert all(re.match(kinds, one) for one in page.addresses)
    assert not re.search(r"https?://|//[a-z]|import\(|fetch\(|XMLHttp", viewer_script(page_path))
    policy = "default-src 'none'"  # and a browser would refuse whatever slipped through
    assert policy in page_path.read_text()


def test_files_of_an_earlier_report_are_deleted_in_the_folder_of_the_run_alone(
    copied_run, tmp_path
):
    for folder in (copied_run / "report", tmp_path / "mine"):
        for name in ("figures/old.svg", "tables/old.csv", "tables/.snakemake_timestamp"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        write_report(copied_run, folder / "index.html")
        assert (folder / "tables" / ".snakemake_timestamp").exists()
        assert (folder / "tables" / "stability_dft.csv").exists()
    assert not list((copied_run / "report").glob("*/old.*"))
    assert len(list((tmp_path / "mine").glob("*/old.*"))) == 2


def test_page_links_lead_to_sections(page_path):
    text = page_path.read_text()
    targets = re.findall(r'href="#([^"]+)"', text)
    assert targets == ["candidates", "methods", "energies", "comparison", "more"]
    places = [text.index(f'id="{target}"') for target in targets]
    assert places == sorted(places)


def test_what_is_not_asked_first_is_folded_at_the_end(page_path):
    text = page_path.read_text()
    shown, more = text.split('<section id="more">')
    assert re.findall(r'<details id="([^"]+)"', shown) == []
    assert re.findall(r'<details id="([^"]+)"', more) == [
        "candidates_potential",
        "stability",
        "counting",
        "language_model",
        "fates",
        "training",
        "cost",
        "provenance",
    ]


def sections_of(run_dir):
    return make_sections(read_results(metrics_files(run_dir)), [], run_dir, "#0072B2", {})


def test_no_number_is_in_two_tables(run_dir):
    """A number of the metrics is one object, whose copies in two rows are the same object."""
    places = {}
    for section in sections_of(run_dir):
        for table in section.tables:
            keys = [column.key for column in table.columns]
            for row in table.rows:
                cells = [row[key] for key in keys if isinstance(row.get(key), dict)]
                for cell in cells if not row.get("published") else []:
                    places.setdefault(id(cell), set()).add(table.name)
    assert places
    assert [tables for tables in places.values() if len(tables) > 1] == []


def sentences(text):
    return [part for part in re.split(r"(?<=[.:])\s+(?=[A-Z])", text.strip()) if part]


def test_above_a_table_are_at_most_two_sentences(run_dir):
    assert len(sentences("Rates. S.U.N. per draw is 3 % (0.5 to 9).")) == 2
    sections = sections_of(run_dir)
    for section in sections:
        for number, table in enumerate(section.tables):
            above = f"{section.note if number == 0 else ''} {table.caption}"
            assert len(sentences(above)) <= 2, f"{table.name}: {above}"
        for figure in section.figures:
            assert len(sentences(figure.caption)) <= 2, figure.caption


class Parts(HTMLParser):
    """Collects the open tags around each table, and the attributes of pictures."""

    def __init__(self, text):
        super().__init__()
        self.open, self.around_tables, self.pictures = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.around_tables.append(self.open[-1])
        if tag in ("img", "canvas"):
            self.pictures.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag


def test_tables_scroll_by_keyboard_and_pictures_have_a_text(page_path):
    parts = Parts(page_path.read_text())
    assert parts.open == []
    assert len(parts.around_tables) > 5
    for tag, attrs in parts.around_tables:
        assert (tag, attrs["class"], attrs["tabindex"], attrs["role"]) == (
            *("div", "scroll", "0", "region"),
        )
        assert attrs["aria-label"]
    assert {tag for tag, _ in parts.pictures} == {"img", "canvas"}
    for tag, attrs in parts.pictures:
        assert attrs["alt" if tag == "img" else "aria-label"]
        assert tag == "img" or attrs["tabindex"] == "0"


def test_the_invariance_of_the_language_model_is_the_mean_over_crystals(page_path):
    rows = read_csv(page_path, "invariance")
    assert [float(row["value"]) for row in rows] == pytest.approx([2.5, 0.1, 0.3])
    assert {row["value_count"] for row in rows} == {"3"}
    assert float(rows[1]["value_standard_error"]) == pytest.approx(0.1 / 3**0.5)


def test_tables_hold_the_numbers_of_the_metrics(run_dir, page_path):
    numbers = json.loads(metrics_files(run_dir)[0].read_text())
    row = read_csv(page_path, "stability_potential")[0]
    row |= read_csv(page_path, "sun_parts_potential")[0]
    readings = {line["reading"]: line for line in read_csv(page_path, "readings_potential")}
    found = readings["E_hull ≤ bound (code)"]["FlowLLM-test value"]
    assert float(found) == numbers["rates"]["stability_rate_at_most"]["value"]
    for name in ("stability_rate", "sun_rate", "novel_of_stable"):
        assert float(row[name]) == numbers["rates"][name]["value"]
        assert int(row[f"{name}_numerator"]) == numbers["rates"][name]["numerator"]
        assert float(row[f"{name}_high"]) == numbers["rates"][name]["high"]
    ground = read_csv(page_path, "ground_state")[0]
    assert float(ground["rmsd"]) == numbers["means"]["rmsd"]["mean"]
    assert int(ground["rmsd_count"]) == 3
    proxy = read_csv(page_path, "paper")[0]
    assert float(proxy["coverage_recall"]) == numbers["rates"]["coverage_recall"]["value"]
    distance = numbers["distances"]["wasserstein_density"]
    assert float(proxy["wasserstein_density"]) == distance["value"]
    assert int(proxy["wasserstein_density_reference_count"]) == distance["reference_count"]


def test_page_shows_counts_and_interval(page_path):
    rows = [cells for _, cells in Page(page_path.read_text()).rows if "FlowLLM-test" in cells]
    cells = next(cells for cells in rows if "40.00\u202f%" in cells)  # 2 of 5 stable
    at = cells.index("40.00\u202f%")
    assert cells[at + 1 : at + 3] == ["2 of 5", "11.76–76.93"]  # Wilson, by scipy


def test_estimates_and_dft_stand_in_separate_tables(page_path):
    potential = read_csv(page_path, "stability_potential")
    dft = read_csv(page_path, "stability_dft")
    assert [row["setting"] for row in potential] == ["FlowLLM-test"]
    assert [row["setting"] for row in dft] == ["FlowLLM-test", "FlowLLM (tau 0.7, P 0.9)"]
    text = " ".join(Page(page_path.read_text()).words)
    assert "Estimates, not DFT, with counts" in text
    assert "Energies: CHGNet 0.3.0" in text
    assert "Energies: DFT MP2020" in text


def test_the_first_table_is_by_dft_and_has_the_relaxation_by_the_potential(run_dir, page_path):
    potential, dft = (json.loads(path.read_text()) for path in metrics_files(run_dir))
    row = read_csv(page_path, "stability_dft")[0]
    assert int(row["num_steps_count"]) == potential["means"]["num_steps"]["count"] == 3
    released = potential["means"]["delta_energy_per_atom"]["mean"]
    assert float(row["delta_energy_per_atom"]) == released
    assert float(row["sun_rate"]) == dft["rates"]["sun_rate"]["value"]
    assert row["origin"] == "language model (tau0.7: τ 0.7, P 0.9), flow llm in 50 steps"
    assert "num_steps" not in read_csv(page_path, "stability_potential")[0]
    alone = sun_table(read_results(metrics_files(run_dir)[:1]), "potential", lead=True).rows[0]
    assert alone["num_steps"] == potential["means"]["num_steps"]


def test_other_protocols_have_tables_of_their_own(run_dir, page_path):
    numbers = json.loads(metrics_files(run_dir)[0].read_text())["protocols"]
    rows = {
        name: read_csv(page_path, f"protocol_{name}_potential")
        for name in ("mattergen", "lemat_genbench")
    }
    assert [len(found) for found in rows.values()] == [1, 1]
    mattergen = rows["mattergen"][0]
    assert int(mattergen["sun_rate_numerator"]) == numbers["MatterGen"]["sun_rate"]["numerator"]
    assert "metastable_sun_rate" not in mattergen
    lemat = numbers["LeMat-GenBench"]["metastable_sun_rate"]
    assert float(rows["lemat_genbench"][0]["metastable_sun_rate"]) == lemat["value"]


def test_published_rows_are_marked_and_sourced(page_path):
    published = read_csv(page_path, "stability_dft")[1]
    assert float(published["stability_rate"]) == 0.1782
    assert published["stability_rate_source"].startswith("[S] Sriram et al.")
    rows = [cells for kind, cells in Page(page_path.read_text()).rows if kind == "published"]
    assert rows
    for name, *cells in rows:
        known = any(cell.startswith("published [") for cell in cells)
        assert known or (name in ("CrystalLLM", "FlowLLM-Types") and set(cells) == {"–"})


def test_everyone_stands_in_the_papers_table_and_only_dft_is_called_stable(run_dir, page_path):
    ours, *published = read_csv(page_path, "paper")
    methods = ["CD-VAE", "DiffCSP", "FlowMM", "CrystalLLM", "FlowLLM-Types"]
    assert [row["setting"] for row in published] == [*methods, "FlowLLM (tau 0.7, P 0.9)"]
    potential = json.loads(metrics_files(run_dir)[0].read_text())["rates"]
    assert float(ours["structural_validity"]) == potential["structural_validity"]["value"]
    assert "stability_rate" not in ours  # the first table has it
    alone = paper_table(read_results(metrics_files(run_dir)[:1]), {})
    first, *_, last = alone.rows
    assert [column.key for column in alone.columns][-2:] == ["stability_rate", "sun_rate"]
    assert first["setting"] == ours["setting"]
    assert "stability_rate" not in first
    assert last["stability_rate"]["value"] == 0.1782


def test_captions_name_hull_matcher_and_corrections(page_path):
    text = " ".join(Page(page_path.read_text()).words)
    assert "hull: train by CHGNet (1 234 compositions); stable: E_hull < 0 eV/atom with" in text
    assert "corrections: MP2020" in text
    assert "same crystal: pymatgen StructureMatcher 0.2, 0.3, 5°" in text


def test_a_hulls_size_and_unfinished_entries_are_in_its_name():
    numbers = {"hull_compositions": 1234, "hull_not_converged": 0, "hull_sources": ["CHGNet"]}
    results = [SimpleNamespace(numbers={"protocol": numbers})]
    assert hull_name(results) == "CHGNet (1\u202f234 compositions)"
    numbers["hull_not_converged"] = 7
    expected = "CHGNet (1\u202f234 compositions, 7 entries not converged: upper bounds)"
    assert hull_name(results) == expected


def test_published_values_have_their_source_on_the_page(page_path):
    text = " ".join(Page(page_path.read_text()).words)
    assert "FlowMM: [2nd] a user quoting the paper, github.com/facebookresearch/flowmm" in text
    assert "CD-VAE: [C] constants in basic_eval.py" in text


def test_crystals_that_did_not_converge_are_counted(tmp_path):
    salt = rocksalt()
    draws = [Draw(salt, salt, -0.1), Draw(salt, salt, -0.1, converged=False), Draw()]
    run = write_run(tmp_path, draws, {})
    metrics.run(stage_settings("metrics"), **run.paths(), out=run.out, workers=1)
    (row,) = outcome_table(read_results([run.out])).rows
    assert row["not_converged"] == 1
    assert row["fingerprints"] != "–"


def test_the_figures_numbers_are_tables_too(run_dir, page_path):
    result = read_results(metrics_files(run_dir)[:1])[0]
    (row,) = read_csv(page_path, "e_hull_potential")
    for bound in ("0", "0.05", "0.1"):
        count = sum(value <= float(bound) for value in result.e_above_hull)
        assert int(row[f"at_most_{bound}_numerator"]) == count
    assert int(row["at_most_0_denominator"]) == result.numbers["counts"]["drawn"]
    test, ours = read_csv(page_path, "num_elements")
    assert test["setting"] == "test split"
    for name, counts in (("test", test), ("generated", ours)):
        given = result.numbers["histograms"]["num_elements"][name]
        assert {n: int(counts[f"{n}_numerator"]) for n in given} == given


def test_samples_of_another_model_say_where_they_are_from(run_dir):
    result = read_results(metrics_files(run_dir)[:1])[0]
    numbers = {
        **result.numbers,
        "sampling": {"base": {}, "setting": {}, "external": {"name": "O", "file": "o.pt"}},
    }
    assert origin(replace(result, numbers=numbers)) == "another model, o.pt"
    assert origin(result) == "language model (tau0.7: τ 0.7, P 0.9), flow llm in 50 steps"


def test_rows_without_a_language_model_or_a_flow_are_said(run_dir):
    result = read_results(metrics_files(run_dir)[:1])[0]
    settings = [
        {"name": "FlowMM-like", "base": "train_compositions", "flow": "types", "num_steps": 750},
        {"name": "CrystalLLM", "base": "tau0.7", "flow": None, "num_steps": 0},
    ]
    results = [result]
    for method in settings:
        sampling = {"base": {}, "setting": method, "external": {}}
        numbers = {**result.numbers, "setting": method["name"], "sampling": sampling}
        results.append(replace(result, numbers=numbers))
    caption = paper_table(results, {}).protocol
    assert "FlowMM-like: compositions of the training set, FlowMM's uniform base, no" in caption
    assert "CrystalLLM: the language model's crystals, not refined." in caption
    assert "FlowLLM-test" not in caption
    origins = [origin(one) for one in results[1:]]
    assert origins == ["base train_compositions, flow types in 750 steps", "base tau0.7, no flow"]


def test_rows_whose_drafts_were_rejected_for_close_atoms_are_said_beside_table_1(run_dir):
    """It raises their validity beyond the paper's protocol."""
    result = read_results(metrics_files(run_dir)[:1])[0]
    counts = result.numbers["counts"]
    counts = {**counts, "llm_drafts": 30, "llm_rejections": {"coinciding_atoms": 7, "truncated": 2}}
    results = []
    for name, section in (
        ("LLM-a", {"reject_close_atoms": True}),
        ("LLM-b", {"reject_close_atoms": False}),
        ("Other", {}),
    ):
        sampling = {**result.numbers["sampling"], "sample_base": section}
        numbers = {**result.numbers, "setting": name, "sampling": sampling, "counts": counts}
        results.append(replace(result, numbers=numbers))
    said = "Drafts with two atoms at one point were rejected and drawn again, which the paper's"
    for table in (paper_table(results, {}), sun_table(results, "potential", lead=True)):
        assert said in table.protocol
        assert "raises the validity: LLM-a (7 of 30 drafts). " in table.protocol
        assert "LLM-b (" not in table.protocol
    for table in (paper_table(results[1:], {}), paper_table([result], {})):
        assert said not in table.protocol


def test_published_values_fit_together():
    row = next(row for row in published_rows(["sun_rate"]) if row["sun_rate"])
    parts = published_rows(["stability_rate", "novel_of_stable", "unique_of_stable_novel"])
    product = 1.0
    for name in ("stability_rate", "novel_of_stable", "unique_of_stable_novel"):
        product *= parts[0][name]["value"]
    assert product == pytest.approx(row["sun_rate"]["value"], abs=0.001)  # rounded in the text


def test_unknown_published_values_are_not_shown_as_numbers():
    methods = {row["setting"] for row in published_rows(["sun_rate"])}
    assert methods == {"FlowLLM (tau 0.7, P 0.9)"}


def test_color_and_title_are_settings(run_dir, tmp_path):
    out = write_report(run_dir, tmp_path / "index.html", title="Mine & yours", color="#AA3377")
    text = out.read_text()
    assert "<h1>Mine &amp; yours</h1>" in text
    assert "--main: #AA3377" in text
    assert "#aa3377" in (tmp_path / "figures" / "e_hull_potential.svg").read_text().lower()


def test_the_same_inputs_give_the_same_bytes(run_dir, page_path):
    first = {path: path.read_bytes() for path in page_path.parent.rglob("*") if path.is_file()}
    write_report(run_dir)
    for path, content in first.items():
        if not path.name.endswith(".provenance.json"):
            assert path.read_bytes() == content, path


def test_terminal_gets_the_table_and_the_path(run_dir, tmp_path, capsys):
    out = write_report(run_dir, tmp_path / "index.html")
    printed = capsys.readouterr().out
    potential, dft = printed.split("Results by ")[1:]
    assert potential.startswith("CHGNet 0.3.0, 5 crystals per method\n")
    assert dft.startswith("DFT MP2020, 5 crystals per method\n")
    for text in (potential, dft):
        assert re.search(r"^stable, E_hull < 0 eV/atom +40 %$", text, re.MULTILINE)  # 2 of 5
    assert "they do not show which crystals are stable by DFT" in " ".join(potential.split())
    assert printed.endswith(f"\nReport: {out}\n")


def test_a_run_without_anything_but_metrics_gets_a_report(run_dir, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = write_report(empty, metrics_paths=metrics_files(run_dir)[:1])
    assert "Stable, by DFT" in out.read_text()
    assert not (out.parent / "tables" / "stability_dft.csv").exists()


def test_rejections_are_counted_where_they_happened(run_dir):
    assert read_rejections(run_dir) == [
        ("source rows", "too_many_atoms", 2),
        ("source rows", "disordered", 1),
        ("base FlowLLM-test: drafts", "bad_number", 2),
        ("base FlowLLM-test: drafts", "truncated", 1),
        ("base FlowLLM-test: redraws within drafts", "close_atoms", 3),
        ("base FlowLLM-test: given up", "exhausted", 1),
    ]


def test_a_sample_that_was_not_read_is_no_draw_that_was_given_up(tmp_path):
    statuses = ["ok", "unreadable", "exhausted", "unreadable", "too_many_atoms"]
    rows = [{"id": f"DiffCSP-{i}", "status": status} for i, status in enumerate(statuses)]
    write_table(tmp_path / "base" / "DiffCSP" / "shard-00000.parquet", rows, schemas.BASE, {})
    assert read_rejections(tmp_path) == [
        ("base DiffCSP: given up", "exhausted", 1),
        ("base DiffCSP: no crystal", "unreadable", 2),
        ("base DiffCSP: no crystal", "too_many_atoms", 1),
    ]


def write_record(folder, output, stage, seconds, memory, settings=None, **counts):
    path = provenance_path(folder / output)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"stage": stage, "seconds": seconds, "peak_memory_mb": memory, "counts": counts}
    record |= {"settings": settings or {}, "seed": 42, "started": "2026-11-28T20:00:00+00:00"}
    record["hardware"] = {"cpus": 9, "gpus": ["A100"] * 2} if stage == "refine" else {"cpus": 9}
    path.write_text(json.dumps(record))


def spoken(tokens, seconds):
    return {"generated_tokens": tokens, "generation_seconds": seconds}


def test_costs_are_summed_by_stage(tmp_path):
    write_record(
        tmp_path, "generated/a/shard-0", "refine", 2.0, 10, rows_in=5, rows_out=4, rows_failed=0
    )
    write_record(
        tmp_path,
        "base/t/shard-0",
        "sample_base",
        10.0,
        100,
        rows_in=5,
        rows_failed=1,
        **spoken(100, 4),
    )
    write_record(
        tmp_path,
        "base/t/shard-1",
        "sample_base",
        30.0,
        50,
        rows_in=5,
        rows_failed=2,
        **spoken(200, 20),
    )
    write_record(tmp_path, "base/t/.x.partial/y", "sample_base", 99.0, 999)
    write_record(tmp_path, "report/index.html", "report", 99.0, 999)
    records = read_records(tmp_path)
    sample, refine = stage_costs(records)
    assert (sample.stage, sample.jobs, sample.seconds, sample.longest) == ("sample_base", 2, 40, 30)
    assert sample.peak_memory_mb == 100
    assert sample.rows == {"rows_in": 10, "rows_out": None, "rows_failed": 3}
    assert refine.rows["rows_failed"] == 0
    assert (sample.core_hours, sample.gpu_hours) == (40 * 9 / 3600, 0)
    assert (refine.core_hours, refine.gpu_hours) == (2 * 9 / 3600, 2 * 2 / 3600)
    assert (sample.gpu_seconds_per_row, refine.gpu_seconds_per_row) == (None, 2 * 2 / 4)
    assert (sample.rows_per_second, refine.rows_per_second) == (10 / 40, 5 / 2)
    assert (sample.tokens_per_second, refine.tokens_per_second) == (300 / 24, None)
    assert generation_seconds(records, "t", "a") == 42
    assert generation_seconds(records, "t", "unknown") is None
    assert generation_seconds(records, "t", "a", drawn=10) is None  # refine's second record is gone


def test_times_of_appendix_g_by_hand(run_dir):
    """Five draws of which one is S.U.N., in 30 s: 1,000 minutes for 10,000, 30 s for the one."""
    result = read_results(metrics_files(run_dir)[:1])[0]
    ours, *published = speed_table([result], {"FlowLLM-test": 30.0}).rows
    assert (ours["minutes_per_10000"], ours["seconds_per_sun"]) == (1000.0, 30.0)
    assert ours["energies"] == energy_name([result])
    paper = published[-1]["minutes_per_10000"]["value"], published[-1]["seconds_per_sun"]["value"]
    assert paper == (89.6, 10.9)
    assert not [row for row in speed_table([result], {}).rows if not row.get("published")]


def test_drafts_are_counted_with_and_without_a_grammar():
    pairs = {"temperature": 0.9, "top_p": 0.99, "structured": True}
    free = {"base": {"temperature": 0.7, "top_p": 0.9}, "sample_base": {"structured": False}}
    records = [
        ("base/hot/shard-0", "sample_base", free, {"drafts": 6, "rows_in": 4, "rows_out": 3}),
        ("base/hot/shard-1", "sample_base", free, {"drafts": 4, "rows_in": 4, "rows_out": 4}),
        (
            "pairs/train/shard-0",
            "sample_pairs",
            {"sample_pairs": pairs},
            {"drafts": 8, "rows_in": 2, "rows_out": 2},
        ),
        ("generated/a/shard-0", "refine", {}, {"rows_in": 4, "rows_out": 4}),
    ]
    named = [
        {"output": output, "stage": stage, "settings": settings, "counts": counts}
        for output, stage, settings, counts in records
    ]
    first, second = draft_table(draft_counts(named)).rows
    assert (first["where"], first["form"]) == ("pairs train", "by grammar")
    assert (first["accepted"], first["filled"]) == (rate(2, 8, "drafts"), rate(2, 2, "draws"))
    assert (second["where"], second["form"]) == ("base hot", "free")
    assert (second["accepted"], second["filled"]) == (rate(7, 10, "drafts"), rate(7, 8, "draws"))


def test_histogram_counts_what_lies_beyond_its_ends(run_dir):
    result = read_results(metrics_files(run_dir)[:1])[0]
    values = pa.table({"e_above_hull": [-7.0, -0.5, 0.01, 0.99, 1.0, 55.0]})
    result = replace(result, per_crystal=values)
    figure = figures.e_hull_histogram([result], figures.line_styles(["FlowLLM-test"], "#0072B2"))
    heights = figure.axes[0].patches[0].get_data().values
    drawn = result.numbers["counts"]["drawn"]
    assert heights.sum() == pytest.approx(100 * 6 / drawn)
    assert heights[0] == pytest.approx(100 * 2 / drawn)
    assert heights[-1] == pytest.approx(100 * 3 / drawn)


def test_a_histogram_of_nothing_says_so(run_dir):
    result = read_results(metrics_files(run_dir)[:1])[0]
    result = replace(result, per_crystal=pa.table({"e_above_hull": pa.array([None], pa.float64())}))
    figure = figures.e_hull_histogram([result], figures.line_styles(["FlowLLM-test"], "#0072B2"))
    said = [text.get_text() for text in figure.axes[0].texts]
    assert "no crystal was placed on the hull" in said
    assert figure.axes[0].get_ylim()[0] == 0


def sweep_of(result, steps_and_valid):
    swept = []
    for steps, valid in steps_and_valid:
        numbers = json.loads(json.dumps(result.numbers))
        changes = {"name": f"s{steps}", "num_steps": steps, "flow": "llm" if steps else None}
        numbers["sampling"]["setting"] |= changes
        numbers["rates"]["structural_validity"] = rate(valid, 50, "all generated")
        swept.append(replace(result, numbers=numbers))
    return swept


def test_validity_against_steps_draws_a_sweep_only(run_dir):
    result = read_results(metrics_files(run_dir)[:1])[0]
    flows = {"llm": LLM_FLOW}
    assert figures.validity_against_steps([result], flows, "#0072B2") is None
    unrefined_beside_one = sweep_of(result, [(250, 48), (0, 30)])
    assert figures.validity_against_steps(unrefined_beside_one, flows, "#0072B2") is None
    swept = sweep_of(result, [(250, 48), (0, 30), (50, 47)])
    axes = figures.validity_against_steps(swept, flows, "#0072B2").axes[0]
    line = axes.containers[0].lines[0]
    assert line.get_xdata().tolist() == [0, 50, 250]
    assert line.get_ydata().tolist() == [60, 94, 96]


@pytest.mark.parametrize(
    "flow", [{"name": "llm", "start": "simple"}, LLM_FLOW | {"lengths_noise": 0.1}]
)
def test_a_flow_that_starts_elsewhere_has_no_point_without_steps(run_dir, flow):
    result = read_results(metrics_files(run_dir)[:1])[0]
    swept = sweep_of(result, [(250, 48), (0, 30), (50, 47)])
    axes = figures.validity_against_steps(swept, {"llm": flow}, "#0072B2").axes[0]
    assert axes.containers[0].lines[0].get_xdata().tolist() == [50, 250]


def test_a_sweep_is_drawn_without_the_records_of_its_flow(run_dir):
    """Of a part of a run; where its line starts is then not known."""
    result = read_results(metrics_files(run_dir)[:1])[0]
    swept = sweep_of(result, [(250, 48), (0, 30), (50, 47)])
    axes = figures.validity_against_steps(swept, {}, "#0072B2").axes[0]
    assert axes.containers[0].lines[0].get_xdata().tolist() == [50, 250]


def test_of_a_sweep_the_histograms_show_the_first(run_dir):
    result = read_results(metrics_files(run_dir)[:1])[0]
    rows = [("a", "llm", 50), ("a", "llm", 250), ("a", None, 0), ("b", "llm", 50)]
    free = [{}] * len(rows) + [{"keep_symmetry": False}] * 2
    rows += [("a", "llm", 10), ("a", "llm", 20)]
    results = []
    for (base, flow, steps), more in zip(rows, free, strict=True):
        method = {"name": f"{base}{steps}", "base": base, "flow": flow, "num_steps": steps} | more
        sampling = {**result.numbers["sampling"], "setting": method}
        numbers = {**result.numbers, "setting": method["name"], "sampling": sampling}
        results.append(replace(result, numbers=numbers))
    other = {**result.numbers, "setting": "o", "sampling": {"setting": {}}}
    results.append(replace(result, numbers=other))
    shown = [one.method for one in first_of_each_sweep(results)]
    assert shown == ["a50", "a0", "b50", "a10", "o"]


def test_settings_keep_their_look_in_every_figure():
    style = figures.line_styles(["a", "b", "a", "c"], "#D55E00")
    assert style["a"].color == "#D55E00"
    assert len({one.color for one in style.values()}) == 3
    assert len({one.dashes for one in style.values()}) == 3


def test_markdown_has_one_line_per_row(page_path):
    text = (page_path.parent / "tables" / "paper.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| Method | Structural validity |")
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(read_csv(page_path, "paper"))


def test_latex_is_escaped_and_has_one_line_per_row():
    table = Table(
        "a_b",
        "50 % & more",
        "E_hull ≤ 0",
        [
            Column("setting", "Setting"),
            Column("n", "Count_1", "count"),
            Column("r", "R", "rate", 0),
        ],
        [
            {"setting": "tau_0.7", "n": 12000, "r": rate(1, 4, "all")},
            {"setting": "x{y}\\z", "n": None, "published": True},
            {"setting": '[a] < "b"|c', "n": 1},
        ],
    )
    lines = to_latex(table).splitlines()
    assert lines[1] == r"\caption{50 \% \& more. E\_hull $\leq$ 0}"
    assert lines[5] == r"Setting & Count\_1 & R \\"
    assert lines[7] == r"tau\_0.7 & 12\,000 & 25\,\% {\scriptsize (1 of 4; 5--70)} \\{}"
    assert lines[8] == r"\textit{x\{y\}\textbackslash{}z} & \textit{--} & \textit{--} \\{}"
    assert lines[9] == r"[a] $<$ ''b''$|$c & 1 & -- \\{}"


def test_every_table_has_its_three_files(page_path):
    names = {path.stem for path in (page_path.parent / "tables").iterdir()}
    for name in names:
        for suffix in ("csv", "md", "tex"):
            assert (page_path.parent / "tables" / f"{name}.{suffix}").exists()


def test_snakemakes_own_report_has_the_captions(copied_run, tmp_path):
    """The rule runs on these tables as its given inputs; then `snakemake --report` is asked."""
    overlay = tmp_path / "small.yaml"
    flow = {"name": "FlowLLM-test", "base": "FlowLLM-test", "flow": "llm", "num_steps": 50}
    sizes = {"num_pairs": 2, "num_val_pairs": 1, "pairs_per_shard": 1}
    sizes |= {"num_samples": 2, "samples_per_shard": 1}
    base = {"name": "FlowLLM-test", "temperature": 0.7, "top_p": 0.9}
    write_table(copied_run / "pairs" / "val" / "shard-00000.parquet", [], schemas.PAIRS, {})
    run = {"run_dir": copied_run.name, "methods": [flow], "bases": [base], "sizes": sizes}
    overlay.write_text(json.dumps(run))
    words = ["--allowed-rules", "report"]
    words += ["--configfile", str(REPOSITORY / "config.yaml"), str(overlay)]
    target = f"{copied_run.name}/report/index.html"
    for last in (["--cores", "1", target], ["--report", str(tmp_path / "all.html"), target]):
        # --configfile takes every word that follows: the target stands before it.
        snakemake(*last, *words, cwd=copied_run.parent)
    text = (tmp_path / "all.html").read_text()
    for caption in (
        "estimates, not DFT. This run",
        "with the threshold of stability; as the paper",
        "Crystals as generated, before any relaxation",
        "The whole report as one page",
    ):
        assert caption in text


def test_noise_levels_stand_beside_the_proxy_metrics(run_dir, tmp_path):
    levels = {"llm": 0.0, "noisy": 0.02}
    for name, level in levels.items():
        noise = {"coords_noise": level, "lengths_noise": 10 * level, "angles_noise": 0.0}
        settings = {"flow": {"name": name, "start": "llm"} | noise}
        write_record(tmp_path, f"rfm/{name}", "train_rfm", 1.0, 1, settings=settings)
    flows = flows_of(read_records(tmp_path))
    result = read_results(metrics_files(run_dir)[:1])[0]
    assert "coords_noise" not in [one.key for one in paper_table([result], flows).columns]
    numbers = json.loads(json.dumps(result.numbers))
    numbers["sampling"]["setting"] |= {"name": "Noisy", "flow": "noisy"}
    numbers["setting"] = "Noisy"
    table = paper_table([result, replace(result, numbers=numbers)], flows)
    assert "coords_noise" in [one.key for one in table.columns]
    assert [(row["setting"], row["coords_noise"]) for row in table.rows[:2]] == [
        ("FlowLLM-test", 0.0),
        ("Noisy", 0.02),
    ]
    assert table.rows[0]["coverage_recall"] == result.numbers["rates"]["coverage_recall"]


def test_no_metrics_is_an_error(tmp_path):
    with pytest.raises(FlowllmError, match="no metrics given"):
        write_report(tmp_path, metrics_paths=[])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("{}", f"expected {FORMAT}"),
        ('{"format": 3}', "format is 3.* the stage metrics again"),
    ],
)
def test_a_bad_metrics_file_is_named(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(FlowllmError, match=rf"bad\.json.*{message}"):
        write_report(tmp_path, metrics_paths=[path])


def test_a_run_in_which_everything_failed_gets_a_report(tmp_path):
    run = write_run(tmp_path, [Draw(), Draw(rejections=["truncated"])], {})
    metrics.run(stage_settings("metrics"), **run.paths(), out=run.out, workers=1)
    out = write_report(tmp_path, metrics_paths=[run.out])
    cells, *_ = [cells for _, cells in Page(out.read_text()).rows if "FlowLLM-test" in cells]
    assert "0.00\u202f%" in cells
    assert "of none" in cells  # energy released, of the relaxed: there are none
    assert "No crystal of several elements is relaxed, novel" in out.read_text()


READ_BY_THE_REPORT = (
    "base/FlowLLM-test/shard-00000.parquet",
    "base/FlowLLM-test/shard-00001.parquet",
    "relaxed/FlowLLM-test/shard-00001.parquet",
    "pairs/train/shard-00001.parquet",
    "dft/FlowLLM-test.parquet",
    "llm/invariance.parquet",
    "llm/adapter/training_curve.csv",
    "rfm/llm/training_curve.csv",
    "crystals/rejected.parquet",
    "metrics/dft/FlowLLM-test.parquet",
)


@pytest.mark.parametrize("path", READ_BY_THE_REPORT)
def test_an_output_that_is_gone_is_named_and_no_report_is_made_without_it(copied_run, path):
    (copied_run / path).unlink()
    with pytest.raises(FlowllmError, match=f"{path}: (missing|no such file)"):
        write_report(copied_run)
    assert not (copied_run / "report" / "index.html").exists()


@pytest.mark.parametrize("path", READ_BY_THE_REPORT)
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_file_is_named_with_a_command_that_makes_it_again(copied_run, path, damage):
    whole = (copied_run / path).read_bytes()
    damaged = {"empty": b"", "cut": whole[: len(whole) // 2], "text": b"a,b\n\xff,\n"}
    if path.endswith(".csv"):
        damaged["cut"] = b"step,train_loss\n1,2.0\n2"
    (copied_run / path).write_bytes(damaged[damage])
    with pytest.raises(FlowllmError, match=path) as caught:
        write_report(copied_run)
    advice = "train again" if path.endswith(".csv") else f"`snakemake {copied_run / path}`"
    assert advice in str(caught.value)


def test_a_shard_that_is_the_last_is_missed_by_its_number(copied_run):
    """Without its record, only the number of shards tells."""
    last = copied_run / "base" / "FlowLLM-test" / "shard-00001.parquet"
    last.unlink()
    provenance_path(last).unlink()
    counts = shard_counts(["base/FlowLLM-test=2", "pairs/train=2"])
    with pytest.raises(FlowllmError, match=r"shard-00001\.parquet: missing"):
        read_rejections(copied_run, counts)
    with pytest.raises(FlowllmError, match="expected FOLDER=COUNT"):
        shard_counts(["pairs/train"])


def test_shards_of_another_configuration_are_not_counted(copied_run):
    """Two shards exist, the configuration has one: neither drafts nor times of the other count."""
    counts = {"base/FlowLLM-test": 1, "relaxed/FlowLLM-test": 1}
    rejected = read_rejections(copied_run, counts)
    assert ("base FlowLLM-test: drafts", "bad_number", 2) in rejected
    assert not [row for row in rejected if row[1] == "exhausted" and row[2] > 1]
    shutil.copytree(copied_run / "base" / "FlowLLM-test", copied_run / "base" / "earlier")
    assert read_rejections(copied_run, counts) == rejected
    names = {record["output"] for record in read_records(copied_run, counts)}
    assert "base/FlowLLM-test/shard-00000.parquet" in names
    assert "base/FlowLLM-test/shard-00001.parquet" not in names
    write_record(copied_run, "base/earlier/shard-00000.parquet", "sample_base", 1.0, 1)
    assert {record["output"] for record in read_records(copied_run, counts)} == names


@pytest.mark.parametrize(
    ("words", "folder", "belonging"),
    [
        ([], "base/old", True),
        (["pairs/train=1"], "base/old", True),
        (["base/a=1"], "base/old", False),
        (["base/a=1"], "generated/old", True),
        (["base/a=1"], "relaxed/old", True),
        (["base/a=1"], "pairs/val", True),
        (["relaxed/a=1"], "base/old", True),
        (["relaxed/a=1"], "relaxed/old", False),
        (["relaxed/a=1"], "generated/old", False),
        (["relaxed/a=1"], "generated/a", True),
        (["relaxed/a=1", "generated/predicted=1"], "generated/predicted", True),
        (["relaxed/a=1", "generated/predicted=1"], "generated/a", True),
        (["relaxed/a=1"], "trajectories/old", True),
    ],
)
def test_folders_of_rows_that_were_removed_do_not_belong_to_the_run(words, folder, belonging):
    """Those that the shards do not name, beside one of their kind that they name."""
    shards = shard_counts(words)
    assert belongs(f"{folder}/shard-00000.parquet", shards) == belonging
    if folder in shards or (belonging and folder.replace("generated", "relaxed") in shards):
        assert not belongs(f"{folder}/shard-00001.parquet", shards)
    assert belongs("rfm/old", shards)


CURVES = ("", "a,b\n1,2\n", "step,step\n1,2\n", "step,loss\n1\n", "step,loss\n1,2,3\n", "step\nx\n")


@pytest.mark.parametrize("text", CURVES)
def test_a_training_curve_of_another_form_is_named(copied_run, text):
    (copied_run / "rfm" / "llm" / "training_curve.csv").write_text(text)
    with pytest.raises(FlowllmError, match=r"rfm/llm/training_curve\.csv.*train again"):
        write_report(copied_run)


def without(key):
    def change(numbers):
        *path, last = key.split("/")
        for name in path:
            numbers = numbers[name]
        del numbers[last]

    return change


def changed(key, value):
    def change(numbers):
        *path, last = key.split("/")
        for name in path:
            numbers = numbers[name]
        numbers[last] = value

    return change


OTHER_FORMS = {
    "rates.sun_rate": changed("rates/sun_rate", 0.5),
    "rates.sun_rate.numerator": changed("rates/sun_rate/numerator", "3"),
    "rates.sun_rate.value": changed("rates/sun_rate/value", float("nan")),
    "rates: .*novelty missing": without("rates/novelty"),
    "means": without("means"),
    "counts.drawn": without("counts/drawn"),
    "counts.llm_drafts": without("counts/llm_drafts"),
    "counts.llm_rejections": without("counts/llm_rejections"),
    "protocol.hull_not_converged": without("protocol/hull_not_converged"),
    "counts.relaxed": changed("counts/relaxed", [1, 2]),
    "protocol.matcher": without("protocol/matcher/ltol"),
    "sampling.setting": changed("sampling/setting", {"base": 1}),
    "histograms": changed("histograms", None),
    "setting": changed("setting", 7),
}


@pytest.mark.parametrize("message", OTHER_FORMS)
def test_metrics_of_another_form_are_named_with_the_key(copied_run, message):
    path = copied_run / "metrics" / "potential" / "FlowLLM-test.json"
    numbers = json.loads(path.read_text())
    OTHER_FORMS[message](numbers)
    path.write_text(json.dumps(numbers))
    with pytest.raises(FlowllmError, match=rf"FlowLLM-test\.json: .*{message}.*`snakemake"):
        write_report(copied_run)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "[" * 100_000, "1" * 5000, "\xff"])
def test_metrics_that_are_no_object_are_named(copied_run, text):
    path = copied_run / "metrics" / "potential" / "FlowLLM-test.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FlowllmError, match=r"FlowLLM-test\.json: .*`snakemake"):
        write_report(copied_run)


RECORDS = ["", "{", "[]", "{}", '{"stage": 1}', '{"stage": "prepare", "counts": []}']


@pytest.mark.parametrize("text", RECORDS)
def test_a_damaged_record_is_named_with_its_cure(copied_run, text):
    record = provenance_path(copied_run / "llm" / "invariance.parquet")
    record.write_text(text)
    with pytest.raises(FlowllmError, match=rf"{record.name}: .*delete this record"):
        write_report(copied_run)
    with pytest.raises(FlowllmError, match=rf"{record.name}: .*delete this record"):
        costs_of_run(copied_run)


def test_files_of_other_programs_beside_the_records_are_no_records(copied_run):
    before = [record["output"] for record in read_records(copied_run)]
    record = provenance_path(copied_run / "llm" / "invariance.parquet")
    for name in (f"._{record.name}", f".#{record.name}", f"{record.name}~", f"#{record.name}#"):
        record.with_name(name).write_bytes(b"\x00\x05\x16\x07")
    assert [one["output"] for one in read_records(copied_run)] == before
    write_report(copied_run)


@pytest.mark.parametrize(("merged", "warned"), [(0.671, False), (0.74, True), (0.5, False)])
def test_a_merge_that_raises_the_loss_is_a_warning_of_the_report(merged, warned):
    counts = {"adapter_val_loss": 0.66, "merged_val_loss": merged}
    table = merging_table([{"stage": "invariance", "counts": counts}])
    assert [row["loss"] for row in table.rows] == pytest.approx([0.66, merged, merged - 0.66])
    assert ("Warning: merging raised the loss" in table.caption) == warned
    assert merging_table([{"stage": "invariance", "counts": {}}]) is None


def test_every_number_that_a_table_shows_is_asked_of_the_metrics(run_dir):
    """A column of a number that no file holds would be all dashes."""
    result = read_results(metrics_files(run_dir)[:1])[0]
    kinds = {"rate": (forms.RATES, "rates"), "mean": (forms.MEANS, "means")}
    kinds["distance"] = (forms.DISTANCES, "distances")
    shown = [sun_table([result], "potential", lead=True), sun_parts_table([result], "potential")]
    for table in (*shown, ground_state_table([result]), paper_table([result], {})):
        for column in table.columns:
            if column.kind in kinds:
                assert column.key in kinds[column.kind][0], f"{table.name}: {column.key}"
    for _, key, _ in counting_tables._READINGS:
        assert key in (*forms.RATES, *forms.MEANS), key
    for names, part in kinds.values():
        assert set(names) <= set(result.numbers[part])


def with_numbers(result, **changes):
    return replace(result, numbers=result.numbers | changes)


ESTIMATE = {
    **{"certain": 3, "sampled": 1, "sample": 5, "population": 50, "drawn": 60},
    **{"value": 13 / 60, "low": 0.08, "high": 0.45},
}


def test_estimates_are_shown_with_their_weights_and_intervals(run_dir):
    result = read_results(metrics_files(run_dir))[1]
    assert estimate_table([result]) is None
    design = {"certain": 10, "sample": 5, "population": 50, "missing": 2}
    unknown = ESTIMATE | {"sampled": 0, "sample": 0, "value": None}
    rates = {"stability_rate": ESTIMATE, "metastability_rate": unknown}
    shown = with_numbers(result, estimates={"design": design, "rates": rates})
    table = estimate_table([shown])
    cells = [(cell.text, cell.detail) for cell in table.shown()[0]]
    assert cells[1:] == [
        ("10", ""),
        ("5 of 50", ""),
        ("2", ""),
        ("21.67\u202f%", "3 + 1 · 10 of 60; 8.00–45.00"),
        ("–", "8.00–45.00"),
        ("–", ""),
        ("–", ""),
    ]
    row = next(csv.DictReader(io.StringIO(to_csv(table))))
    assert float(row["stability_rate"]) == pytest.approx(13 / 60)
    assert row["stability_rate_sampled"] == "1"
    assert r"\cdot" in to_latex(table)


def test_crystals_that_select_excluded_are_named_below_the_rates(run_dir):
    result = read_results(metrics_files(run_dir))[0]
    assert "select.skip" not in sun_table([result], "potential").protocol
    counts = result.numbers["counts"]
    relaxed = counts["relaxed"] | {"known": 4, "repeated": 1}
    skipped = with_numbers(result, counts=counts | {"relaxed": relaxed})
    design = {"certain": 10, "sample": 5, "population": 50, "missing": 2}
    estimated = with_numbers(skipped, estimates={"design": design, "rates": {}})
    for table in (
        sun_table([skipped], "potential"),
        sun_parts_table([skipped], "potential"),
        e_hull_table([skipped], "potential"),
        ground_state_table([skipped]),
        reading_table([skipped], "potential"),
        *protocol_tables([skipped], "potential"),
        sun_cost_table([skipped]),
        estimate_table([estimated]),
    ):
        assert "cannot be compared" in table.protocol, table.name
        assert table.protocol.count("FlowLLM-test (4 known, 1 repeated)") == 1, table.name


def test_where_select_excluded_crystals_table_2_has_the_match_rate_of_the_relaxed(run_dir):
    """Each number is in one table only."""
    result = read_results(metrics_files(run_dir))[0]
    counts = result.numbers["counts"]
    skipped = with_numbers(result, counts=counts | {"relaxed": counts["relaxed"] | {"known": 4}})
    for one, shown in ((result, False), (skipped, True)):
        table = ground_state_table([one])
        read = [row["reading"] for row in reading_table([one], "potential").rows]
        assert ("match_rate_of_relaxed" in [column.key for column in table.columns]) == shown
        assert ("of the relaxed, matcher 0.2, 0.3, 5°" in read) == (not shown)
    # Of five draws three are relaxed and match.
    rates = [table.rows[0][key] for key in ("match_rate", "match_rate_of_relaxed")]
    assert [(one["numerator"], one["denominator"]) for one in rates] == [(3, 5), (3, 3)]


def test_the_page_warns_and_shows_the_second_potential(tmp_path):
    """Eleven stable copies of a known crystal without a compound of its elements on the hull."""
    seconds = [-0.2] * 6 + [0.5] * 5
    salts = [
        Draw(rocksalt(), rocksalt(), -0.1, check_e_above_hull=second, hull_compounds=0)
        for second in seconds
    ]
    run = write_run(tmp_path, salts, {"train": {"mp-1": rocksalt()}})
    metrics.run(stage_settings("metrics"), **run.paths(), out=run.out, workers=1)
    page_path = write_report(tmp_path, metrics_paths=[run.out])
    said = read_csv(page_path, "warnings")
    assert [(row["warning"].split(":")[0], row["methods"].split(" (")[1]) for row in said] == [
        ("Nearly all crystals on the hull are stable", "11 of 11)"),
        ("Hardly any relaxed crystal is novel", "0 of 11)"),
        (
            "For many crystals with several elements the hull has no compound of their elements",
            "11 of 11, 100 %)",
        ),
    ]
    assert "Warnings" in page_path.read_text()
    (row,) = read_csv(page_path, "second_potential")
    counts = {
        name: (row[f"{name}_numerator"], row[f"{name}_denominator"])
        for name in ("agree_stable", "confirmed_stable", "check_stable")
    }
    assert counts == dict.fromkeys(counts, ("6", "11"))
    assert row["kendall"] == "–" or row["kendall"] == ""  # the first energies are all equal


def test_without_a_second_potential_there_is_no_table_of_it(page_path):
    assert not (page_path.parent / "tables" / "second_potential.csv").exists()
