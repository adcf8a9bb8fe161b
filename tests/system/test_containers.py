"""Root without most of its capabilities, as in a container with the usual defaults."""

import json
import os

import pytest

from mwtest import proc

# What Docker leaves to root.
KEPT = ("chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,sys_chroot,mknod,"
        "audit_write,setfcap")
SECONDS = 60


def as_in_a_container(*command: object) -> list:
    kept = ",".join(f"+{name}" for name in KEPT.split(","))
    return ["setpriv", "--bounding-set", f"-all,{kept}", "--inh-caps", "-all", *map(str, command)]


CARRIES = ("import socket, threading\nl = socket.create_server(('127.0.0.1', 0))\n"
           "c = socket.create_connection(l.getsockname())\ns = l.accept()[0]\nc.sendall(b'hello')\nprint(s.recv(10).decode())")


def test_the_hosts_network_works_there(mw, unchanged):
    done = proc.run(as_in_a_container(mw, "run", "--net", "host", "--", "/usr/bin/python3", "-c", CARRIES), SECONDS)
    assert done.stdout == b"hello\n"
    assert b"no empty root" not in done.stderr, "chroot() is allowed there"


def test_without_chroot_it_is_said(mw, unchanged):
    words = as_in_a_container(mw, "run", "--net", "host", "--", "/usr/bin/python3", "-c", CARRIES)
    words[words.index("--bounding-set") + 1] = words[words.index("--bounding-set") + 1].replace(",+sys_chroot", "")
    done = proc.run(words, SECONDS)
    assert done.stdout == b"hello\n" and b"no empty root" in done.stderr


def test_a_failed_isolated_start_blocks_nobody(mw, unchanged):
    for _ in range(2):
        done = proc.run(as_in_a_container(mw, "run", "--", "true"), SECONDS, check=False)
        assert done.returncode == 125 and b"mw: cannot " in done.stderr
        assert proc.run(as_in_a_container(mw, "run", "--net", "host", "--", "true"), SECONDS).returncode == 0
    assert json.loads(proc.run([mw, "ps", "--json"], SECONDS).stdout)["sessions"] == []


def test_a_leftover_that_cannot_be_removed_there_blocks_nobody(mw, unchanged, start, server):
    session = start("--", *server, "80", "x")
    pids = [session.pid(who) for who in ("owner", "driver", "ins", "application")]
    for pid in pids:
        os.kill(pid, 9)
    session.background.process.wait(SECONDS)
    done = proc.run(as_in_a_container(mw, "run", "--net", "host", "--", "true"), SECONDS)
    assert b"mw: cannot remove the " in done.stderr
    assert proc.run(as_in_a_container(mw, "clean"), SECONDS, check=False).returncode not in (0, 125)
    assert proc.run([mw, "clean"], SECONDS).returncode == 0
    assert session.name not in proc.run([mw, "ps"], SECONDS).stdout.decode()


def test_doctor_tells_the_truth_there(mw, unchanged):
    done = proc.run(as_in_a_container(mw, "doctor", "--json"), SECONDS, check=False)
    missing = next(one for one in json.loads(done.stdout)["checks"] if one["name"] == "capabilities")
    assert missing["result"] == "failed" and "--net host" in missing["remedy"]


@pytest.mark.parametrize("net", ["isolated", "host"])
def test_a_leftover_of_a_network_that_is_gone_is_removed(mw, unchanged, tmp_path, server, net):
    """The namespace that played the host has ended, with everything in it."""
    log = tmp_path / "log"
    with proc.Background(["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", mw, "run", "--net", net, "--",
                          *server, "80", "x"], log) as background:
        def running() -> dict:
            found = json.loads(proc.run([mw, "ps", "--json"], SECONDS).stdout)["sessions"]
            return found[0] if found and found[0]["pids"]["application"] else None

        one = proc.wait_for(running, SECONDS, "a session", background)
        for pid in sorted(set(filter(None, one["pids"].values()))):
            os.kill(pid, 9)
        background.process.wait(SECONDS)
    proc.run([mw, "run", "--net", "host", "--", "true"], SECONDS)
    assert json.loads(proc.run([mw, "ps", "--json"], SECONDS).stdout)["sessions"] == []
    assert not os.path.exists(f"/run/netns/mw-{one['name']}")
