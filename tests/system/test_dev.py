"""./dev tells how each of its commands is used, and refuses wrong arguments before anything is installed or built."""

import re
import subprocess

import pytest

from mwtest import build

WRONG = [
    ["nonsense"], ["build", "nonsense"], ["demo", "nonsense"], ["demo", "-p", "0"], ["test", "nonsense"],
    ["compat", "nonsense"], ["compat", "--workers"], ["compat", "--workers", "0"], ["compat", "--workers", "17"],
    ["compat", "../compat/test_redis"], ["bench", "nonsense"], ["bench", "--only", "nonsense"], ["attack", "nonsense"],
    ["attack", "--only", "nonsense"], ["fuzz", "nonsense"], ["kills", "nonsense"], ["format", "x"], ["lint", "x"],
    ["clean", "x"], ["install-deps", "x"], ["soak", "nonsense"], ["bench", "--json", "x"], ["attack", "--seconds", "4"],
    ["attack", "--connections", "0"], ["attack", "--other-guard", "/dev/null"], ["fuzz", "--seconds", "0"],
]


def dev(*words):
    return subprocess.run([build.ROOT / "dev", *words], capture_output=True, text=True, timeout=60,
                          stdin=subprocess.DEVNULL)


def commands() -> set:
    return set(re.findall(r"^  ([a-z-]+)", dev().stdout, re.M))


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_wrong_arguments_are_told_with_the_usage(words):
    done = dev(*words)
    assert (done.returncode, done.stdout) == (2, "")
    reason, _, usage = done.stderr.partition("\n")
    assert reason.startswith("dev: ")
    assert usage.startswith("usage: ./dev " + ("COMMAND" if words == ["nonsense"] else words[0]))


def test_every_command_is_tried_and_explained():
    assert "compat" in commands()
    assert commands() == {words[0] for words in WRONG} - {"nonsense"}
    for command in commands():
        done = dev(command, "--help")
        assert (done.returncode, done.stderr) == (0, ""), command
        assert done.stdout.startswith(f"usage: ./dev {command}")


def test_a_refusal_names_every_fuzz_target():
    targets = {folder.name for folder in (build.ROOT / "tests/fuzz/corpus").iterdir()}
    said = dev("fuzz", "nonsense").stderr.splitlines()[0]
    named = said.partition("there are: ")[2].split()
    assert targets and {name.removesuffix("_fds") for name in named} == targets, "X_fds has the corpus of X"


def test_a_refusal_names_every_workload():
    said = dev("bench", "--only", "nonsense").stderr.splitlines()[0]
    assert "'nginx'" in said and "'monitoring'" in said
