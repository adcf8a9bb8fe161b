"""Each attack of the bench in short: it really denies an undefended server, the measuring sees it, and sees the end.

Counts, not times: an attack lasts until the probe was denied often enough, and the server is well again when the probe
was served often enough. All attacks use one server with few workers, one after the other.
"""

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench/attack"))

import generators  # noqa: E402  (needs the path above)
import report  # noqa: E402
import stage  # noqa: E402
from mwtest import netns, proc, session  # noqa: E402

# The honest clients below take at most 10 workers: each of this kind serves one connection until it is closed.
WORKERS, CONNECTIONS = 16, 50
SECONDS = 30
# Apache answers overlapping ranges harmlessly since 2.2.20: the attack is a regression case.
HARMLESS = {"range"}


@pytest.fixture(scope="module")
def place():
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with stage.Stage() as one:
        one.start_server("apache", stage.Defence(), WORKERS)
        load = stage.Load(one, fast=3, slow=1, waiting=1, browsers=1, per_browser=2)
        yield one, load
        load.finish()
        served = {event["kind"] for event in load.honest() if event["fate"] == "served"}
        assert served == set(report.KINDS), "each kind of honest client was served"


def served_in_a_row(load: stage.Load) -> int:
    count = 0
    for probe in reversed(load.probes()):
        if probe["fate"] != "served":
            break
        count += 1
    return count


@pytest.mark.parametrize("attack", generators.ATTACKS)
def test_attack(place, attack):
    one, load = place
    proc.wait_for(lambda: served_in_a_row(load) >= 5, SECONDS, "the server is well before the attack")
    served = sum(event["fate"] == "served" for event in load.honest())
    probes = len(load.probes())
    under_attack = stage.Attack(one, attack, CONNECTIONS)

    def denied() -> bool:
        one.check()  # the generator is still at it
        return sum(probe["fate"] != "served" for probe in load.probes()[probes:]) >= 5

    def answered() -> bool:
        reports = [event for event in under_attack.events() if event["kind"] == "attack"]
        return reports and reports[-1]["opened"] >= CONNECTIONS and len(load.probes()) >= probes + 20

    try:
        if attack in HARMLESS:
            proc.wait_for(answered, SECONDS, "the attack goes on while the probe is served")
            assert sum(event["fate"] == "served" for event in load.honest()) > served
        else:
            proc.wait_for(denied, SECONDS, "the attack denies the service")
            proc.wait_for(lambda: max(event["open"] for event in under_attack.events() if event["kind"] == "attack")
                          >= WORKERS, SECONDS, "as many connections as workers are held")
    finally:
        under_attack.stop()  # or it would be one of the next test too
    if not under_attack.shared:
        with one.attacker.entered():
            assert generators.established(one.port) == 0, "the generator's connections ended with it"
    proc.wait_for(lambda: served_in_a_row(load) >= 5, SECONDS, "the server is well after the attack")


def test_a_killed_bench_leaves_nothing(tmp_path):
    """SIGKILL gives it no chance: its janitor removes everything."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    script = (f"import sys; sys.path.insert(0, {str(Path(stage.__file__).parent)!r})\n"
              "import stage, time\n"
              "with stage.Stage() as one:\n"
              f"    one.start_server('apache', stage.Defence(), {WORKERS})\n"
              "    stage.Load(one, fast=1, slow=1)\n"
              "    stage.Attack(one, 'slow-headers', 5)\n"
              "    print(one.directory, *(each.name for each in\n"
              "          (one.server, one.honest, one.attacker)), flush=True)\n"
              "    time.sleep(600)\n")
    with proc.Background(["/usr/bin/python3", "-c", script], tmp_path / "bench.log") as bench:
        words = proc.wait_for(lambda: bench.tail().split(), SECONDS, "the bench is up", bench)
        directory, *namespaces = words
        assert len(namespaces) == 3 and set(namespaces) <= namespace_names()
        [record] = records(directory)
        os.kill(bench.pid, signal.SIGKILL)
        proc.wait_for(lambda: not os.path.exists(directory), SECONDS, "the janitor has finished")
    assert not set(namespaces) & namespace_names()
    assert records(directory) == []
    for who in ("owner", "application", "driver", "ins"):
        assert not alive(*record[who].split()), f"{who} still runs"


def namespace_names() -> set:
    return {line.split()[0] for line in netns.ip("netns", "list").splitlines()}


def records(directory: str) -> list:
    """Sessions whose command works in this directory."""
    return [one for one in session.sessions().values() if directory in one.get("command", "")]


def alive(pid: str, started: str) -> bool:
    """Is this process there, and the one that was started then?"""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return words[19] == started and words[0] != "Z"
