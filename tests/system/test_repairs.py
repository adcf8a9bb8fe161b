"""The check that every test has: a session that repaired a lost wake-up fails it."""

import os

import pytest

from mwtest import build, proc, repairs

# What a test finds of a session that lives, and of one that has ended.
CASES = {
    "live": ("mwcomms/s1/mw/7/repairs", "2\n"),
    "ended": ("mwcomms/repairs", "s1 2\n"),
}
PROGRAM = """
import os, pathlib, pytest
@pytest.fixture
def session():
    yield  # it ends after the test, as those of `start` do
    path = pathlib.Path(os.environ["XDG_RUNTIME_DIR"], {path!r})
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write({text!r})
{marker}
def test_that_sees_nothing(session):
    pass
def test_of_the_next(): pass
"""


def judge(tmp_path, path: str, text: str, marker: str = ""):
    (tmp_path / "test_it.py").write_text(PROGRAM.format(path=path, text=text, marker=marker))
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "PYTHONPATH": str(build.ROOT / "tests")}
    return proc.run(["/usr/bin/python3", "-m", "pytest", "-q", "-p", "mwtest.repairs", "-p", "no:cacheprovider",
                     tmp_path / "test_it.py"], 60, check=False, env=env, cwd=tmp_path)


@pytest.mark.parametrize("when", CASES)
def test_a_repair_fails_the_test_and_names_the_session(tmp_path, when):
    done = judge(tmp_path, *CASES[when])
    said = done.stdout.decode()
    assert done.returncode == 1 and "2 passed, 1 error" in said, said
    assert f"2 in session {tmp_path}/mwcomms/s1" in said and "test_that_sees_nothing" in said, said


def test_a_provoked_repair_is_let_pass(tmp_path):
    done = judge(tmp_path, *CASES["ended"], marker="@pytest.mark.may_repair('why')")
    assert done.returncode == 0, done.stdout.decode()


def test_the_end_of_a_session_is_no_second_repair(tmp_path):
    live = tmp_path / "s1" / "mw" / "7" / "repairs"
    live.parent.mkdir(parents=True)
    live.write_text("3\n")
    (tmp_path / "repairs").write_text("s1 1\n")
    before = repairs.counted([tmp_path])
    live.unlink()
    (tmp_path / "repairs").write_text("s1 1\ns1 3\n")
    assert repairs.counted([tmp_path]) == before == {str(tmp_path / "s1"): 4}
