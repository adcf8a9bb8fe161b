"""`mw guard` while one attack holds a server with few workers: watching, acting, and the end of what it did."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench/attack"))

import generators  # noqa: E402  (needs the path above)
import measure  # noqa: E402
import stage  # noqa: E402
from guarded import CROWD, SECONDS, Guarded, served  # noqa: E402
from mwtest import build, proc  # noqa: E402

WORKERS, CONNECTIONS = 10, 40


@pytest.fixture(scope="module")
def place():
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with stage.Stage() as one:
        one.start_server("apache", stage.Defence(), WORKERS)
        one.load = stage.Load(one, fast=1, slow=1, waiting=0, browsers=0)
        one.attack = stage.Attack(one, "slow-headers", CONNECTIONS)
        yield one


def held(place: stage.Stage) -> int:
    with place.attacker.entered():
        return generators.established(place.port)


def denied(place: stage.Stage) -> bool:
    place.check()
    return held(place) >= WORKERS and {one["fate"] for one in place.load.probes()[-3:]} == {"timeout"}


def test_it_only_watches_unless_told_to_act(place):
    proc.wait_for(lambda: denied(place), SECONDS, "the attack denies the service")
    before = held(place)
    with Guarded(place) as guard:
        line = guard.wait_for("block")
        guard.wait_for("service", lambda one: one["state"] == "denied")
    assert line["dry_run"] and line["rule"] == "crowd" and line["peer"] == stage.ATTACKER
    assert line["measured"]["still"] >= line["limits"]["still"] == CROWD
    assert held(place) >= min(before, WORKERS)
    assert place.attack.events()[-1]["cuts"] == 0
    assert not served(place)


def test_the_allow_list_wins(place):
    with Guarded(place, "--act", allow=f'"{stage.ATTACKER}"') as guard:
        guard.wait_for("service", lambda one: one["state"] == "denied")
        probes = len(place.load.probes())
        proc.wait_for(lambda: len(place.load.probes()) > probes + 20 and denied(place), SECONDS,
                      "the attack goes on", guard.process)
        assert guard.lines("close", "block", "cap") == []
    assert held(place) >= WORKERS


def test_it_acts_and_names_what_it_measured(place):
    proc.wait_for(lambda: denied(place), SECONDS, "the attack denies the service")
    with Guarded(place, "--act") as guard:
        line = guard.wait_for("block", lambda one: one["status"] == 0)
        proc.wait_for(lambda: served(place), SECONDS, "the service is well", guard.process)
        begin = place.load.probes()[-5]["t"]
        assert held(place) == 0
        assert not line["dry_run"] and line["result"] == "done" and line["ttl_s"] == 600
        assert line["measured"]["connections"] >= WORKERS and "still_s" in line["limits"]
        guard.wait_for("service", lambda one: one["state"] == "served" and one["ts_mono_ns"] > line["ts_mono_ns"])
        proc.wait_for(lambda: any(one["kind"] == "phone" and one["fate"] == "served" and one["t"] > begin
                                  for one in place.load.honest()), SECONDS, "a slow phone finishes", guard.process)
        assert measure.cuts(place.load.honest(), begin)[0] == 0
        assert {one["peer"].partition(":")[0] for one in guard.lines("close", "block", "cap")} == {stage.ATTACKER}
        # It dies as nothing should: what it did ends all the same, long before its time to live.
        os.kill(guard.process.pid, signal.SIGKILL)
        guard.process.process.wait(SECONDS)
        proc.wait_for(lambda: held(place) > 0, SECONDS, "the peer may come again")


def test_what_it_did_ends_with_its_time_and_lasts_longer_when_the_peer_comes_back(place):
    with Guarded(place, "--act", ttl_s=1) as guard:
        guard.wait_for("block", lambda one: one["ttl_s"] == 1)
        guard.wait_for("block", lambda one: one["ttl_s"] == 2)


def mw_guard(*options) -> subprocess.CompletedProcess:
    return proc.run([build.program("mw"), "guard", *options], 20, check=False)


def test_rules_are_checked(tmp_path):
    right = build.ROOT / "packaging/guard.toml"
    assert mw_guard("--check", right).returncode == 0
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[crowd]\nconnections = \"many\"\n")
    done = mw_guard("--check", wrong)
    assert done.returncode == 2 and b"wrong.toml:2:1" in done.stderr
    done = mw_guard("--check", wrong, "--json")
    assert done.returncode == 2 and json.loads(done.stdout)["faults"][0]["line"] == 2
    assert mw_guard("--rules", wrong, "any").returncode == 2, "it does not start with rules that are wrong"
    assert mw_guard("--check", tmp_path / "none").returncode == 3


def test_what_cannot_be_is_refused():
    assert mw_guard("no-such-session").returncode == 3
    done = mw_guard("no-such-session", "--json")
    assert done.returncode == 3 and json.loads(done.stdout)["status"] == 3
    assert mw_guard("--probe", "example.org:80").returncode == 2
    assert mw_guard("--probe", "none").returncode == 2, "nothing would tell it when to act"
    assert mw_guard("--no-such-option").returncode == 2
