"""Every command of README and docs that ends in seconds, without the internet, is run here.

Every overlay of the pages is loaded.

Names of runs are replaced by that of the tests' run, and a run of the workflow is planned, not run.
The tutorial is run as a whole by test_tutorial.py.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from crystals import caesium_chloride, perovskite, rocksalt
from flowllm.cli import app
from flowllm.config.load import load_config
from flowllm.config.model import Config
from pages import PAGES, Block, Command, blocks, commands
from tiny_run import ROOT, dry_runs, environment

NOT_RUN = {
    r"(git|cd|mkdir|source|export|unset|nano|echo|pre-commit|pip|\S+/pip)\b": "sets up",
    r"python3\.11 -m venv ": "sets up",
    r"make ": "takes minutes; its target is checked below",
    r"(sbatch|squeue|sacct) ": "needs a SLURM",
    r"(bash|python) benchmarks/": "takes minutes or hours; its options are checked below",
    r"python -m pytest ": "is a test",
    r"/usr/bin/time -v snakemake ": "takes 15 s; tests/workflow/test_workflow.py has its bounds",
    r"timeout 7200 snakemake ": "tests/workflow/test_recipes.py plans all overlays",
    r"python tests/helpers/slow_tests\.py": "writes the list of slow tests",
    r"python -m flowllm\.config\.reference": "writes config.yaml; tests/config/test_reference.py",
    r"flowllm release --run runs/mp_20_large ": "needs that run; docs/generate.md has another",
    r"flowllm generate ": "samples; tests/commands/test_generate_chain.py",
    r"flowllm (archive|restore) \S+ \S+": "moves outputs; tests/runtime/test_archive.py",
    r"snakemake .*--software-deployment-method conda": "needs conda",
    r"snakemake -n --configfile my\.yaml": "shows an error; tests/config/test_config.py",
}
"""Commands that are not run here, as patterns of their beginning, with the reason."""

RUN_NAMES = re.compile(r"\bruns/(demo|paper|mine)\b")


def is_run(command: Command) -> bool:
    return not any(re.match(pattern, " ".join(command.words)) for pattern in NOT_RUN)


def named(program: str) -> list[Command]:
    """The commands of a program, each once; whether one is a dry run is no difference."""
    found: dict[tuple[str, ...], Command] = {}
    for one in commands():
        if one.words[0] == program and is_run(one):
            found.setdefault(tuple(word for word in one.words if word != "-n"), one)
    return list(found.values())


def block_of(page: str, language: str, has: str = "") -> Block:
    """The first block of a language on a page, of those that contain some text."""
    found = (one for one in blocks(ROOT / "docs" / page) if one.language == language)
    return next(one for one in found if has in one.text)


@pytest.fixture(scope="module")
def folder(finished_run, tmp_path_factory) -> Path:
    """A folder with links to the clone and to the tests' run, and with what the pages call own."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("Snakefile", "config.yaml", "workflow", "envs", "data", "slurm"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("run", "tiny-llm"):
        (folder / name).symlink_to(finished_run / name)
    (folder / "my_crystals").mkdir()
    for crystal in (rocksalt(), caesium_chloride(), perovskite()):
        structure = crystal.to_structure()
        structure.to(str(folder / "my_crystals" / f"{structure.reduced_formula}.cif"))
    own = block_of("data.md", "yaml").text  # with the reference that all_dft needs
    (folder / "my.yaml").write_text(f"{own}\ndft_hull: {{source: matbench_discovery}}\n")
    (folder / "about.yaml").write_text(block_of("generate.md", "yaml", "license:").text)
    shutil.copy(folder / "my_crystals" / "NaCl.cif", folder / "salt.cif")
    arrays = {"frac_coords": torch.zeros(1, 3), "other": None}
    torch.save(arrays, folder / "eval_gen.pt")
    return folder


def test_every_command_is_run_or_has_a_reason():
    programs = {one.words[0] for one in commands() if is_run(one)}
    assert programs == {"flowllm", "python", "snakemake"}
    texts = [" ".join(one.words) for one in commands()]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, text) for text in texts), f"no command any more: {pattern}"


@pytest.mark.parametrize("command", named("flowllm"), ids=lambda one: one.place)
def test_flowllm_command(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = [RUN_NAMES.sub("run", word) for word in command.words[1:]]
    app(words)
    if "--out" in words:
        assert any((folder / words[words.index("--out") + 1]).iterdir())
    else:
        assert capsys.readouterr().out


@pytest.mark.parametrize("command", named("python"), ids=lambda one: one.place)
def test_python_command(command, folder):
    words = [RUN_NAMES.sub("run", word) for word in command.words[1:]]
    subprocess.run([sys.executable, *words], cwd=folder, env=environment(), check=True)


def planning_words(command: Command) -> Iterator[str]:
    """The words of a command of the workflow, without what it is piped into."""
    for word in command.words[1:]:
        if word == "|":
            return
        yield word


def test_workflow_commands_have_a_plan(folder):
    asked = named("snakemake")
    assert len(asked) > 8
    outputs = dry_runs([(str(folder), list(planning_words(one))) for one in asked])
    for command, output in zip(asked, outputs, strict=True):
        assert re.search(r"Job stats:|^digraph", output, re.M), f"{command}\n{output[-3000:]}"


def test_benchmarks_have_the_options_of_their_commands():
    found = 0
    for program, file, *words in (one.words for one in commands() if len(one.words) > 1):
        if program in ("bash", "python") and file.startswith("benchmarks/"):
            source = (ROOT / file).read_text()
            for option in (word for word in words if word.startswith("--")):
                assert f'"{option}"' in source, f"{file} {option}"
            found += 1
    assert found > 5


def test_make_targets_exist():
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands():
        if command.words[0] == "make":
            assert command.words[1] in targets, command


def overlays() -> Iterator[Block]:
    """The blocks of the pages that change the configuration."""
    for block in (one for page in PAGES for one in blocks(page) if one.language == "yaml"):
        if yaml.safe_load(block.text).keys() <= Config.model_fields.keys():
            yield block


@pytest.mark.parametrize("block", overlays(), ids=lambda one: one.place)
def test_overlays_of_the_pages_are_valid(block, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(block.text)
    load_config([ROOT / "config.yaml", overlay])


def test_the_part_of_mp_20_is_whole_rows(tmp_path):
    """The Python block of docs/data.md, on three files whose cells have several lines."""
    source = tmp_path / "runs" / "paper" / "download"
    source.mkdir(parents=True)
    rows = "".join(f'mp-{i},"data_{i}\n_cell 1\n",007\n' for i in range(1300))
    for split in ("train", "val", "test"):
        (source / f"{split}.csv").write_text(f"material_id,cif,spacegroup.number\n{rows}")
    code = block_of("data.md", "python").text
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=True)
    for split, count in {"train": 1200, "val": 300, "test": 300}.items():
        text = (tmp_path / "data" / "mp_20_sample" / f"{split}.csv").read_text()
        assert text.count("\nmp-") == count
        assert text.endswith(f'mp-{count - 1},"data_{count - 1}\n_cell 1\n",007\n')
