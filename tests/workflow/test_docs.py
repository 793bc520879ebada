"""The documentation says what is so: references, quoted messages, commands and names of files."""

import importlib.util
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from flowllm.cli import app
from flowllm.config.model import Config
from flowllm.io import hull_schemas
from flowllm.io import schemas as schemas_module

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = [ROOT / "data" / "README.md", *sorted((ROOT / "recipes").glob("*/README.md"))]

OTHERS_MESSAGES = {
    "Extra inputs are not permitted",  # pydantic's
    "LockException",  # from here on Snakemake's and SLURM's
    "IncompleteFilesException",
    "MissingOutputException",
    "sacct",
    "(Resources)",
    "(ReqNodeNotAvail)",
}


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configuration_reference_has_every_key_with_its_value_and_meaning(hooks):
    lines = list(hooks.configuration())
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    for section in Config.model_fields:
        assert f"## {section}" in lines
    for key in values["train_rfm"]:
        assert any(line.startswith(f"| `{key}` |") for line in lines)
    loss = "weight of the coordinates in the loss; paper, App. C"
    assert f"| `lambda_f` | `200.0` | number > 0 | {loss} |" in lines
    assert "| `stable_below` | `0.0` | number | eV/atom above the hull; paper, App. D |" in lines
    assert any(line.startswith('| `color` | `"#0072B2"` | string |') for line in lines)
    assert "`42`: integer ≥ 0" in lines


def test_artefact_reference_has_every_column(hooks):
    text = "\n".join(hooks.artefacts())
    sections = dict(re.findall(r"\n## ([^\n]+)\n(.*?)(?=\n## |\Z)", "\n" + text, re.DOTALL))
    schemas = {
        name: value
        for module in (schemas_module, hull_schemas)
        for name, value in vars(module).items()
        if isinstance(value, pa.Schema)
    }
    assert set(sections) == {name.lower().replace("_", " ") for name in schemas}
    for name, schema in schemas.items():
        columns = re.findall(r"^\| `(\w+)` \|", sections[name.lower().replace("_", " ")], re.M)
        assert columns == schema.names
    assert "| `frac_coords` | list of 3 float32 | fractional coordinates" in text


def test_artefact_reference_names_outputs_of_the_rules():
    page = (ROOT / "docs" / "artefacts.md").read_text()
    rules = "\n".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    # A rule's f-string has {{flow}} for the page's {flow}; a folder is one of some file, or itself.
    rules = rules.replace("{{", "{").replace("}}", "}").replace("{report}", "report")
    paths = re.findall(r'f"\{RUN\}/([^"]+)"', rules)
    for row in re.findall(r"^\| (`.*?) \|", page, re.M):
        for name in re.findall(r"`([^`]+)`", row):
            assert any(f"{path}/".startswith(name) for path in paths), name


def test_every_quoted_message_is_one_of_the_code():
    page = (ROOT / "docs" / "faults.md").read_text()
    quoted = [
        message
        for line, following in pairwise(page.splitlines())
        if following.startswith(":   ")
        for message in re.findall(r"`([^`]+)`", line)
    ]
    assert len(quoted) > 20
    # Messages are written over several lines of source: join what Python joins.
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    source = re.sub(r"\{[^{}]*\}", "{}", source)
    for message in quoted:
        assert message in source or message in OTHERS_MESSAGES, message


def commands():
    """Every `flowllm ...` line of the pages, continued lines joined."""
    for path in (*PAGES, *FOLDERS):
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ *(flowllm .*)$|`(flowllm [^`\n]+)`", text, re.M):
            yield path.name, shlex.split(line[0] or line[1], comments=True)


def test_every_command_and_option_in_the_pages_exists():
    found = 0
    for page, (_, name, *words) in ((p, w) for p, w in commands() if len(w) > 1):
        if name in ("--help", "STAGE"):
            continue
        arguments = app[name].assemble_argument_collection()
        options = {option for argument in arguments for option in argument.names}
        for word in words:
            assert not word.startswith("--") or word.partition("=")[0] in options, (page, word)
        found += 1
    assert found > 8


def test_every_file_named_in_the_pages_is_there():
    names = r"`((?:src|tests|workflow|envs|data|docs|containers|benchmarks|recipes)/[\w./-]+)`"
    for path in [*PAGES, ROOT / "CONTRIBUTING.md"]:  # the READMEs of data name what users make
        for name in re.findall(names, path.read_text()):
            if "STAGE" not in name:
                assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_equations_become_mathml(hooks):
    pytest.importorskip("latex2mathml", reason="not installed: make docs installs it")
    html = hooks.equations("a $x^2$ b\n\n$$\\frac{a}{b}$$\n\n    echo $HOME $PATH\n")
    assert html.count("<math") == 2
    assert "<mfrac>" in html
    assert "echo $HOME $PATH" in html


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None,
    reason="mkdocs is not installed; make docs builds the pages",
)
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
