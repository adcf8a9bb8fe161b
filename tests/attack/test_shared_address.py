"""`mw guard` while an attacker shares an address with honest people: only the attacker's connections are cut."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench/attack"))

import stage  # noqa: E402  (needs the path above)
from guarded import SECONDS, Guarded, served  # noqa: E402
from mwtest import proc  # noqa: E402

# The honest ones take at most 14 workers, with the probe: each worker serves one connection until it is closed.
WORKERS, CONNECTIONS, KEEP = 24, 80, 4
PEOPLE, PER_PERSON = 4, 2


@pytest.fixture(name="place")
def make_place():
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with stage.Stage() as one:
        one.start_server("apache", stage.Defence(), WORKERS)
        one.load = stage.Load(one, fast=1, slow=1, waiting=1, browsers=PEOPLE, per_browser=PER_PERSON)
        yield one


def test_who_shares_an_address_with_an_attacker_is_served(place):
    def since(begin: float, *kinds: str) -> list:
        return [one for one in place.load.honest() if one["kind"] in kinds and one["t"] >= begin]

    proc.wait_for(lambda: len(since(0, "browser")) >= 2 * PEOPLE * PER_PERSON and served(place), SECONDS,
                  "people use the server")
    with Guarded(place, "--act", keep=KEEP) as guard:
        guard.wait_for("probe")
        attack = stage.Attack(place, "shared-headers", CONNECTIONS)
        guard.wait_for("close", lambda line: line["status"] == 0 and line["rule"] == "crowd")
        cap = guard.wait_for("cap", lambda line: line["status"] == 0)
        assert cap["peer"] == stage.SHARED and cap["connections"] >= cap["measured"]["productive"] + KEEP
        proc.wait_for(lambda: served(place), SECONDS, "the service is well", guard.process)
        well = place.load.probes()[-5]["t"]
        proc.wait_for(lambda: sum(one["fate"] == "served" for one in since(well, "browser")) >= PEOPLE * PER_PERSON,
                      SECONDS, "people behind the attacked address are served", guard.process)
        assert guard.lines("block") == []
        for line in guard.lines("close"):
            assert attack.owns(line["peer"], line["ts_mono_ns"] / 1e9), f"an honest connection was cut: {line}"
    assert [one for one in place.load.honest() if one["kind"] in ("events", "poll") and one["fate"] == "cut"] == []
