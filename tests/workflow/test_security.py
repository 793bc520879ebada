"""Untrusted text stays text: in the shell, in file names, in the sources; tokens stay unseen."""

import ast
import hashlib
import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import ase.io
import pytest
import yaml

from crystals import rocksalt
from flowllm.commands.export import export
from flowllm.io import schemas, tables
from flowllm.runtime.provenance import read_provenance
from tiny_run import ROOT, TINY, environment, snakemake

BAD = 'it\'s a "b" $(touch pwned) `touch pwned` & c'
HOSTILE = {
    "run_dir": f"runs/{BAD}",
    "data": {"source": f"raw {BAD}"},
    "prepare": {"max_rows": None, "cell": "as_given"},
    "prompts": {"introduction": f"{BAD}; touch pwned\n| touch pwned \\"},
    "finetune_llm": {"base_model": f"x; {BAD}"},
    "external_samples": [{"name": "other", "file": f"{BAD}.csv", "shards": 1}],
    "report": {"title": f"</script><script>alert(1)</script> {BAD}"},
}
TOKENS = {"HF_TOKEN": "hf_MARKEDhfSECRET", "MP_API_KEY": "MARKEDmpSECRET"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Path, str]:
    """A folder in which download, prepare and import_samples ran with hostile words everywhere."""
    folder = tmp_path_factory.mktemp("sec") / BAD
    source = folder / HOSTILE["data"]["source"]
    source.mkdir(parents=True)
    cif = rocksalt().to_structure().to(fmt="cif")
    for name in ("a b", "$(touch pwned)", "it's", 'a"b', "Na; touch pwned", "-rf"):
        (source / f"{name}.cif").write_text(cif)
    (folder / f"{BAD}.csv").write_text('cif\n"{}"\n'.format(cif.replace('"', '""')))
    (folder / "hostile.yaml").write_text(yaml.safe_dump(HOSTILE))
    before = {name: os.environ.get(name) for name in TOKENS}
    os.environ.update(TOKENS)
    try:
        targets = ["--until", "prepare", "import_samples"]
        run = ["-p", *targets, "--cores", "1", *TINY, "hostile.yaml"]
        output = snakemake(*run, cwd=folder)
        output += snakemake("-n", "-p", *TINY, "hostile.yaml", cwd=folder)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return folder, output


def test_stages_run_on_hostile_names_and_nothing_else_does(hostile):
    folder, _ = hostile
    run = folder / HOSTILE["run_dir"]
    ids = tables.read_table(run / "crystals" / "train.parquet", schemas.CRYSTALS, ["id"])
    rejected = tables.read_table(run / "crystals" / "rejected.parquet", schemas.REJECTED)
    assert ids.num_rows
    assert not rejected.num_rows
    imported = tables.read_table(run / "base" / "other" / "shard-00000.parquet", schemas.BASE)
    assert imported.column("status").to_pylist() == ["ok"]
    assert not [path for path in folder.parent.rglob("*") if path.name == "pwned"]


def test_every_value_reaches_its_stage_as_one_word(hostile):
    folder, output = hostile
    commands = re.findall(r"^Shell command: (python -m flowllm .*?)$", output, re.M | re.S)
    seen = {}
    for command in commands:
        words = shlex.split(command)
        seen.setdefault(words[3], words)
    assert len(seen) > 14
    for stage, words in seen.items():
        settings = json.loads(words[words.index("--settings") + 1])
        assert settings["seed"] == 42
        log = words[words.index("--log") + 1]
        assert log.startswith(f"{HOSTILE['run_dir']}/logs/{stage}"), stage
        # No word is left over that a shell would read as another command.
        assert not {"touch", "pwned", "&", ";", "|"} & set(words)
    given = json.loads(seen["sample_pairs"][seen["sample_pairs"].index("--settings") + 1])
    assert given["prompts"]["introduction"] == HOSTILE["prompts"]["introduction"]
    assert HOSTILE["finetune_llm"]["base_model"] in seen["fetch_model"]
    assert folder.name == BAD


def test_tokens_are_in_no_log_record_or_artefact(hostile):
    folder, output = hostile
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert read_provenance(folder / HOSTILE["run_dir"] / "crystals")
    for secret in TOKENS.values():
        assert secret not in output
        for path in files:
            assert secret.encode() not in path.read_bytes(), path


COMMIT = "0123456789abcdef0123456789abcdef01234567"
# An empty safetensors file: the length of its header, and the header.
MODEL = {"model.safetensors": b"\2" + 7 * b"\0" + b"{}", "config.json": b'{"model_type": "llama"}'}
DOCUMENT = {"material_id": "mp-1", "composition": {"Na": 1, "Cl": 1}, "energy_per_atom": -3.4}


class Tokened(http.server.BaseHTTPRequestHandler):
    """A hub with one model and a Materials Project of one entry, for those who have the tokens."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        asked = self.headers.get("X-API-KEY") or self.headers.get("Authorization", "")
        self.server.asked.append((path, asked))
        if asked not in (TOKENS["MP_API_KEY"], f"Bearer {TOKENS['HF_TOKEN']}"):
            self.answer(401, b"{}")
        elif path == "/thermo/":
            self.answer(200, json.dumps({"data": [DOCUMENT], "meta": {"total_doc": 1}}).encode())
        elif path.startswith("/api/models/someone/model/tree/"):
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": name}
                for name, content in MODEL.items()
            ]
            self.answer(200, json.dumps(files).encode())
        elif path.startswith("/api/models/someone/model"):
            files = [{"rfilename": name} for name in MODEL]
            about = {"id": "someone/model", "sha": COMMIT, "siblings": files}
            self.answer(200, json.dumps(about).encode())
        else:
            self.answer(200, MODEL[path.rpartition("/")[2]])

    def do_HEAD(self):
        self.do_GET()

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def tokened() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tokened)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


STAGE = """
import sys
from flowllm.cli import main
from flowllm.dft import reference_sources
reference_sources.MP_API = sys.argv.pop(1)
main()
"""
HULL = json.dumps(
    {
        "seed": 1,
        "version": 1,
        "dft_hull": {"source": "mp_api", "correction_scheme": "MP2020"},
        "dft_collect": {"correction_scheme": "MP2020", "strict_anions": "require_bound"},
    }
)
FETCH = json.dumps({"seed": 1, "version": 1})


@pytest.mark.parametrize("known", [True, False], ids=["right tokens", "wrong tokens"])
@pytest.mark.parametrize(
    ("words", "token", "out"),
    [
        (
            ["fetch_model", "--base-model", "someone/model", "--settings", FETCH],
            "HF_TOKEN",
            "model.json",
        ),
        (["dft_hull", "--settings", HULL], "MP_API_KEY", "dft.parquet"),
    ],
    ids=["fetch_model", "dft_hull"],
)
def test_a_stage_that_reads_a_token_writes_it_nowhere(tmp_path, tokened, words, token, out, known):
    url = f"http://127.0.0.1:{tokened.server_address[1]}"
    secret = TOKENS[token] if known else "MARKEDwrongSECRET"
    places = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "no_proxy": "127.0.0.1"}
    files = ["--out", str(tmp_path / out), "--log", str(tmp_path / "stage.log")]
    done = subprocess.run(
        [sys.executable, "-c", STAGE, f"{url}/thermo/", *words, *files],
        env={**environment(), "HF_HUB_OFFLINE": "0", **places, token: secret},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (done.returncode == 0) == known, done.stdout
    assert any(secret in asked for _, asked in tokened.asked)  # it was read, and sent
    assert secret not in done.stdout + "".join(path for path, _ in tokened.asked)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {out, f"_{out}.provenance.json"} <= {path.name for path in written} or not known
    assert not any(secret.encode() in path.read_bytes() for path in written)
    assert (tmp_path / "stage.log").read_text()


def test_a_crystals_id_names_no_file_elsewhere(tmp_path):
    ids = ["../../evil", "/tmp/evil", 'a"b\nc', "a/b", "a\\b", "..", "x" * 300]
    shown = tables.crystal_columns(rocksalt())
    rows = [{"id": name, **shown, "status": "ok"} for name in ids]
    table = tmp_path / "base.parquet"
    tables.write_table(table, rows, schemas.BASE, {})
    out = tmp_path / "deep" / "er" / "cifs"
    export([table], out, "cif", None)
    assert len(list(out.iterdir())) == len(ids)
    assert {path.name for path in tmp_path.iterdir()} == {"base.parquet", "deep"}
    export([table], tmp_path / "a.extxyz", "extxyz", None)
    read = ase.io.read(tmp_path / "a.extxyz", index=":")
    assert [atoms.info["id"] for atoms in read] == [name.replace("\n", " ") for name in ids]


def sources():
    for folder in ("src", "workflow", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


FORBIDDEN_IMPORTS = {
    "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal",
    "tarfile", "zipfile",  # nothing is unpacked, so no path needs a check
    "pty", "telnetlib", "ftplib",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "eval", "exec", "os.system", "os.popen", "shutil.unpack_archive", "pd.read_pickle",
    "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load",
}  # fmt: skip


# custodian's archives of VASP runs are read a member at a time, and the list of the members of a
# `.pt` file for what it unpacks to; none of them is written to the disk.
READS_ARCHIVES = {
    Path("src/flowllm/dft/vasp_output.py"): {"tarfile"},
    Path("src/flowllm/data/pt_file.py"): {"zipfile"},
}


def test_no_pickle_no_shell_no_archive_in_the_sources():
    loads = 0
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
                forbidden = FORBIDDEN_IMPORTS - READS_ARCHIVES.get(path, set())
                assert not {name.partition(".")[0] for name in names} & forbidden, path
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
                assert node.attr == "UnpicklingError", path  # what torch.load raises
            if isinstance(node, ast.ImportFrom):
                assert node.module != "pickle", path
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            where = f"{path}:{node.lineno}: {name}"
            assert name not in FORBIDDEN_CALLS, where
            assert name.rpartition(".")[2] not in {"extract", "extractall"}, where
            assert words.get("shell", "False") == "False", where
            assert words.get("trust_remote_code", "False") == "False", where
            assert words.get("allow_pickle", "False") == "False", where
            if name == "torch.load":
                loads += 1
                assert words.get("weights_only") == "True", where
            if name == "AutoModelForCausalLM.from_pretrained" and "gguf_file" not in words:
                assert words.get("use_safetensors") == "True", where
    assert loads


def test_every_address_in_the_catalogue_is_https_with_a_checksum_a_file():
    for source in yaml.safe_load((ROOT / "data" / "sources.yaml").read_text()).values():
        assert source["url"].startswith("https://")
        for file in source["files"].values():
            assert all("sha256" in copy or "git_blob" in copy for copy in file["copies"])
