"""What a driver that was taken over could do: it keeps few rights, and what needs more is done by two small processes."""

import os
import signal
from pathlib import Path

from mwtest import proc
from mwtest.session import gone

KILL, DAC_READ_SEARCH, NET_BIND_SERVICE, NET_ADMIN, NET_RAW, SYS_PTRACE, SYS_RESOURCE = 5, 2, 10, 12, 13, 19, 24
MOST = sum(1 << bit for bit in (KILL, DAC_READ_SEARCH, NET_BIND_SERVICE, NET_ADMIN, NET_RAW, SYS_PTRACE, SYS_RESOURCE))


def status(pid: int) -> dict:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


def keepers_of(driver: int) -> dict:
    """name -> pid"""
    children = Path(f"/proc/{driver}/task/{driver}/children").read_text().split()
    return {Path(f"/proc/{pid}/comm").read_text().strip(): int(pid) for pid in children}


def test_every_thread_of_the_driver_is_confined(mw, unchanged, start, server):
    session = start("--", *server, "80", "x")
    driver = session.pid("driver")
    threads = [int(task.name) for task in Path(f"/proc/{driver}/task").iterdir()]
    assert len(threads) > 1
    for thread in threads:
        now = status(thread)
        for which in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"):
            assert int(now[which], 16) & ~MOST == 0, (which, now[which])
        assert (now["NoNewPrivs"], now["Seccomp"]) == ("1", "2")


def test_its_keepers_have_nothing_but_their_end_and_go_with_it(mw, unchanged, start, server):
    session = start("--", *server, "80", "x")
    old = session.pid("driver")
    keepers = keepers_of(old)
    assert sorted(keepers) == ["mwkeeper-block", "mwkeeper-front"]
    for pid in keepers.values():
        assert sorted(int(fd) for fd in os.listdir(f"/proc/{pid}/fd") if int(fd) > 2)[1:] == []
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert session.record["mark"].encode() not in words, "nobody takes it for a driver"
    os.kill(old, signal.SIGKILL)
    proc.wait_for(lambda: all(gone(pid) for pid in keepers.values()), 60, "the end of the keepers", session.background)
    proc.wait_for(lambda: session.pid("driver") not in (0, old), 60, "another driver", session.background)
    proc.wait_for(lambda: sorted(keepers_of(session.pid("driver"))) == ["mwkeeper-block", "mwkeeper-front"], 60,
                  "its keepers", session.background)


def test_a_driver_without_its_keepers_goes_on(mw, unchanged, start, server):
    """What they do cannot be done any more, and is said; the session works."""
    session = start("--", *server, "80", "x")
    for pid in keepers_of(session.pid("driver")).values():
        os.kill(pid, signal.SIGKILL)
    proc.wait_for(lambda: "the process that changes blocks is gone" in session.background.tail(100), 60, "a line",
                  session.background)
    done = proc.run([mw, "block", "-s", session.name, "192.0.2.1"], 60, check=False)
    assert done.returncode != 0
    assert proc.run([mw, "flows", "-s", session.name], 60).returncode == 0
