"""How tests are dealt to the two workers of `make test`."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests on one worker, so that what they share is made once.

    `make test` runs pytest-xdist with `--dist loadgroup`; tests that share more than a file name
    their group themselves. The longest groups come first.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
