"""Captions of the tables in Snakemake's own report."""

import re

from tiny_run import ROOT


def test_every_table_has_its_caption():
    """Only tables of other rules, whose names end in that of the protocol, share the last one."""
    source = "\n".join(path.read_text() for path in (ROOT / "src/flowllm/report").glob("*.py"))
    names = set()
    for name in re.findall(r'\bTable\(\s*f?"([^"]+)"', source):
        names |= {name.replace("{kind}", kind) for kind in ("potential", "dft")}
    names = {name for name in names if not name.startswith(("readings_", "protocol_"))}
    captions = (ROOT / "workflow" / "captions" / "table.rst").read_text()
    assert len(names) > 20
    assert set(re.findall(r'^  "(\w+)":', captions, re.M)) == names
