"""The command line: help, usage errors, and the shell command of every rule."""

import re
import shlex
import subprocess
import sys

import pytest
from cyclopts import CycloptsError

from every_stage import every_stage
from flowllm.cli import COMMANDS, app, main
from flowllm.config.stages import STAGES
from tiny_run import TINY, environment, snakemake


@pytest.fixture(scope="module")
def shell_commands(tmp_path_factory) -> list[list[str]]:
    """The words of the shell command of every job of a run that has all stages."""
    folder = tmp_path_factory.mktemp("rules")
    overlay = every_stage(folder)
    output = snakemake("-n", "-p", "all_dft", *TINY, str(overlay), cwd=folder)
    lines = re.findall(r"python -m flowllm (.*)", output)
    return [shlex.split(line) for line in lines]


def test_the_shell_command_of_every_rule_is_one_of_the_command_line(shell_commands):
    assert {words[0] for words in shell_commands} == set(STAGES)
    for words in shell_commands:
        _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        assert {"out", "settings", "log"} <= bound.arguments.keys()
        for name in re.findall(r" --([\w-]+)", " ".join(words)):
            assert name.replace("-", "_") in bound.arguments  # no abbreviations


def test_lists_of_files_keep_their_order(shell_commands):
    words = next(words for words in shell_commands if words[0] == "train_rfm")
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert [path.name for path in bound.arguments["pairs"]] == [
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]


def run_flowllm(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowllm", *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


def test_help_lists_stages_apart_and_imports_none():
    script = (
        "import sys\n"
        "from flowllm.cli import main\n"
        "main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'pydantic', 'yaml'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    commands, stages = done.stdout.split(" Commands ")[1].split(" Stages ")
    for names, text in ((COMMANDS, commands), (STAGES, stages)):
        assert all(re.search(rf"^. {name} +[A-Z]", text, re.MULTILINE) for name in names)
    assert "--install-completion" in stages


@pytest.mark.parametrize("name", [*COMMANDS, *STAGES])
def test_every_parameter_has_a_text(name):
    for argument in app[name].assemble_argument_collection(parse_docstring=True):
        assert argument.parameter.help, f"{name}: {argument.name}"


def test_a_flow_is_named_for_stages_that_have_one_only():
    names = {stage: set() for stage in STAGES}
    for stage, options in names.items():
        options |= {name for one in app[stage].assemble_argument_collection() for name in one.names}
    assert {stage for stage in STAGES if "--name" in names[stage]} == {
        stage for stage in STAGES if STAGES[stage].row
    }


def test_the_version_is_printed(capsys):
    main(["--version"])
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prepare --manifest a --out b --worker 2", "Did you mean --workers?"),
        ("prepare --manifst a --out b", "Did you mean --manifest instead of --manifst?"),
        ("prepar --out b", 'Did you mean "prepare"?'),
        ("prepare --manifest a --out b --workers 0", "Must be > 0"),
        ("stability --energies a --hull b --kind dtf --out c", 'Did you mean "dft"?'),
        ("check --target al", 'Did you mean "all"?'),
    ],
)
def test_a_usage_error_is_one_line_that_names_the_near_miss(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_error_that_can_be_corrected_ends_with_1(tmp_path):
    log = tmp_path / "stage.log"
    done = run_flowllm(
        "prepare", "--manifest=a", f"--out={tmp_path}", "--settings={", f"--log={log}"
    )
    assert done.returncode == 1
    assert "--settings of prepare: not JSON" in done.stderr
    assert "not JSON" in log.read_text()
    assert "Traceback" not in done.stderr


def test_bash_completes_commands_options_and_choices(tmp_path):
    script = tmp_path / "flowllm.bash"
    script.write_text(app.generate_completion(shell="bash"))
    asked = {"pre": "prepare prerelax", "prepare --w": "--workers", "export --format c": "cif csv"}
    for words, expected in asked.items():
        program = (
            f"source {script}\n"
            f"COMP_WORDS=(flowllm {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
            "_flowllm\n"
            'echo "${COMPREPLY[*]}"\n'
        )
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_an_unknown_option_reaches_no_stage():
    with pytest.raises(CycloptsError):
        app.parse_args(["download", "--out=a", "--url=b"], exit_on_error=False, print_error=False)
