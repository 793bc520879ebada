"""Memory and time of later attempts, against the SLURM plugin's own choice of a partition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowllm.config.load import load_config
from flowllm.config.sections.cluster import Resources
from flowllm.config.site import JobOptions, Site
from flowllm.slurm.attempts import memory_and_minutes
from flowllm.slurm.requests import chosen_partition, read_partitions, requests_of_config
from tiny_run import ROOT

CONFIG = load_config([ROOT / "config.yaml"])
limit = st.integers(1, 10_000)
partitions = st.dictionaries(
    st.sampled_from(["one", "two", "three"]),
    st.fixed_dictionaries(
        {"max_runtime": limit, "max_mem_mb": limit, "max_threads": st.integers(1, 8)},
        optional={"max_gpu": st.integers(1, 4)},
    ),
    min_size=1,
)
wanted = st.builds(
    Resources, gpus=st.integers(0, 4), cpus=st.integers(1, 8), mem_mb=limit, runtime=limit
)


@given(partitions=partitions, wanted=wanted)
def test_where_the_first_attempt_fits_a_partition_the_third_does(
    tmp_path_factory, partitions, wanted
):
    site = Site(partitions=partitions)
    path = tmp_path_factory.mktemp("site") / "site.yaml"
    path.write_text(site.model_dump_json())
    config = CONFIG.model_copy(update={"resources": {**CONFIG.resources, "refine": wanted}})
    first, _, third = requests_of_config(config, site, ["refine"], retries=2)
    read = read_partitions(path)
    assert (chosen_partition(first, read) is None) == (chosen_partition(third, read) is None)
    for key in ("mem_mb", "runtime"):
        assert first.resources[key] <= third.resources[key] <= 3 * first.resources[key]


@pytest.mark.parametrize(
    ("attempt", "expected"), [(1, (60, 100)), (2, (100, 200)), (3, (100, 250))]
)
def test_memory_and_time_grow_up_to_the_limits(attempt, expected):
    site = Site(partitions={"cpu": {"max_mem_mb": 100, "max_runtime": 250}})
    wanted = Resources(gpus=0, cpus=1, mem_mb=60, runtime=100)
    assert memory_and_minutes(site, "prepare", wanted, attempt) == expected


def test_no_memory_is_requested_where_the_site_has_none():
    site = Site(all_jobs=JobOptions(memory=False))
    wanted = Resources(gpus=0, cpus=1, mem_mb=60, runtime=100)
    assert memory_and_minutes(site, "prepare", wanted, 2) == (0, 200)
