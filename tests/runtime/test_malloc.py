"""Freed memory is kept: a second round of the same large arrays makes no page faults."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from flowllm.runtime.malloc import keep_freed_memory

def page_faults_of_a_round():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(8_000_000) for _ in range(3)]
    del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
page_faults_of_a_round()
print(page_faults_of_a_round())
"""


def page_faults(argument: str) -> int:
    command = [sys.executable, "-c", PROGRAM, argument]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_used_again():
    assert page_faults("keep") < 100
    assert page_faults("leave") > 100  # with huge pages these 192 MB are some hundred faults
