"""What a protected program reaches by itself: the policies of --egress, the host's own ports behind --to-host, name
servers of the host, and what is said about refusals."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading

import pytest

from mwtest import host, proc
from mwtest.session import output

SECONDS = 60
LAN = host.ADDRESS
METADATA4, METADATA6 = "169.254.169.254", "fd00:ec2::254"

# Answers TCP and UDP at each [ADDRESS, PORT] with its name and the peer's address.
SERVICE = """
import json, selectors, socket, sys
name, places, ready = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
chosen = selectors.DefaultSelector()
for address, port in places:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(family, kind)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind((address, port))
        if kind == socket.SOCK_STREAM:
            s.listen(64)
        chosen.register(s, selectors.EVENT_READ, kind)
open(ready, "w").close()
while True:
    for key, _ in chosen.select():
        if key.data == socket.SOCK_STREAM:
            c, who = key.fileobj.accept()
            c.sendall(f"{name} {who[0]}".encode())
            c.close()
        else:
            _, who = key.fileobj.recvfrom(100)
            key.fileobj.sendto(f"{name} {who[0]}".encode(), who)
"""

# For each line of JSON, [tcp|udp, ADDRESS, PORT] or [name, NAME], says what came of it. `own` listens too.
PROBER = """
import contextlib, json, socket, sys
own = [socket.create_server((a, int(p))) for a, p in (w.rsplit(":", 1) for w in sys.argv[3:])]
def ask(kind, address, port=None):
    try:
        if kind == "name":
            return socket.gethostbyname(address)
        if kind == "cast":
            v6 = ":" in address
            to = (address, port, 0, 2) if v6 else (address, port)  # of eth0, which comes after lo
            with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                s.settimeout(2)
                s.sendto(b"?", to)
                return s.recvfrom(100)[0].decode()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as s:
            s.settimeout(5 if kind == "tcp" else 0.5)
            s.connect((address, port))
            if kind == "tcp":
                return s.recv(100).decode()
            for _ in range(10):  # the kernel sends only so many ICMP errors a second
                s.send(b"?")
                with contextlib.suppress(TimeoutError):
                    return s.recv(100).decode()
            return "silence"
    except TimeoutError:
        return "silence"
    except socket.gaierror:
        return "no name"
    except (ConnectionRefusedError, PermissionError):
        return "refused"
    except OSError as e:
        return "refused" if e.errno == 113 else repr(e)
with open(sys.argv[1]) as asked, open(sys.argv[2], "w") as answers:
    for line in asked:
        print(json.dumps(ask(*json.loads(line))), file=answers, flush=True)
"""


class Prober:
    """A protected program that tries what it is told to."""

    def __init__(self, session, asked, answers) -> None:
        self.session = session
        self._asked, self._answers = asked, answers

    def __call__(self, *question) -> str:
        print(json.dumps(question), file=self._asked, flush=True)
        return json.loads(self._answers.readline())

    def both(self, address: str, port: int) -> set:
        """What comes of TCP and of UDP."""
        return {self(kind, address, port) for kind in ("tcp", "udp")}


@pytest.fixture
def probe(start, tmp_path):
    """probe(options of mw run..., own=[places where it listens itself], program=...) -> Prober."""
    begun = contextlib.ExitStack()
    count = 0

    def begin(*options: str, own=(), **more) -> Prober:
        nonlocal count
        count += 1
        script, asked, answers = (tmp_path / f"prober{count}.{what}" for what in ("py", "asked", "answers"))
        script.write_text(PROBER)
        os.mkfifo(asked)
        os.mkfifo(answers)
        session = start(*options, "--", "/usr/bin/python3", str(script), str(asked), str(answers), *own, **more)
        # In the order in which the program opens them.
        questions = begun.enter_context(open(asked, "w"))
        return Prober(session, questions, begun.enter_context(open(answers)))

    with begun:
        yield begin


@pytest.fixture
def serve(tmp_path):
    """serve(name, [(address, port)...], run=visitor's wrapper) -> a native service, until the test ends."""
    begun = contextlib.ExitStack()

    def begin(name: str, *places, wrap=list) -> proc.Background:
        script, ready = tmp_path / "service.py", tmp_path / f"{name}.ready"
        script.write_text(SERVICE)
        words = wrap(["/usr/bin/python3", str(script), name, json.dumps(places), str(ready)])
        one = begun.enter_context(proc.Background(words, tmp_path / f"{name}.log"))
        proc.wait_for(ready.exists, SECONDS, name, one)
        return one

    with begun:
        yield begin


@pytest.fixture
def around(mw, visitor, serve, unchanged):
    """Services of the host and beyond: on every address and on one of the host, of a machine of the network, and at the
    addresses where clouds answer questions about the host."""
    inside = visitor.name
    for address in (f"{METADATA4}/32", f"{METADATA6}/128"):
        output("ip", "-n", inside, "address", "add", address, "dev", "lo")
    output("ip", "route", "add", METADATA4, "via", visitor.OWN4)
    output("ip", "-6", "route", "add", METADATA6, "via", visitor.OWN6)
    serve("host", ("0.0.0.0", 7001), ("::", 7001), (LAN, 7002), (visitor.HOST6, 7002), ("127.0.0.1", 7003), ("127.0.0.2", 7004))
    serve("peer", (visitor.OWN4, 7001), (visitor.OWN6, 7001), wrap=visitor.wrap)
    serve("cloud", (METADATA4, 80), (METADATA6, 80), wrap=visitor.wrap)
    yield visitor


def with_file(tmp_path, mw, text: str, place: str = "/etc/resolv.conf") -> str:
    """A program that is mw, for which that file has this text. The file can be written again."""
    (tmp_path / "file").write_text(text)
    script = tmp_path / "mw-with-file"
    script.write_text("#!/bin/sh\nexec unshare -m --propagation slave sh -c '"
                      f"mount --bind {tmp_path}/file {place} && exec {mw} \"$@\"' sh \"$@\"\n")
    script.chmod(0o755)
    return str(script)


def is_from(name: str, answers: set) -> bool:
    return all(answer.startswith(f"{name} ") for answer in answers)


REFUSED = {"refused"}


def of_the_host(ask: Prober, visitor) -> set:
    """What comes of all ways to the host's own services."""
    record = ask.session.record
    gates = [record["host4"], LAN, visitor.HOST4, record["host6"], visitor.HOST6]
    found = set()
    for address in filter(None, gates):
        found |= ask.both(address, 7001)
    return found | ask.both(LAN, 7002) | ask.both(visitor.HOST6, 7002) | ask.both("127.0.0.1", 7003) | ask.both("127.0.0.2", 7004)


# -- policies


def test_by_default_all_but_the_host_its_sessions_and_its_cloud(mw, around, start, probe, server):
    other = start("-p", "18401:80", "--", *server, "80", "other")
    ask = probe("-p", "18402:80", own=["0.0.0.0:80"])
    assert is_from("peer", ask.both(around.OWN4, 7001) | ask.both(around.OWN6, 7001))
    assert of_the_host(ask, around) == REFUSED
    assert ask.both(METADATA4, 80) | ask.both(METADATA6, 80) == REFUSED
    for address in (LAN, around.HOST4, ask.session.record["host4"], other.record["host4"], around.HOST6,
                    ask.session.record["host6"]):
        assert ask("tcp", address, 18401) == "refused", address
    # Nor at its own address, nor at the one under which links know the host's loopback.
    for address, port in ((other.record["ins4"], 80), (other.record["ins6"], 80), ("247.0.0.1", 18401), ("247.0.0.1", 7003)):
        assert ask("tcp", address, port) == "refused", address
    # Everybody on the link.
    assert {ask("cast", address, 7001) for address in ("224.0.0.1", "255.255.255.255", "ff02::1")} <= {"refused", "silence"}
    # Its own published port leads back to it: the listener takes the connection and says nothing.
    assert ask("tcp", LAN, 18402) == "silence"


def test_with_none_only_answers_leave(mw, around, start, probe, server):
    session = start("--egress", "none", "-p", "18403:80", "--", *server, "80", "served")
    proc.wait_for(lambda: around.curl(f"http://{around.HOST4}:18403/", check=False).stdout.startswith(b"served"), SECONDS,
                  "an answer", session.background)
    assert around.curl(f"http://[{around.HOST6}]:18403/").stdout.startswith(b"served")
    assert session.background.stop() == 143
    ask = probe("--egress", "none", "-p", "18403:80", own=["0.0.0.0:80"])
    assert ask.both(around.OWN4, 7001) | ask.both(around.OWN6, 7001) == REFUSED
    assert of_the_host(ask, around) == REFUSED
    assert ask("tcp", LAN, 18403) == "refused"
    assert ask.both(METADATA4, 80) == REFUSED


def test_networks_are_those_and_nothing_of_the_host_in_them(mw, around, probe):
    ask = probe("--egress", f"{around.OWN4[:-1]}0/30,169.0.0.0/8", "--egress", "fd5e::/64")
    assert is_from("peer", ask.both(around.OWN4, 7001) | ask.both(around.OWN6, 7001))
    assert of_the_host(ask, around) == REFUSED
    assert ask.both(METADATA4, 80) | ask.both(METADATA6, 80) == REFUSED


def test_one_address_is_meant_as_it_is_said(mw, around, start, probe, server):
    other = start("-p", "18404:80", "--", *server, "80", "other")
    ask = probe("--egress", f"{LAN}/32,{METADATA4},{METADATA6}/128,{around.HOST6}")
    assert is_from("host", ask.both(LAN, 7002) | ask.both(around.HOST6, 7002) | {ask("tcp", LAN, 7001)})
    assert is_from("cloud", ask.both(METADATA4, 80) | ask.both(METADATA6, 80))
    assert ask("tcp", LAN, 18404) == "silence", "the server of the other session waits for a request"
    assert ask("tcp", other.record["ins4"], 80) == "refused", "but not past its published port"
    assert ask.both(around.OWN4, 7001) | ask.both(around.OWN6, 7001) == REFUSED
    assert ask.both(ask.session.record["host4"], 7001) == REFUSED


def test_dns_is_the_name_servers_and_nothing_else_of_them(mw, around, serve, probe, tmp_path):
    serve("names", (around.OWN4, 53), (around.OWN6, 53), wrap=around.wrap)
    program = with_file(tmp_path, mw, f"nameserver {around.OWN4}\nnameserver {around.OWN6}\n")
    ask = probe("--egress", "dns", program=program)
    assert is_from("names", ask.both(around.OWN4, 53) | ask.both(around.OWN6, 53))
    assert ask.both(around.OWN4, 7001) | ask.both(around.OWN6, 7001) == REFUSED
    assert ask.both(LAN, 53) | of_the_host(ask, around) == REFUSED
    more = probe("--egress", f"dns,{around.OWN6}", program=program)
    assert is_from("names", more.both(around.OWN4, 53))
    assert is_from("peer", more.both(around.OWN6, 7001))
    assert more.both(around.OWN4, 7001) == REFUSED
    without = probe("--egress", f"{around.OWN6}", program=program)
    assert without.both(around.OWN4, 53) == REFUSED


@pytest.mark.parametrize("policy", ["any", "dns"])
def test_a_name_server_of_the_host_itself_is_reached(mw, around, serve, probe, tmp_path, policy):
    serve("names", (LAN, 53), (around.HOST6, 53))
    ask = probe("--egress", policy, program=with_file(tmp_path, mw, f"nameserver {LAN}\nnameserver {around.HOST6}\n"))
    assert is_from("names", ask.both(LAN, 53) | ask.both(around.HOST6, 53))
    assert of_the_host(ask, around) == REFUSED


def test_what_was_begun_while_the_rules_were_gone_ends_with_that(mw, around, start):
    """`established` is no pass: a connection is judged by its destination for as long as it lasts."""
    session = start("--", "sleep", "600")
    inside = ["ip", "netns", "exec", f"mw-{session.name}", "/usr/bin/python3", "-c",
              "import socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
              f"s.connect(({session.record['host4']!r}, 7001))\ns.settimeout(1)\n"
              "for line in sys.stdin:\n    try:\n        s.send(b'?')\n        print(s.recv(100).decode(), flush=True)\n"
              "    except OSError as e:\n        print(e.errno, flush=True)\n"]
    table = f"mw_{session.name.replace('-', '_')}"
    os.kill(session.background.pid, signal.SIGSTOP)
    try:
        output("nft", "flush", "ruleset")
        with subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hostile:
            try:
                print(file=hostile.stdin, flush=True)
                assert hostile.stdout.readline().startswith("host ")
                os.kill(session.background.pid, signal.SIGCONT)
                proc.wait_for(lambda: table in output("nft", "list", "tables"), SECONDS, "the rules", session.background)
                answers = []

                def is_refused() -> bool:  # and told so as often as the kernel sends ICMP errors
                    print(file=hostile.stdin, flush=True)
                    answers.append(hostile.stdout.readline().strip())
                    return answers[-1] == "113"

                proc.wait_for(is_refused, SECONDS, "a refusal", session.background)
                assert set(answers) <= {"None", "113"}
            finally:
                hostile.kill()
    finally:
        os.kill(session.background.pid, signal.SIGCONT)


# -- the host's own ports


@pytest.mark.parametrize("policy", ["any", "none", "dns", "198.18.254.2"])
def test_ports_of_the_hosts_loopback(mw, around, probe, policy):
    ask = probe("--egress", policy, "--to-host", "7003,7003/udp,7001")
    # The service is told that it talks to its own host.
    assert ask.both("127.0.0.1", 7003) == {"host 127.0.0.1"}
    assert ask("tcp", "::ffff:127.0.0.1", 7003) == "host 127.0.0.1"
    assert ask("tcp", "127.0.0.1", 7001) == "host 127.0.0.1"
    # No other protocol, port or address of the host's loopback, and no other way to those.
    assert ask("udp", "127.0.0.1", 7001) == "refused"
    assert {ask("tcp", "127.0.0.1", port) for port in (7002, 7004, 22)} == REFUSED
    assert ask.both("127.0.0.2", 7004) | ask.both("::1", 7003) == REFUSED
    for address in (ask.session.record["host4"], LAN, ask.session.record["host6"], around.HOST6):
        assert ask.both(address, 7001) | ask.both(address, 7003) == REFUSED
    assert ask("tcp", "247.0.0.2", 7004) == "refused"


def test_nobody_else_comes_that_way(mw, around, probe):
    """The port is open to the session's link, and to no other: neither to other sessions nor to the network."""
    with_it = probe("--to-host", "7003")
    without = probe()
    assert with_it("tcp", "127.0.0.1", 7003) == "host 127.0.0.1"
    assert without("tcp", "127.0.0.1", 7003) == "refused"
    for address in ("247.0.0.1", with_it.session.record["host4"], without.session.record["host4"]):
        assert without("tcp", address, 7003) == "refused"
        assert around.run("curl", "-sS", "-m", "2", f"http://{address}:7003/", check=False).returncode in (7, 28)


def test_a_service_that_is_not_there_refuses_and_one_that_comes_serves(mw, around, probe, serve):
    ask = probe("--to-host", "7005,7005/udp")
    assert ask.both("127.0.0.1", 7005) == REFUSED
    serve("late", ("127.0.0.1", 7005))
    assert ask.both("127.0.0.1", 7005) == {"late 127.0.0.1"}


def test_a_port_that_leads_to_the_host_is_not_the_programs_own(mw, around, probe):
    ask = probe("--to-host", "7003", own=["127.0.0.1:7003", "127.0.0.1:7006"])
    assert ask("tcp", "127.0.0.1", 7003) == "host 127.0.0.1"
    assert ask("tcp", "127.0.0.1", 7006) == "silence", "which is its own"


def test_two_sessions_with_the_same_port(mw, around, probe):
    one, two = probe("--to-host", "7003"), probe("--to-host", "7003")
    for _ in range(3):
        assert one("tcp", "127.0.0.1", 7003) == two("tcp", "127.0.0.1", 7003) == "host 127.0.0.1"
    one.session.background.stop()
    assert two("tcp", "127.0.0.1", 7003) == "host 127.0.0.1"


@pytest.mark.parametrize("published", ["127.0.0.1:18405:80", "18405:80"])
def test_what_another_session_publishes_on_loopback(mw, around, start, probe, published):
    """A protected application and its protected database: 127.0.0.1 is what it is for the host's programs."""
    script = "import socket\ns = socket.create_server(('', 80))\nwhile True:\n    s.accept()[0].sendall(b'database')\n"
    start("-p", published, "--", "/usr/bin/python3", "-c", script)
    with_it, without = probe("--to-host", "18405"), probe()
    proc.wait_for(lambda: with_it("tcp", "127.0.0.1", 18405) == "database", SECONDS, "the database",
                  with_it.session.background)
    assert without("tcp", "127.0.0.1", 18405) == without("tcp", "247.0.0.1", 18405) == "refused"


def test_they_outlive_flushed_rules_the_stack_and_the_front_end(mw, around, probe):
    ask = probe("--egress", "none", "--to-host", "7003")
    session = ask.session
    table = f"mw_{session.name.replace('-', '_')}"

    def holds() -> bool:
        return ask("tcp", "127.0.0.1", 7003) == "host 127.0.0.1" and ask("tcp", around.OWN4, 7001) == "refused"

    before = output("nft", "-s", "list", "table", "inet", table)
    assert holds()
    output("nft", "flush", "ruleset")
    proc.wait_for(lambda: table in output("nft", "list", "tables"), SECONDS, "the rules", session.background)
    proc.wait_for(lambda: output("nft", "-s", "list", "table", "inet", table) == before, SECONDS, "all of them")
    assert holds()
    first = session.pid("ins")
    os.kill(first, signal.SIGKILL)
    proc.wait_for(lambda: session.pid("ins") not in (0, first), SECONDS, "another INS", session.background)
    proc.wait_for(holds, SECONDS, "the same reach")
    victim = session.lose_front_end()
    session.adopted(victim)
    assert holds()
    output("nft", "flush", "ruleset")
    proc.wait_for(lambda: table in output("nft", "list", "tables"), SECONDS, "the rules")
    assert holds()


# -- name servers of the host's loopback


class NameServer(threading.Thread):
    """Knows one address for every name."""

    def __init__(self, at: str, address: str) -> None:
        super().__init__(daemon=True)
        self._address = socket.inet_aton(address)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((at, 53))

    def run(self) -> None:
        while True:
            query, who = self._socket.recvfrom(512)
            if not query:
                return
            end = query.index(b"\0", 12) + 5
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + self._address
            is_a = query[end - 4:end - 2] == b"\0\1"
            self._socket.sendto(query[:2] + b"\x81\x80\0\1\0" + (b"\1" if is_a else b"\0") + b"\0\0\0\0" + query[12:end] +
                                (record if is_a else b""), who)

    def __enter__(self) -> "NameServer":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(b"", self._socket.getsockname())
        self.join(SECONDS)
        self._socket.close()


@pytest.mark.parametrize("policy", ["any", "dns", "198.18.254.2"])
@pytest.mark.parametrize("address", ["127.0.0.53", "127.0.0.1"])
def test_a_resolver_on_the_hosts_loopback(mw, around, probe, tmp_path, address, policy):
    with NameServer(address, "192.0.2.77"):
        ask = probe("--egress", policy, program=with_file(tmp_path, mw, f"nameserver {address}\n"))
        assert ask("name", "a.test") == "192.0.2.77"
        # As a program does that asks by itself; the answer here is no message of its protocol.
        assert ask("udp", address, 54) == ask("udp", "127.0.0.99", 53) == "refused"
        none = probe("--egress", "none", program=with_file(tmp_path, mw, f"nameserver {address}\n"))
        assert none("name", "a.test") == "no name"


def test_a_resolver_that_takes_loopback_only_is_stood_in_for(mw, around, probe, tmp_path):
    """As systemd's does, which names the servers behind it in a file."""
    with NameServer(LAN, "192.0.2.78"):
        upstream = tmp_path / "upstream"
        upstream.write_text(f"nameserver {LAN}\n")
        program = with_file(tmp_path, mw, "nameserver 127.0.0.53\noptions edns0 trust-ad\n")
        script = tmp_path / "mw-with-resolved"
        script.write_text("#!/bin/sh\nexec unshare -m --propagation slave sh -c 'mkdir -p /run/systemd && "
                          "mount -t tmpfs t /run/systemd && mkdir /run/systemd/resolve && "
                          f"cp {upstream} /run/systemd/resolve/resolv.conf && exec {program} \"$@\"' sh \"$@\"\n")
        script.chmod(0o755)
        ask = probe("--egress", "dns", program=str(script))
        assert ask("name", "a.test") == "192.0.2.78"
        assert ask("tcp", "127.0.0.53", 53) == "refused", "by the server behind it, which has no TCP"
        assert ask("tcp", LAN, 7001) == "refused"


def test_an_ins_that_starts_asks_the_name_servers_of_now(mw, around, probe, tmp_path):
    with NameServer("127.0.0.53", "192.0.2.77"), NameServer("127.0.0.1", "192.0.2.79"), NameServer(LAN, "192.0.2.80"):
        ask = probe("--egress", "dns", program=with_file(tmp_path, mw, "nameserver 127.0.0.53\n"))
        session = ask.session
        for server, answer in (("127.0.0.53", "192.0.2.77"), ("127.0.0.1", "192.0.2.79"), (LAN, "192.0.2.80")):
            (tmp_path / "file").write_text(f"nameserver {server}\n")
            first = session.pid("ins")
            os.kill(first, signal.SIGKILL)
            proc.wait_for(lambda first=first: session.pid("ins") not in (0, first), SECONDS, "another INS")
            proc.wait_for(lambda answer=answer: ask("name", "a.test") == answer, SECONDS, f"an answer of {server}")


def test_a_protected_name_server_is_its_own(mw, around, probe, tmp_path):
    ask = probe("-p", "127.0.0.1:5353:53", own=["127.0.0.1:53"], program=with_file(tmp_path, mw, "nameserver 127.0.0.1\n"))
    assert ask("tcp", "127.0.0.1", 53) == "silence", "its own listener, not the host's port"


# -- what is said


def lines_with(session, part: str) -> list:
    return [line for line in session.background.log.read_text().splitlines() if part in line]


def test_refusals_are_counted_and_said(mw, around, probe):
    ask = probe()
    for _ in range(3):
        assert ask("tcp", METADATA4, 80) == "refused"
    assert ask("udp", around.HOST6, 7001) == "refused"

    def told(what: str) -> int:
        said = ask.session.background.log.read_text()
        return sum(map(int, re.findall(re.escape(f"mw: egress refused: {what}") + r" \((\d+) times?\)", said)))

    proc.wait_for(lambda: told(f"tcp {METADATA4}:80") == 3, SECONDS, "three refusals", ask.session.background)
    proc.wait_for(lambda: told(f"udp [{around.HOST6}]:7001") == 1, SECONDS, "the other", ask.session.background)
    helped = lines_with(ask.session, "--egress and --to-host")
    assert len(helped) == 1, helped
    # A flood is a few lines.
    before = len(lines_with(ask.session, "egress refused"))
    for port in range(1, 200):
        ask("tcp", LAN, port)
    proc.wait_for(lambda: lines_with(ask.session, "other destinations"), SECONDS, "a sum", ask.session.background)
    assert len(lines_with(ask.session, "egress refused")) - before <= 40


def test_the_first_refused_connection_to_loopback_says_what_helps(mw, around, probe):
    ask = probe("--to-host", "7005")
    assert ask("tcp", "127.0.0.1", 7005) == "refused"  # by the host
    assert ask("tcp", around.OWN4, 9) == "refused"
    assert ask("tcp", "127.0.0.1", 3306) == "refused"
    assert ask("tcp", "127.0.0.1", 25) == ask("udp", "127.0.0.1", 53) == "refused"
    first = ask.session.pid("ins")
    os.kill(first, signal.SIGKILL)
    proc.wait_for(lambda: ask.session.pid("ins") not in (0, first), SECONDS, "another INS", ask.session.background)
    proc.wait_for(lambda: ask("tcp", "127.0.0.1", 25) == "refused", SECONDS, "its answers")
    assert ask.session.background.stop() == 143
    (said,) = lines_with(ask.session, "is the INS's own")
    assert "127.0.0.1 is the INS's own; --to-host 3306 lets the program reach the host's port" in said


def test_datagrams_to_loopback_are_a_reason_too(mw, around, probe):
    ask = probe()
    assert ask("udp", "127.0.0.53", 53) == "refused"
    assert ask.session.background.stop() == 143
    (said,) = lines_with(ask.session, "is the INS's own")
    assert "--to-host 53/udp" in said


def test_on_the_hosts_network_loopback_is_the_hosts(mw, around, probe):
    ask = probe("--net", "host")
    assert ask.both("127.0.0.1", 7003) == {"host 127.0.0.1"}
    assert ask("tcp", "127.0.0.1", 3306) == "refused"
    assert ask.session.background.stop() == 143
    assert not lines_with(ask.session, "INS's own")


def test_ps_shows_what_a_session_reaches(mw, unchanged, start):
    session = start("--egress", "dns,192.0.2.0/24", "--to-host", "3306,53/udp", "--", "sleep", "600")
    (shown,) = json.loads(output(mw, "ps", "-j", session.name))["sessions"]
    assert shown["egress"] == "dns,192.0.2.0/24"
    assert shown["to_host"] == [{"port": 3306, "protocol": "tcp"}, {"port": 53, "protocol": "udp"}]
    text = output(mw, "ps", session.name)
    assert "egress       dns,192.0.2.0/24" in text and "to host      3306,53/udp" in text


def test_the_configuration_file_says_it_too_and_options_count_more(mw, around, probe, tmp_path):
    config = tmp_path / "mw.toml"
    config.write_text('[network]\negress = ["none"]\nto_host = [7003, "7003/udp"]\n')
    output(mw, "check-config", str(config))
    ask = probe("--config", str(config))
    assert ask.both("127.0.0.1", 7003) == {"host 127.0.0.1"} and ask.both(around.OWN4, 7001) == REFUSED
    ask = probe("--config", str(config), "--egress", "any", "--to-host", "7001")
    assert ask("tcp", "127.0.0.1", 7003) == "refused" and is_from("peer", ask.both(around.OWN4, 7001))
    config.write_text('[network]\negress = "192.0.2.1/24"\nto_host = ["x"]\nother = 1\n')
    done = proc.run([mw, "check-config", "-j", config], SECONDS, check=False)
    assert done.returncode == 2
    assert [fault["line"] for fault in json.loads(done.stdout)["faults"]] == [2, 3, 4]


def test_a_firewall_of_the_host_that_stands_in_the_way_is_named(mw, around, probe):
    output("nft", "add", "table", "inet", "mwtest_filter")
    output("nft", "add", "chain", "inet", "mwtest_filter", "in", "{ type filter hook input priority 0; policy drop; }")
    try:
        assert not lines_with(probe().session, "mwtest_filter"), "nothing is led to the host"
        ask = probe("--to-host", "7003")
        (said,) = lines_with(ask.session, "mwtest_filter")
        assert ask("tcp", "127.0.0.1", 7003) == "silence"
        proc.run(["sh", "-c", said.split("try: ", 1)[1]], SECONDS)
        assert ask("tcp", "127.0.0.1", 7003) == "host 127.0.0.1"
        assert ask("tcp", LAN, 7001) == "refused"
    finally:
        output("nft", "delete", "table", "inet", "mwtest_filter")


def test_a_way_to_the_host_that_cannot_be_made_leaves_nothing_behind(mw, unchanged, tmp_path):
    place = os.path.realpath("/usr/sbin/nft")
    real, fake = tmp_path / "real", tmp_path / "nft"
    shutil.copy(place, real)
    here = os.readlink("/proc/thread-self/ns/net")
    fake.write_text(f'#!/bin/sh\n[ "$(readlink /proc/self/ns/net)" = "{here}" ] || {{ echo broken on purpose >&2; exit 1; }}\n'
                    f'exec {real} "$@"\n')
    fake.chmod(0o755)
    done = proc.run(["unshare", "-m", "--propagation", "slave", "sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"',
                     "sh", fake, place, mw, "run", "--to-host", "7003", "--", "true"], SECONDS, check=False)
    assert done.returncode == 125
    assert b"broken on purpose" in done.stderr and b"mw: cannot lead ports" in done.stderr
