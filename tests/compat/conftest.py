"""Every compatibility test runs natively, which proves the test, and protected; those marked `isolated` in both forms.

MW_COMPAT=all, as `./dev compat` has it, runs all of them. Without it those marked `slow` are left out, and of those
marked `rotating` one part runs: MW_COMPAT_PART, or the one whose turn it is today, so that PARTS days have them all.
"""

import os
import time

import pytest

from mwtest.box import Box
from mwtest.build import ISOLATED, MODES

PARTS = 4


def todays_part() -> int:
    return int(os.environ.get("MW_COMPAT_PART", time.time() // 86400)) % PARTS


def pytest_report_collectionfinish() -> str:
    if os.environ.get("MW_COMPAT") == "all":
        return f"compat: all tests, INS workers: {os.environ.get('MW_TEST_WORKERS') or 1}"
    return f"compat: part {todays_part()} of 0 to {PARTS - 1}; MW_COMPAT_PART={todays_part()} repeats it"


def pytest_generate_tests(metafunc) -> None:
    if "box" in metafunc.fixturenames:
        isolated = metafunc.definition.get_closest_marker("isolated")
        metafunc.parametrize("box", [*MODES, ISOLATED] if isolated else MODES, indirect=True)


def pytest_collection_modifyitems(config, items) -> None:
    if os.environ.get("MW_COMPAT") == "all":
        return
    functions = sorted({function_of(item) for item in items if item.get_closest_marker("rotating")})
    todays = functions[todays_part()::PARTS]
    left_out = [item for item in items if item.get_closest_marker("slow")
                or (item.get_closest_marker("rotating") and function_of(item) not in todays)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def function_of(item) -> str:
    """A test's forms and parameters take their turn together."""
    return item.nodeid.partition("[")[0]


@pytest.fixture
def box(request):
    with Box(request.param) as one:
        yield one
