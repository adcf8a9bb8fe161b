"""Makes tests/mwtest importable, and removes what a killed test run left behind."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mwtest import netns  # noqa: E402  (needs the path above)


@pytest.fixture(scope="session", autouse=True)
def no_leftovers():
    netns.sweep()
    yield


@pytest.fixture
def namespace():
    with netns.Namespace() as one:
        yield one
