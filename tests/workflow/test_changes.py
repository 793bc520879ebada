"""The table of changed functions in docs/extending.md is what FlowLLM changes."""

import re
import subprocess
import sys

from tiny_run import ROOT

LIST = """
import sys, types
import snakemake.cli
import snakemake_executor_plugin_slurm.efficiency_report
from pathlib import Path
from flowllm.workflow.install import change_snakemake
change_snakemake(types.SimpleNamespace(is_main_process=True), Path("run"))
for name, module in list(sys.modules.items()):
    if name.split(".")[0] in ("snakemake", "snakemake_executor_plugin_slurm"):
        for key, one in list(vars(module).items()):
            members = vars(one) if isinstance(one, type) and one.__module__ == name else {"": one}
            for member, function in members.items():
                code = getattr(function, "__code__", None)
                if code is not None and "/flowllm/" in code.co_filename:
                    print(f"{key}.{member}".strip("."))
"""


def test_every_changed_function_is_in_the_table():
    """A changed function has code of this package, whatever its name and module."""
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
    changed = set(done.stdout.split())
    page = (ROOT / "docs" / "extending.md").read_text()
    section = page.split("## Changes of Snakemake\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert len(changed) > 20
    assert listed == changed
