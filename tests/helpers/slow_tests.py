"""List the slow tests in tests/slow.txt, which tests/conftest.py marks as `slow`.

make test TESTS=--junitxml=times.xml
python tests/helpers/slow_tests.py times.xml
"""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

SECONDS = 2.0
"""A test is slow if setup, calls with all parameters and teardown together take longer."""

TESTS = Path(__file__).parents[1]


def main(report: str) -> None:
    """Write tests/slow.txt from the durations in a JUnit report of pytest."""
    seconds: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.attrib["classname"].removeprefix("tests.").replace(".", "/") + ".py"
        seconds[f"{file}::{case.attrib['name'].split('[')[0]}"] += float(case.attrib["time"])
    slow = sorted(name for name, total in seconds.items() if total > SECONDS)
    (TESTS / "slow.txt").write_text("\n".join(slow) + "\n")
    print(f"{len(slow)} of {len(seconds)} tests are slow")


if __name__ == "__main__":
    main(sys.argv[1])
