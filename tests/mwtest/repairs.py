"""Lost wake-ups that sessions repaired: faults of the product, whatever the test says that saw none of it.

An INS worker's beat mends a wake-up that was lost and counts it, in the session's folder while it lives and in the base
folder's file `repairs` afterwards (src/frontend/session.cc). A test that provokes repairs says so, with the reason:
@pytest.mark.may_repair("the INS is stopped under load").
"""

import collections
import glob
import os
from pathlib import Path

import pytest


def bases() -> list:
    """Where sessions of root and of others keep their folders (default_base() in src/frontend/session.cc)."""
    found = [Path("/run/mwcomms"), *Path("/tmp").glob("mwcomms-*")]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return [*found, Path(runtime) / "mwcomms"] if runtime.startswith("/") else found


def counted(folders: list) -> collections.Counter:
    """Session -> how many repairs it has counted, whether it lives or has ended."""
    total = collections.Counter()
    for base in folders:
        for line in _text(base / "repairs").splitlines():
            session, number = line.rsplit(" ", 1)
            total[str(base / session)] += int(number)
        for live in map(Path, glob.glob(f"{base}/*/mw/*/repairs")):  # which bears that folders vanish meanwhile
            total[str(live.parents[2])] += int(_text(live) or 0)
    return total


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""  # nothing was repaired, or the session has just ended


class Watch:
    """grown() names what was repaired since it was made."""

    def __init__(self) -> None:
        self._before = counted(bases())

    def grown(self) -> dict:
        return dict(counted(bases()) - self._before)


def sentence(grown: dict) -> str:
    return "lost wake-ups that a stack had to repair: " + ", ".join(
        f"{number} in session {session}" for session, number in sorted(grown.items()))


@pytest.fixture(autouse=True)
def nothing_repaired(request):
    """Made first and ended last: the sessions of the test's other fixtures have ended by then."""
    watch = Watch()
    yield
    grown = watch.grown()
    if grown and request.node.get_closest_marker("may_repair") is None:
        pytest.fail(sentence(grown), pytrace=False)
