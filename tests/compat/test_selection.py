"""Which tests run: the slow ones on demand, and of the rotating ones a part that is another one each day."""

import re
import sys

import pytest

from mwtest import build, proc

FOLDER = build.ROOT / "tests/compat"


def collected(monkeypatch, **environment) -> set:
    for name in ("MW_COMPAT", "MW_COMPAT_PART"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    text = proc.run([sys.executable, "-m", "pytest", FOLDER, "--collect-only", "-q", "-p", "no:cacheprovider"], 60,
                    cwd=build.ROOT).stdout.decode()
    return set(re.findall(r"^\S+::\S+$", text, re.M))


@pytest.fixture(scope="module")
def marked() -> dict:
    """marker -> the files in which it stands."""
    files = {path.name: path.read_text() for path in FOLDER.glob("test_*.py")}
    return {marker: {name for name, text in files.items() if f"@pytest.mark.{marker}\n" in text}
            for marker in ("slow", "rotating")}


def test_the_parts_are_all_that_rotates(monkeypatch, marked):
    everything = collected(monkeypatch, MW_COMPAT="all")
    parts = [collected(monkeypatch, MW_COMPAT_PART=str(part)) for part in range(4)]
    always = set.intersection(*parts)
    rotating = [part - always for part in parts]
    assert all(rotating), "no day without some"
    assert sum(map(len, rotating)) == len(set.union(*rotating)), "each in one part"
    slow = everything - set.union(*parts)
    assert {name.partition("::")[0].rpartition("/")[2] for name in slow} <= marked["slow"]
    assert {name.partition("::")[0].rpartition("/")[2] for one in rotating for name in one} <= (
        marked["rotating"] | {"test_end_of_connection.py"})
    assert collected(monkeypatch, MW_COMPAT_PART="5") == parts[1]
