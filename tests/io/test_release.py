"""A released folder is used only with the bytes that were released."""

import hashlib
import json
import re

import pytest

from flowllm.errors import FlowllmError
from flowllm.io.release import CARD, RELEASE, check_release, check_released, write_release

FILES = ("config.yaml", "llm/model/model.safetensors", "rfm/llm/model.json", "hull/a.parquet")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "released"
    for name in FILES:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 3)
    write_release(root, {"title": "Small"})
    return root


def test_the_released_bytes_pass(folder):
    check_release(folder)
    listed = json.loads((folder / RELEASE).read_text())["files"]
    assert {name: one["bytes"] for name, one in listed.items()} == {
        name: 3 * len(name) for name in FILES
    }


def test_digests_are_sha256(folder):
    listed = json.loads((folder / RELEASE).read_text())["files"]
    for name in FILES:
        assert listed[name]["sha256"] == hashlib.sha256(name.encode() * 3).hexdigest()


def flipped(path):
    content = bytearray(path.read_bytes())
    content[1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", FILES)
def test_one_changed_bit_is_refused(folder, name):
    flipped(folder / name)
    said = re.escape(f"{folder / name}: is not the released file ({3 * len(name)} bytes, SHA-256 ")
    with pytest.raises(FlowllmError, match=said):
        check_release(folder)


def test_missing_and_added_files_are_refused(folder):
    added = folder / "llm" / "model" / "generation_config.json"
    added.write_text("{}")
    with pytest.raises(FlowllmError, match=r"generation_config\.json: is not listed"):
        check_release(folder)
    added.unlink()
    (folder / "config.yaml").unlink()
    with pytest.raises(FlowllmError, match=r"config\.yaml: is missing"):
        check_release(folder)


def test_the_card_and_hidden_files_have_no_digest(folder):
    (folder / CARD).write_text("Corrected.\n")
    (folder / "llm" / ".snakemake_timestamp").touch()
    check_release(folder)


def test_a_part_is_checked_alone(folder):
    flipped(folder / "hull" / "a.parquet")
    for part in ("llm/model", "rfm/llm", "rfm"):
        check_released(folder / part)
    flipped(folder / "rfm" / "llm" / "model.json")
    check_released(folder / "llm" / "model")
    for part in ("rfm/llm", "rfm"):
        with pytest.raises(FlowllmError, match=r"rfm/llm/model\.json: is not the released file"):
            check_released(folder / part)


def test_a_link_leads_to_the_check(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder / "llm" / "model")
    flipped(folder / "llm" / "model" / "model.safetensors")
    with pytest.raises(FlowllmError, match="is not the released file"):
        check_released(tmp_path / "link")


def test_other_folders_pass(tmp_path):
    (tmp_path / "model").mkdir()
    check_released(tmp_path / "model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"files": {}}', "format"),
        ('{"format": 1, "files": {"a": 3}}', "files"),
        ('{"format": 2, "files": {}}', "made by another version"),
        ('{"format": 1, "files": {}}', "lists no file"),
    ],
)
def test_damaged_digests_are_refused(folder, text, message):
    (folder / RELEASE).write_text(text)
    with pytest.raises(FlowllmError, match=message):
        check_release(folder)
