"""Whose turn it is when many connections are readable, counted in events, and in which order news of several connections
come: as natively, whatever a program's loop looks like."""

import difflib

import pytest
import soak
from mwtest import build, proc

SECONDS = 120


def told(path: str) -> list:
    program = build.program("turns")
    with soak.network() as namespace:
        done = proc.run(namespace.wrap([program, "drive", *soak.wrapped(path, program, "worker")]), SECONDS)
    return done.stdout.decode().splitlines()


def promised(lines: list, path: str) -> list:
    """Of connections of two workers each keeps its own order only (README, Limits)."""
    return [line for line in lines if path != "2 workers" or not line.startswith("order") or "both there" in line]


@pytest.fixture(scope="module")
def native():
    return told("native")


def test_the_kernel_takes_turns_and_keeps_the_order(native):
    assert len(native) > 90
    assert [line for line in native if "within" not in line and "kept" not in line] == []


@pytest.mark.parametrize("path", ["1 worker", "2 workers"])
def test_turns_are_taken_as_natively(native, path):
    lines = promised(told(path), path)
    assert list(difflib.unified_diff(promised(native, path), lines, "native", path, lineterm="", n=0)) == []
