"""The type of a path's file system, against findmnt."""

import shutil
import subprocess
from pathlib import Path

import pytest

from flowllm.slurm.file_systems import type_of


@pytest.mark.skipif(shutil.which("findmnt") is None, reason="findmnt is not installed")
@pytest.mark.parametrize("path", ["/", "/proc/self", "/dev/shm/none/yet", "/tmp", "/sys/kernel"])
def test_the_type_is_that_of_findmnt(path):
    there = next(one for one in (Path(path), *Path(path).parents) if one.exists())
    words = ["findmnt", "--noheadings", "--output=FSTYPE", "--target", str(there)]
    expected = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert type_of(Path(path), Path("/proc/mounts").read_text()) == expected[-1]


def test_the_longest_mount_point_counts_and_names_may_have_spaces():
    mounts = "a / ext4 rw 0 0\nb /srv/my\\040home nfs4 rw 0 0\nc /srv tmpfs rw 0 0\n"
    assert type_of(Path("/srv/my home/run"), mounts) == "nfs4"
    assert type_of(Path("/srv/my"), mounts) == "tmpfs"
    assert type_of(Path("/srvother"), mounts) == "ext4"
