"""Links of the pages lead to files and headings that exist, and the pages list all parts."""

import re

import pytest
import yaml

from flowllm.cli import COMMANDS
from flowllm.config.stages import STAGES
from pages import PAGES, anchors, is_generated, links
from tiny_run import ROOT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_of_it(page):
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file) or is_generated(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_number_waits_for_its_measurement(page):
    """Drafts have marks where a number is to be filled in."""
    assert not re.findall(r"@@\w*|\b(?:TODO|FIXME|TBD|XXX)\b", page.read_text())


def test_readme_and_stage_page_have_every_stage_in_the_same_phase():
    readme = re.findall(
        r"^\| (\d\. [\w ]+) \|.*\| (.*) \|$", (ROOT / "README.md").read_text(), re.M
    )
    page = (ROOT / "docs" / "stages.md").read_text()
    sections = re.findall(r"^## (\d\. [\w ]+)\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    of_readme = {phase: re.findall(r"`(\w+)`", stages) for phase, stages in readme}
    of_page = {phase: re.findall(r"^\| `(\w+)` \|", table, re.M) for phase, table in sections}
    assert of_readme == of_page
    assert sorted(stage for stages in of_page.values() for stage in stages) == sorted(STAGES)


def test_the_overview_has_every_command_in_the_order_of_the_help():
    page = (ROOT / "docs" / "index.md").read_text()
    section = page.partition("\n## The commands\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`flowllm .*?) \|", section, re.M)
    assert [name for row in rows for name in re.findall(r"`flowllm (\w+)`", row)] == list(COMMANDS)


def test_the_navigation_has_four_groups_and_every_page_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    groups = {name: entries for group in nav for name, entries in group.items()}
    assert list(groups) == ["Start", "Guide", "Reference", "Development"]
    listed = [page for entries in groups.values() for entry in entries for page in entry.values()]
    pages = [page.name for page in (ROOT / "docs").glob("*.md")]
    assert sorted(listed) == sorted([*pages, "contributing.md", "changelog.md"])
