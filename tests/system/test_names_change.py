"""The host's resolv.conf, hosts and nsswitch.conf change while a session runs: the next lookup goes by what they say now."""

import contextlib
import os
import shutil
import signal
import socket
import struct
import threading
from pathlib import Path

import pytest

from mwtest import proc
from mwtest.session import output

# By family: two name servers of the host's.
SERVERS = {4: ("198.18.253.1", "198.18.253.2"), 6: ("fd5e:53::1", "fd5e:53::2")}
# What the first and the second server answer.
ANSWERS = {socket.AF_INET: ("192.0.2.1", "192.0.2.2"), socket.AF_INET6: ("2001:db8::1", "2001:db8::2")}


class NameServer(threading.Thread):
    """Answers for whatever ends in .test; a question for slow.test waits until `release` is set."""

    def __init__(self, address: str, number: int) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 53))
        self.address, self.number = address, number
        self.asked = []
        self.numbers = []  # of the questions
        self.release = threading.Event()
        self.waiting = threading.Event()

    def run(self) -> None:
        while True:
            query, peer = self.socket.recvfrom(4096)
            if not query:
                return
            at, labels = 12, []
            while query[at]:
                labels.append(query[at + 1:at + 1 + query[at]].decode())
                at += query[at] + 1
            name = ".".join(labels)
            self.asked.append(name)
            self.numbers.append(query[:2])
            if name == "slow.test":
                threading.Thread(target=self.answer_later, args=(name, query, at, peer), daemon=True).start()
            else:
                self.answer(name, query, at, peer)

    def answer_later(self, *question) -> None:
        self.waiting.set()
        self.release.wait(60)
        self.answer(*question)

    def answer(self, name: str, query: bytes, at: int, peer: tuple) -> None:
        kind = struct.unpack("!H", query[at + 1:at + 3])[0]
        family = {1: socket.AF_INET, 28: socket.AF_INET6}.get(kind)
        known = family is not None and name.endswith(".test")
        header = query[:2] + struct.pack("!HHHHH", 0x8180 | (0 if known else 3), 1, 1 if known else 0, 0, 0)
        body = b""
        if known:
            data = socket.inet_pton(family, ANSWERS[family][self.number])
            body = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(data)) + data
        self.socket.sendto(header + query[12:at + 5] + body, peer)

    def stop(self) -> None:
        with socket.socket(self.socket.family, socket.SOCK_DGRAM) as one:
            one.sendto(b"", (self.address, 53))
        self.join(10)
        self.socket.close()


@pytest.fixture(params=[4, 6])
def servers(mw, unchanged, request):
    addresses = SERVERS[request.param]
    words = [(f"{one}/{32 if request.param == 4 else 128}", "dev", "lo") for one in addresses]
    started = []
    try:
        for k, one in enumerate(words):
            output("ip", "address", "add", *one, *(["nodad"] if request.param == 6 else []))
            started.append(NameServer(addresses[k], k))
            started[-1].start()
        yield started
    finally:
        for one in started:
            one.release.set()
            one.stop()
        for one in words[:len(started)]:
            output("ip", "address", "del", *one)


PROGRAM = """
import socket, sys, threading

def answer(connection):
    with connection:
        family, name = connection.recv(1000).decode().split()
        try:
            found = sorted({one[4][0] for one in socket.getaddrinfo(name, 1, int(family), socket.SOCK_STREAM)})
            connection.sendall(" ".join(found).encode())
        except OSError as error:
            connection.sendall(f"error {error.errno}".encode())

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(64)
while True:
    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
"""


class Place:
    """A session whose host has an /etc of its own, and a program in it that looks up what it is asked."""

    def __init__(self, start, mw: str, folder: Path, servers: list) -> None:
        self._start, self._mw, self._folder = start, mw, folder
        self.servers = servers
        self.etc = folder / "etc"
        shutil.copytree("/etc", self.etc, symlinks=True)
        self.resolv_conf, self.hosts, self.switch = (self.etc / one for one in ("resolv.conf", "hosts", "nsswitch.conf"))
        for path in (self.resolv_conf, self.hosts, self.switch):
            path.unlink(missing_ok=True)
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.switch.write_text("hosts: files dns\n")
        self.resolv_conf.write_text(self.conf(0))
        self.session = None

    def conf(self, number: int) -> str:
        return f"nameserver {self.servers[number].address}\noptions timeout:30 attempts:1\n"

    def begin(self, net: str = "isolated") -> None:
        program = self._folder / "program.py"
        program.write_text(PROGRAM)
        self._socket = self._folder / "socket"
        self._socket.unlink(missing_ok=True)
        wrapped = self._folder / "mw"
        wrapped.write_text(f"#!/bin/sh\nexec unshare -m sh -c 'mount --make-rprivate / && mount --bind {self.etc} /etc && "
                           f"exec {self._mw} \"$@\"' sh \"$@\"\n")
        wrapped.chmod(0o755)
        self.session = self._start("--net", net, "--", "/usr/bin/python3", str(program), str(self._socket),
                                   program=str(wrapped))
        proc.wait_for(self._socket.exists, 20, "the program listens", self.session.background)
        assert self.look_up("a.test") == ANSWERS[socket.AF_INET][0]

    def ask(self, name: str, family: int = socket.AF_INET) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        proc.wait_for(lambda: self._connected(connection), 20, "a connection")
        connection.sendall(f"{int(family)} {name}".encode())
        return connection

    def _connected(self, connection: socket.socket) -> bool:
        with contextlib.suppress(ConnectionRefusedError, BlockingIOError):
            connection.connect(str(self._socket))
            return True
        return False

    def look_up(self, name: str, family: int = socket.AF_INET) -> str:
        with self.ask(name, family) as connection:
            return connection.recv(1000).decode()

    def becomes(self, expected: str, name: str, family: int = socket.AF_INET) -> None:
        proc.wait_for(lambda: self.look_up(name, family) == expected, 20, f"{name} is {expected}", self.session.background)

    def asks_the_second(self) -> None:
        for family in (socket.AF_INET, socket.AF_INET6):
            self.becomes(ANSWERS[family][1], "a.test", family)
        before = len(self.servers[0].asked)
        assert self.look_up("b.test") == ANSWERS[socket.AF_INET][1]
        assert len(self.servers[0].asked) == before, "the first server is asked no more"

    def said(self, text: str) -> int:
        return self.session.background.log.read_text().count(text)


@pytest.fixture
def place(servers, start, mw, tmp_path) -> Place:
    return Place(start, mw, tmp_path, servers)


def replace(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    new.rename(path)


def lead_to(link: Path, target: str) -> None:
    new = link.with_name("new")
    new.symlink_to(target)
    new.rename(link)


def by_rename(place: Place) -> None:
    place.begin()
    replace(place.resolv_conf, place.conf(1))


def in_place(place: Place) -> None:
    place.begin()
    place.resolv_conf.write_text(place.conf(1))


def by_another_link(place: Place) -> None:
    for k in (0, 1):
        (place.etc / f"{k}.conf").write_text(place.conf(k))
    lead_to(place.resolv_conf, "0.conf")
    place.begin()
    lead_to(place.resolv_conf, "/etc/1.conf")


def behind_a_link(place: Place) -> None:
    """As a resolver of the system does: the link stays, and the file in its folder is replaced."""
    (place.etc / "run/resolve").mkdir(parents=True)
    (place.etc / "run/resolve/stub.conf").write_text(place.conf(0))
    lead_to(place.resolv_conf, "../etc/run/resolve/stub.conf")
    place.begin()
    replace(place.etc / "run/resolve/stub.conf", place.conf(1))


def a_folder_that_comes_back(place: Place) -> None:
    (place.etc / "run/resolve").mkdir(parents=True)
    (place.etc / "run/resolve/stub.conf").write_text(place.conf(0))
    lead_to(place.resolv_conf, "run/resolve/stub.conf")
    place.begin()
    shutil.rmtree(place.etc / "run")
    proc.wait_for(lambda: place.said("cannot read /etc/resolv.conf"), 20, "the loss is said", place.session.background)
    assert place.look_up("a.test") == ANSWERS[socket.AF_INET][0], "what it said before holds"
    (place.etc / "run/resolve").mkdir(parents=True)
    (place.etc / "run/resolve/stub.conf").write_text(place.conf(1))


@pytest.mark.parametrize("change", [by_rename, in_place, by_another_link, behind_a_link, a_folder_that_comes_back])
def test_another_name_server_is_asked(place, change):
    change(place)
    place.asks_the_second()


def test_on_the_hosts_own_network_too(place):
    place.begin(net="host")
    replace(place.resolv_conf, place.conf(1))
    place.asks_the_second()
    place.hosts.write_text("192.0.2.77 mine\n")
    place.becomes("192.0.2.77", "mine")


def test_lines_of_hosts_come_and_go(place):
    place.begin()
    assert place.look_up("mine").startswith("error")
    first = place.hosts.read_text()
    with open(place.hosts, "a") as file:
        file.write("192.0.2.50 mine\n2001:db8::50 mine\n")
    place.becomes("192.0.2.50", "mine")
    assert place.look_up("mine", socket.AF_INET6) == "2001:db8::50"
    replace(place.hosts, first + "192.0.2.51 mine\n")
    place.becomes("192.0.2.51", "mine")
    assert place.look_up("mine", socket.AF_INET6).startswith("error")
    place.hosts.write_text(first)
    proc.wait_for(lambda: place.look_up("mine").startswith("error"), 20, "the name is gone", place.session.background)


def test_the_order_of_services_changes(place):
    place.hosts.write_text("192.0.2.60 b.test\n")
    place.begin()
    assert place.look_up("b.test") == "192.0.2.60"
    place.switch.write_text("hosts: dns\n")
    place.becomes(ANSWERS[socket.AF_INET][0], "b.test")
    place.switch.write_text("hosts: files\n")
    place.becomes("192.0.2.60", "b.test")


def test_what_cannot_be_read_leaves_the_last_text(place):
    place.hosts.write_text("192.0.2.70 mine\n")
    place.begin()
    place.hosts.unlink()
    proc.wait_for(lambda: place.said("cannot read /etc/hosts"), 20, "the loss is said", place.session.background)
    assert place.look_up("mine") == "192.0.2.70"
    with open(place.etc / "new", "w") as file:
        file.truncate(17 << 20)
    (place.etc / "new").rename(place.hosts)
    replace(place.resolv_conf, place.conf(1))  # followed later than the change before it
    place.asks_the_second()
    assert place.look_up("mine") == "192.0.2.70"
    assert place.said("cannot read /etc/hosts") == 1, "once"
    replace(place.hosts, "192.0.2.71 mine\n")
    place.becomes("192.0.2.71", "mine")
    assert place.said("/etc/hosts is followed again") == 1


def test_a_file_too_large_is_said_and_a_large_one_is_read(place):
    place.begin()
    line = b"0.0.0.0 a-name-that-nobody-should-reach-%07d.example\n"
    lines = b"".join(line % k for k in range(100_000))
    with open(place.etc / "new", "wb") as file:
        file.write(lines * 4)
    (place.etc / "new").rename(place.hosts)
    proc.wait_for(lambda: place.said("it has more than 16 MiB"), 20, "it is said", place.session.background)
    with open(place.etc / "new", "wb") as file:
        file.write(lines + b"192.0.2.80 last\n")
    (place.etc / "new").rename(place.hosts)
    place.becomes("192.0.2.80", "last")
    assert place.look_up("a-name-that-nobody-should-reach-0099999.example") == "0.0.0.0"


def test_a_lookup_that_runs_ends_as_it_began(place):
    place.begin()
    first, second = place.servers
    with place.ask("slow.test") as slow:
        assert first.waiting.wait(20)
        replace(place.resolv_conf, place.conf(1))
        place.asks_the_second()
        for _ in range(3):  # more than one configuration at a time
            place.resolv_conf.write_text(place.conf(0))
            place.becomes(ANSWERS[socket.AF_INET][0], "a.test")
            place.resolv_conf.write_text(place.conf(1))
            place.becomes(ANSWERS[socket.AF_INET][1], "a.test")
        first.release.set()
        assert slow.recv(1000).decode() == ANSWERS[socket.AF_INET][0]
    assert "slow.test" not in second.asked


@pytest.mark.parametrize("victim", ["ins", "driver", "owner", "ins driver"])
def test_whoever_is_replaced_meanwhile_has_the_newest(place, victim):
    place.begin()
    pids = {who: place.session.pid(who) for who in victim.split()}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    replace(place.resolv_conf, place.conf(1))
    place.hosts.write_text("192.0.2.90 mine\n")
    for who, pid in pids.items():
        proc.wait_for(lambda: place.session.pid(who) not in (0, pid) and place.session.alive(who), 20, f"another {who}")
    proc.wait_for(lambda: place.look_up("a.test") == ANSWERS[socket.AF_INET][1], 20, "the second server is asked")
    proc.wait_for(lambda: place.look_up("mine") == "192.0.2.90", 20, "the new line is known")
    place.hosts.write_text("192.0.2.91 mine\n")
    proc.wait_for(lambda: place.look_up("mine") == "192.0.2.91", 20, "whoever came follows the files")


def test_what_is_mounted_over_a_file_counts(place):
    place.begin()
    (place.etc / "other").write_text("192.0.2.95 mine\n")
    inside = ["nsenter", "-t", str(place.session.pid("owner")), "-m"]
    output(*inside, "mount", "--bind", "/etc/other", "/etc/hosts")
    place.becomes("192.0.2.95", "mine")
    (place.etc / "other").write_text("192.0.2.96 mine\n")
    place.becomes("192.0.2.96", "mine")
    output(*inside, "umount", "/etc/hosts")
    proc.wait_for(lambda: place.look_up("mine").startswith("error"), 20, "it is gone", place.session.background)


def test_numbers_of_questions_cannot_be_guessed(place):
    """They are drawn anew with each configuration, behind the sandbox, where no file gives random numbers."""
    drawn = []
    for _ in range(2):
        place.resolv_conf.write_text(place.conf(0))
        place.begin()
        del place.servers[1].numbers[:]
        replace(place.resolv_conf, place.conf(1))
        place.asks_the_second()
        for k in range(8):
            assert place.look_up(f"n{k}.test") == ANSWERS[socket.AF_INET][1]
        drawn.append(set(place.servers[1].numbers))
        place.session.end()
    assert len(drawn[0]) > 8
    assert len(drawn[0] & drawn[1]) < 4, drawn
