"""Which native results of Python's suites are kept: those of a suite that came to its end."""

import sys

import pytest

import test_python_suites as suites
from mwtest import build

REPORT = "<testsuites><testsuite><testcase name='a'/><testcase name='b'><failure/></testcase></testsuite></testsuites>"
# Each is what `python3 -m test` does after it has made `report`, or instead.
ENDS = "open(report, 'w').write({!r}); sys.exit(2)"
CRASHES = "os.kill(os.getpid(), 11)"
DUMPS_ITS_STACKS = "os._exit(1)"
HANGS = "print('test_a (x) ... ok', flush=True); signal.pause()"
HANGS_AT_ITS_END = "open(report, 'w').write({!r}); signal.pause()"


@pytest.fixture
def native(tmp_path, monkeypatch):
    """native(what the suite does) -> (the results, whether they are kept), twice."""
    monkeypatch.setattr(suites, "SUITE_SECONDS", 2)
    monkeypatch.setattr(build, "ROOT", tmp_path)

    def run(does: str) -> tuple:
        program = ("import os, signal, sys\nreport = sys.argv[sys.argv.index('--junit-xml') + 1]\n" + does.format(REPORT))
        monkeypatch.setattr(build, "wrap", lambda mode, words: [sys.executable, "-c", program, *words])
        results = suites._native("test_select", tmp_path)
        return results, list((tmp_path / "build").rglob("*.json")) != []

    return run


def test_a_suite_that_ends_is_kept(native):
    results = {"a": "passed", "b": "failed"}
    assert native(ENDS) == (results, True)
    assert native(CRASHES) == (results, True), "it is not run again"


@pytest.mark.parametrize("does", [CRASHES, DUMPS_ITS_STACKS, HANGS, HANGS_AT_ITS_END],
                         ids=["crashes", "dumps its stacks", "hangs", "hangs at its end"])
def test_a_suite_that_does_not_end_is_run_again(native, does):
    assert native(does)[1] is False
    assert native(ENDS) == ({"a": "passed", "b": "failed"}, True)
