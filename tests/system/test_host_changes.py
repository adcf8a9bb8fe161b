"""A host that changes under a running session, and hosts that are several: rules that others remove, interfaces that
come late, sessions of other bases in the same network."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from mwtest import proc
from mwtest.session import forwarding, output, sessions

SECONDS = 60
# A start of another base, as in a container that shares the network: its /run is its own.
OTHER_BASE = ('mount -t tmpfs -o mode=755 other /run/mwcomms && mount -t tmpfs -o mode=755 other /run/netns && '
              '[ -z "$FAKE" ] || mount --bind "$FAKE" "$PLACE"; exec "$@"')


def answers(port: int) -> bool:
    done = subprocess.run(["curl", "-sS", "-m", "5", f"http://127.0.0.1:{port}/"], capture_output=True, timeout=SECONDS)
    return done.returncode == 0


def table_of(session) -> str:
    return f"mw_{session.name.replace('-', '_')}"


def rules_of(session) -> str:
    done = subprocess.run(["nft", "list", "table", "inet", table_of(session)], capture_output=True, text=True,
                          timeout=SECONDS)
    return done.stdout if done.returncode == 0 else ""


def wait_for_tables() -> list:
    return proc.wait_for(lambda: output("nft", "list", "tables").splitlines(), SECONDS, "somebody's rules")


@pytest.fixture
def other_base(mw, tmp_path):
    """other_base(arguments of `mw run`..., fake=(path, place)) -> a `mw run` whose sessions are not in our registry."""
    running = []

    def begin(*arguments, fake=("", "")) -> proc.Background:
        words = ["unshare", "-m", "sh", "-c", OTHER_BASE, "sh", mw, "run", *arguments]
        running.append(proc.Background(words, tmp_path / f"other{len(running)}.log",
                                       env={**os.environ, "FAKE": str(fake[0]), "PLACE": str(fake[1])}))
        return running[-1]

    yield begin
    for one in running:
        one.stop()


# -- rules


@pytest.mark.parametrize("removal", [
    "flush ruleset", "delete table inet TABLE", "flush table inet TABLE", "flush chain inet TABLE publish_local",
    "delete chain inet TABLE pass"])
def test_rules_that_are_removed_come_back(mw, unchanged, start, server, free_port, removal):
    session = start("-p", f"{free_port}:80", "--", *server, "80", "x")
    proc.wait_for(lambda: answers(free_port), SECONDS, "an answer", session.background)
    before = rules_of(session)
    output("nft", *removal.replace("TABLE", table_of(session)).split())
    proc.wait_for(lambda: rules_of(session) == before, SECONDS, "the rules", session.background)
    assert answers(free_port)
    # Again and again, as a script that waits for us would.
    for _ in range(3):
        output("nft", "flush", "ruleset")
        proc.wait_for(lambda: rules_of(session) == before, SECONDS, "the rules", session.background)
    assert answers(free_port)


def test_rules_of_others_are_not_ours_to_restore(mw, unchanged, start, server, free_port):
    output("nft", "add", "table", "inet", "mwtest_other")
    session = start("-p", f"{free_port}:80", "--", *server, "80", "x")
    handle = session.record["table_handle"]
    output("nft", "delete", "table", "inet", "mwtest_other")
    # What comes after it is seen after it.
    output("nft", "delete", "table", "inet", table_of(session))
    proc.wait_for(lambda: session.refresh()["table_handle"] not in (handle, str((1 << 64) - 1)), SECONDS, "the rules")
    proc.wait_for(lambda: "in force again" in session.background.tail(100), SECONDS, "a line")
    assert session.background.tail(100).count("in force again") == 1


def test_several_sessions_all_come_back(mw, unchanged, start, server):
    ports = (18301, 18302, 18303)
    running = [start("-p", f"{port}:80", "--", *server, "80", "x") for port in ports]
    for port in ports:
        proc.wait_for(lambda port=port: answers(port), SECONDS, "an answer")
    output("nft", "flush", "ruleset")
    proc.wait_for(lambda: all(rules_of(one) for one in running), SECONDS, "the rules of all")
    assert all(answers(port) for port in ports)


def test_without_rules_nothing_is_forwarded(mw, unchanged, tmp_path, start, server, free_port):
    """While they cannot be put back the host is what it was before: no open router."""
    before = forwarding()
    words = ["unshare", "-m", "--propagation", "slave", "sh", "-c", 'exec "$@"', "sh", mw, "run", "-p", f"{free_port}:80",
             "--", *server, "80", "x"]
    log = tmp_path / "log"
    with proc.Background(words, log) as background:
        proc.wait_for(lambda: answers(free_port), SECONDS, "an answer", background)
        serving = forwarding()
        assert serving != before, "the host does not forward by itself"
        inside = ["nsenter", "-t", str(background.pid), "-m"]
        tool = os.path.realpath("/usr/sbin/nft")
        output(*inside, "mount", "--bind", "/dev/null", tool)
        output("nft", "flush", "ruleset")
        proc.wait_for(lambda: forwarding() == before, SECONDS, "an end of forwarding", background)
        output(*inside, "umount", tool)
        proc.wait_for(lambda: forwarding() == serving, SECONDS, "forwarding again", background)
        assert answers(free_port)
    assert log.read_text().count("mw: cannot put the rules") == 1, "said once, not each second"


# -- interfaces


def test_an_interface_that_comes_late_is_forwarded_and_guarded(mw, unchanged, start, server, free_port):
    session = start("-p", f"{free_port}:80", "--", *server, "80", "x")
    setting = Path("/proc/sys/net/ipv4/conf/mwlate/forwarding")
    for _ in range(2):  # it may go and come again
        output("ip", "link", "add", "mwlate", "type", "veth", "peer", "name", "mwlate2")
        try:
            proc.wait_for(lambda: setting.read_text().strip() == "1", SECONDS, "forwarding", session.background)
            assert '"mwlate"' in rules_of(session)
        finally:
            output("ip", "link", "del", "mwlate")
    assert session.background.stop() == 143


def test_a_late_interface_stays_guarded_by_whoever_is_left(mw, unchanged, start, server):
    """Two sessions; the one that turned its forwarding on ends first."""
    running = [start("-p", f"{port}:80", "--", *server, "80", "x") for port in (18331, 18332)]
    output("ip", "link", "add", "mwlate", "type", "veth", "peer", "name", "mwlate2")
    try:
        for one in running:
            proc.wait_for(lambda one=one: rules_of(one).count('"mwlate"') >= 1, SECONDS, "a guard")
        setting = Path("/proc/sys/net/ipv4/conf/mwlate/forwarding")
        proc.wait_for(lambda: setting.read_text().strip() == "1", SECONDS, "forwarding")
        assert running[0].background.stop() == 143
        assert setting.read_text().strip() == "1" and '"mwlate"' in rules_of(running[1])
        assert running[1].background.stop() == 143
        assert setting.read_text().strip() == "0"
    finally:
        output("ip", "link", "del", "mwlate")


# -- other bases


def test_sessions_of_two_bases_do_not_meet(mw, unchanged, start, other_base, server):
    """The same command, so the same name and number, if only the own folder were looked at."""
    one = start("-p", "18311:80", "--", *server, "80", "one")
    proc.wait_for(lambda: answers(18311), SECONDS, "an answer", one.background)
    two = other_base("-p", "18312:80", "--", *server, "80", "two")
    proc.wait_for(lambda: answers(18312), SECONDS, "an answer of the other", two)
    assert answers(18311)
    uids = {os.stat(f"/proc/{pid}").st_uid for pid in map(int, output("pgrep", "-x", "mwins").split())}
    assert len(uids) == 2
    assert two.stop() == 143
    assert answers(18311), "the end of the other took nothing along"
    three = other_base("-p", "18313:80", "--", *server, "80", "three")
    proc.wait_for(lambda: answers(18313), SECONDS, "an answer of the third", three)
    forwarded = forwarding()
    assert one.background.stop() == 143
    assert answers(18313), "nor did ours"
    assert forwarding() == forwarded and "mw_guard" in output("nft", "list", "tables"), "what it needs, and guarded"
    output("nft", "flush", "ruleset")
    name = next(line.split()[-1] for line in wait_for_tables() if " mw_" in line)
    assert '"outside"' in output("nft", "list", "table", "inet", name), "by the one that is left, too"
    assert three.stop() == 143


@pytest.mark.parametrize(("tool", "pattern"), [("ip", "netns add"), ("ip", "link add"), ("ip", "-n mw-"), ("nft", "-f"),
                                               ("ip", ""), ("nft", "")])
def test_a_start_that_fails_takes_nothing_of_others(mw, unchanged, start, other_base, server, tmp_path, tool, pattern):
    one = start("-p", "18314:80", "--", *server, "80", "one")
    proc.wait_for(lambda: answers(18314), SECONDS, "an answer", one.background)
    place = os.path.realpath(f"/usr/sbin/{tool}")
    real = tmp_path / "real"
    real.write_bytes(Path(place).read_bytes())
    real.chmod(0o755)
    fake = tmp_path / "fake"
    fake.write_text(f"#!/bin/bash\nif [[ $* == *'{pattern}'* ]]; then echo broken on purpose >&2; exit 1; fi\n"
                    f'exec {real} "$@"\n')
    fake.chmod(0o755)
    two = other_base("-p", "18315:80", "--", *server, "80", "two", fake=(fake, place))
    assert two.process.wait(SECONDS) == 125, two.tail()
    assert answers(18314)
    assert one.alive("ins") and rules_of(one)


def test_a_table_of_the_same_name_is_somebody_elses(mw, unchanged, start, server, free_port):
    name = f"mw_{Path(server[0]).name.replace('-', '_').replace('.', '_')}_0"
    output("nft", "add", "table", "inet", name)
    try:
        session = start("-p", f"{free_port}:80", "--", *server, "80", "x")
        assert table_of(session) != name
        assert session.background.stop() == 143
        assert name in output("nft", "list", "tables")
    finally:
        output("nft", "delete", "table", "inet", name)


def test_a_stranger_cannot_hold_the_lock(mw, unchanged, start, server):
    """Any user may take any name that is no file; a start goes on all the same."""
    script = ("import socket, sys, time\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
              "s.bind(b'\\0mwcomms-network')\nif len(sys.argv) > 1: s.listen()\nprint('held', flush=True)\ntime.sleep(600)")
    for more in ((), ("listens",)):
        words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", script, *more]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
            try:
                assert holder.stdout.readline() == b"held\n"
                session = start("-p", "18316:80", "--", *server, "80", "x")
                proc.wait_for(lambda: answers(18316), SECONDS, "an answer", session.background)
                assert session.background.stop() == 143
            finally:
                holder.kill()


# -- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_one_signal_ends_what_the_command_leaves(mw, unchanged, start, tmp_path, number):
    """As apache2ctl does: a shell that waits for the server, and does not pass signals on."""
    serves = "import socket, time\ns = socket.create_server(('0.0.0.0', 80))\nopen({0!r}, 'w').close()\ntime.sleep(600)"
    ready = tmp_path / "ready"
    session = start("--", "/bin/sh", "-c", '"$@" & wait', "sh", "/usr/bin/python3", "-c", serves.format(str(ready)))
    proc.wait_for(ready.exists, SECONDS, "the server", session.background)
    os.kill(session.background.pid, number)
    session.background.process.wait(SECONDS)
    assert session.name not in sessions()


def test_nothing_looks_at_all_processes_while_a_daemon_runs(mw, unchanged, start, tmp_path):
    """The kernel tells who our children are; a host has thousands of processes."""
    serves = "import socket, time\ns = socket.create_server(('0.0.0.0', 80))\nopen({0!r}, 'w').close()\ntime.sleep(600)"
    ready = tmp_path / "ready"
    others = [subprocess.Popen(["sleep", "600"]) for _ in range(100)]
    try:
        session = start("--", "/bin/sh", "-c", 'setsid "$@" & exit 0', "sh", "/usr/bin/python3", "-c",
                        serves.format(str(ready)))
        proc.wait_for(ready.exists, SECONDS, "the server", session.background)

        def reads() -> int:
            lines = Path(f"/proc/{session.background.pid}/io").read_text().splitlines()
            return int(dict(line.split(": ") for line in lines)["syscr"])

        beat = Path(f"/run/mwcomms/{session.name}/mw/pvm/heartbeat")
        first, counted = beat.read_text(), reads()
        proc.wait_for(lambda: int(beat.read_text() or 0) >= int(first) + 4, SECONDS, "four seconds of the driver")
        assert reads() - counted < 300, "about 800 if all were looked at"
    finally:
        for other in others:
            other.kill()
            other.wait()


# -- flows that are older than the rules

ECHO = ("import socket, sys\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\ns.bind(('::', int(sys.argv[1])))\n"
        "while True:\n    data, who = s.recvfrom(1000)\n    s.sendto(sys.argv[2].encode() + data, who)")


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.10"])
def test_a_client_that_sent_before_is_served(mw, unchanged, start, host):
    """Its entry in the kernel's table of flows is older than the rules, and each packet renews it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((host if host != "127.0.0.1" else "", 0))
        client.connect((host, 18321))
        client.settimeout(0.2)

        def asks() -> bytes:
            try:
                client.send(b"?")
                return client.recv(100)
            except (ConnectionRefusedError, TimeoutError):
                return b""

        assert asks() == b""
        for name in ("one", "two"):  # and a second session that has the first one's addresses
            session = start("-p", "18321:18321/udp", "--", "/usr/bin/python3", "-c", ECHO, "18321", name)
            proc.wait_for(lambda name=name: asks() == name.encode() + b"?", SECONDS, "an answer", session.background)
            assert "cannot have old flows forgotten" not in session.background.tail(100)
            assert session.background.stop() == 143
            assert asks() == b""


# -- a firewall that stands in the way


def test_a_firewall_that_drops_is_named_with_the_commands_that_help(mw, unchanged, start, server, free_port):
    output("nft", "add", "table", "ip", "mwtest_filter")
    output("nft", "add", "chain", "ip", "mwtest_filter", "FORWARD", "{ type filter hook forward priority 0; policy drop; }")
    try:
        session = start("-p", f"{free_port}:80", "--", *server, "80", "x")
        said = [line for line in session.background.tail(100).splitlines() if "mwtest_filter" in line]
        assert len(said) == 1 and "ip mwtest_filter FORWARD" in said[0]
        assert session.background.stop() == 143
        proc.run(["sh", "-c", said[0].split("try: ", 1)[1]], SECONDS)
        session = start("-p", f"{free_port}:80", "--", *server, "80", "x")
        assert "mwtest_filter" not in session.background.tail(100)
    finally:
        output("nft", "delete", "table", "ip", "mwtest_filter")
