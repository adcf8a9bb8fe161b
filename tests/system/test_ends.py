"""The end of a connection, in every way that programs end one and find out: what was sent before it arrives whole, it
is told after the bytes, and the socket says the same as natively."""

import concurrent.futures
import difflib

import pytest
import soak
from mwtest import build, proc

SECONDS = 180


def told(path: str) -> list:
    program = build.program("ends")
    with soak.network() as namespace:
        done = proc.run(namespace.wrap([program, "drive", *soak.wrapped(path, program, "worker")]), SECONDS)
    return done.stdout.decode().splitlines()


@pytest.fixture(scope="module")
def answers():
    """Of all paths at the same time: most of it is waiting."""
    with concurrent.futures.ThreadPoolExecutor(len(soak.PATHS)) as pool:
        return dict(zip(soak.PATHS, pool.map(told, soak.PATHS)))


@pytest.mark.parametrize("path", ["1 worker", "2 workers"])
def test_ends_are_told_as_natively(answers, path):
    assert list(difflib.unified_diff(answers["native"], answers[path], "native", path, lineterm="", n=0)) == []


def test_every_case_carries_all_its_bytes(answers):
    lines = answers["native"]
    assert len(lines) > 1000
    assert [line for line in lines if f": {line.split()[2]} bytes, 0 wrong" not in line] == []
