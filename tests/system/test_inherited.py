"""What the caller of `mw run` has open or in its environment: the application gets it, the session's helpers do not,
whoever starts them, and what the application and the caller have closed is closed. Of sockets of the host's network
the application gets those of the INS that are like them."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from mwtest import proc
from mwtest.session import Session, copy_of_the_build, gone, open_to_others

HELPERS = ("ins", "driver")
CANARY = {"AWS_SECRET_ACCESS_KEY": "canary-4711", "OPENSSL_CONF": "/nonexistent/canary", "GCONV_PATH": "/tmp/canary",
          "MALLOC_PERTURB_": "165", "LD_BIND_NOT": "canary"}
# What a helper may be told: where its tools are, how names are looked up, where a user's sessions are.
ALLOWED = {"PATH", "RES_OPTIONS", "LOCALDOMAIN", "XDG_RUNTIME_DIR", "MWCOMMS_TOKEN",
           "ASAN_OPTIONS", "LSAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS"}
# A server of which nothing but the standard descriptors is left open.
SERVES = ("import os, socket, sys\nos.closerange(3, 1000)\nnull = os.open('/dev/null', os.O_RDWR)\n"
          "os.dup2(null, 0)\nos.dup2(null, 1)\ns = socket.create_server(('0.0.0.0', 80))\n"
          "while True: s.accept()[0].close()")


def open_files(pid: int) -> dict:
    """Descriptor -> what it is, as /proc says."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[int(link.name)] = os.readlink(link)
        except FileNotFoundError:
            pass  # closed meanwhile
    return found


def environment(pid: int) -> dict:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(word.decode().split("=", 1) for word in words if word)


class Treasure:
    """A secret file, a listener, a datagram socket of the host, both ends of a pipe and a folder: open, and inherited."""

    def __init__(self, folder: Path) -> None:
        secret = folder / "secret"
        secret.write_text("root:canary")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / "listener"))
        self.listener.listen()
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.pipe = os.pipe()
        self.fds = [os.open(secret, os.O_RDONLY), os.open(folder, os.O_RDONLY | os.O_DIRECTORY), *self.pipe,
                    self.listener.fileno(), self.datagrams.fileno()]
        # High numbers too, and those that come between.
        self.fds += [fcntl.fcntl(self.fds[0], fcntl.F_DUPFD, number) for number in (9, 64, 500)]
        self.names = {os.readlink(f"/proc/self/fd/{fd}") for fd in self.fds}

    def close(self) -> None:
        for fd in self.fds:
            if fd not in (self.listener.fileno(), self.datagrams.fileno()):
                os.close(fd)
        self.listener.close()
        self.datagrams.close()


@pytest.fixture
def treasure(tmp_path):
    one = Treasure(tmp_path)
    yield one
    one.close()


def start_with(start, treasure, *arguments, **options):
    """As start(), by a caller with canaries."""
    before = dict(os.environ)
    os.environ.update(CANARY)
    flags = {fd: fcntl.fcntl(fd, fcntl.F_GETFD) for fd in treasure.fds}
    try:
        for fd in treasure.fds:
            os.set_inheritable(fd, True)
        return start(*arguments, **options)
    finally:
        for fd, value in flags.items():
            fcntl.fcntl(fd, fcntl.F_SETFD, value)
        os.environ.clear()
        os.environ.update(before)


def assert_clean(pid: int, treasure: Treasure) -> None:
    found = open_files(pid)
    assert treasure.names.isdisjoint(found.values()), found
    told = environment(pid)
    assert set(told) <= ALLOWED, told
    assert told["PATH"] == "/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.fixture(autouse=True)
def everything_is_passed_on(monkeypatch):
    """subprocess closes what is not named; here a caller who does not is played."""
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **options: real(*words, **{**options, "close_fds": False}))


@pytest.mark.parametrize("net", ["isolated", "host"])
def test_helpers_have_nothing_of_the_caller(mw, unchanged, start, treasure, net):
    session = start_with(start, treasure, "--net", net, "--", "/usr/bin/python3", "-c", SERVES.replace("80", "8077"))
    assert CANARY.items() <= environment(session.pid("application")).items(), "the application has it"
    for who in HELPERS:
        assert_clean(session.pid(who), treasure)


def test_helpers_that_are_replaced_have_nothing_either(mw, unchanged, start, treasure):
    session = start_with(start, treasure, "--", "/usr/bin/python3", "-c", SERVES)
    for who in HELPERS:
        old = session.pid(who)
        os.kill(old, signal.SIGKILL)
        proc.wait_for(lambda: session.pid(who) not in (0, old) and session.alive(who), 60, "a successor",
                      session.background)
        assert_clean(session.pid(who), treasure)
    # Nor the front end that the driver starts, and those that it starts.
    front_end = session.adopted(session.lose_front_end())
    assert_clean(front_end, treasure)
    old = session.pid("ins")
    os.kill(old, signal.SIGKILL)
    proc.wait_for(lambda: session.pid("ins") not in (0, old) and session.alive("ins"), 60, "a successor")
    assert_clean(session.pid("ins"), treasure)
    session.end()


def test_a_session_in_a_session(mw, unchanged, start, treasure):
    """The helpers of the inner one are no part of the outer one."""
    outer = start_with(start, treasure, "--net", "host", "--", mw, "run", "--net", "host", "--",
                       "/usr/bin/python3", "-c", SERVES.replace("80", "8078"))
    inner = proc.wait_for(lambda: next((pid for pid in children(outer.pid("application"))
                                        if command(pid) == "mwins"), None), 60, "the inner INS",
                          outer.background)
    driver = next(pid for pid in children(outer.pid("application")) if command(pid) == "mwcommsd")
    for pid in (inner, driver):
        assert_clean(pid, treasure)
        assert "libmwshim" not in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("net", ["isolated", "host"])
def test_an_ins_has_pids_of_its_own(mw, unchanged, start, net):
    """Everybody else sees it under its pid as ever."""
    session = start("--net", net, "--", "/usr/bin/python3", "-c", SERVES.replace("80", "8076"))
    for signal_number in (None, signal.SIGTERM, signal.SIGKILL):
        old = session.pid("ins")
        if signal_number is not None:
            os.kill(old, signal_number)
            proc.wait_for(lambda: session.pid("ins") not in (0, old) and session.alive("ins"), 60, "a successor",
                          session.background)
        ins = session.pid("ins")
        assert os.readlink(f"/proc/{ins}/ns/pid") != os.readlink(f"/proc/{session.pid('driver')}/ns/pid")
        status = Path(f"/proc/{ins}/status").read_text()
        assert next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:] == [str(ins), "1"]
        assert int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1]) == session.background.pid
    assert f"INS {int(session.refresh()['ins_id'])}" in proc.run([mw, "ps", session.name], 20).stdout.decode()


def children(pid: int) -> list:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


def test_tools_are_not_the_callers(mw, unchanged, start, tmp_path):
    """A folder in front of PATH, and what is preloaded, do not run as root."""
    marker = tmp_path / "ran"
    for tool in ("ip", "nft", "true", "mwins", "mwcommsd"):
        fake = tmp_path / tool
        fake.write_text(f"#!/bin/sh\necho {tool} >>{marker}\nexit 1\n")
        fake.chmod(0o755)
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        session = start("-p", "18195:80", "--", "/usr/bin/python3", "-c", SERVES)
    assert session.background.stop() == 143
    assert not marker.exists(), marker.read_text()


def test_a_lock_ends_with_its_owner(mw, unchanged, start, tmp_path):
    """Both ways: the application lets it go while the session runs, and keeps it as long as it wants."""
    path = tmp_path / "lock"
    with open(path, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.set_inheritable(held.fileno(), True)
        session = start("--net", "host", "--", "/usr/bin/python3", "-c", SERVES.replace("80", "8079"))

    def is_free() -> bool:
        with open(path, "w") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    proc.wait_for(is_free, 60, "nobody holds the lock", session.background)
    assert session.alive("application") and session.alive("ins") and session.alive("driver")


@pytest.mark.parametrize("end", [0, 1], ids=["standard input", "standard output"])
def test_a_pipe_ends_with_its_owner(mw, unchanged, tmp_path, end):
    """A writer to the input of a server that has closed it is told, and so is a reader of its output."""
    ours, theirs = os.pipe()
    if end == 0:
        ours, theirs = theirs, ours
    words = [mw, "run", "--net", "host", "--", "/usr/bin/python3", "-c", SERVES.replace("80", "8081")]
    with open(tmp_path / "log", "wb") as log:
        ends = [subprocess.DEVNULL, log]
        ends[end] = theirs
        process = subprocess.Popen(words, stdin=ends[0], stdout=ends[1], stderr=log, close_fds=True)
    os.close(theirs)
    try:
        if end == 1:
            assert os.read(ours, 1) == b""
        else:
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            proc.wait_for(lambda: breaks(ours), 60, "an end of the pipe")
        assert not gone(process.pid)
    finally:
        os.close(ours)
        process.terminate()
        assert process.wait(60) == 143


def breaks(fd: int) -> bool:
    try:
        os.write(fd, b"\n")
    except BrokenPipeError:
        return True
    return False


# -- sockets of the host's network

# Makes sockets as systemd, inetd or a supervisor does, puts them under their numbers, and becomes a command.
STARTER = """
import fcntl, json, os, socket, sys
plan = json.loads(sys.argv[1])
made = []
for one in plan["sockets"]:
    s = socket.socket(one.get("family", socket.AF_INET), one.get("type", socket.SOCK_STREAM), one.get("protocol", 0))
    for level, name, value in one.get("options", []):
        s.setsockopt(level, name, bytes.fromhex(value) if isinstance(value, str) else value)
    if "address" in one:
        s.bind(one["address"] if isinstance(one["address"], str) else tuple(one["address"]))
    if "backlog" in one:
        s.listen(one["backlog"])
    if "peer" in one:
        s.connect(tuple(one["peer"]))
    s.setblocking(not one.get("nonblocking", False))
    made.append((one["numbers"], fcntl.fcntl(s.detach(), fcntl.F_DUPFD_CLOEXEC, 700)))
for numbers, fd in made:
    for number in numbers:
        os.dup2(fd, number, inheritable=True)
names = {"LISTEN_PID": str(os.getpid())}
os.environ.update({key: names.get(key, "") if value is None else value for key, value in plan.get("told", {}).items()})
os.execv(sys.argv[2], sys.argv[2:])
"""
# Prints what it has under the numbers, then answers at each with the peer's name: until it is ended, or at once not.
SERVER = """
import json, os, select, socket, struct, sys
asked = json.loads(sys.argv[1])
found = {}
sockets = []
for number, options in asked["numbers"].items():
    s = socket.socket(fileno=int(number))
    one = {"family": s.family, "type": s.type & 15, "protocol": s.proto, "name": s.getsockname(),
           "inheritable": os.get_inheritable(s.fileno()), "blocking": os.get_blocking(s.fileno()),
           "options": [s.getsockopt(level, name, 64).hex() for level, name in options]}
    if one["type"] == socket.SOCK_STREAM:
        one["listens"] = s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        one["backlog"] = struct.unpack_from("I", s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28)[0]
    found[number] = one
    sockets.append(s)
found["told"] = {key: value for key, value in os.environ.items() if key.startswith("LISTEN_") and key != "LISTEN_PID"}
found["mine"] = os.environ.get("LISTEN_PID") == str(os.getpid())
found["same"] = len({os.fstat(int(number)).st_ino for number in asked["numbers"]})
print(json.dumps(found), flush=True)
while asked["serve"]:
    for s in select.select(sockets, [], [])[0]:
        if s.type & 15 == socket.SOCK_DGRAM:
            try:
                data, peer = s.recvfrom(100)
            except ConnectionResetError:  # of an INS that died
                sockets.remove(s)
                continue
            s.sendto(peer[0].encode(), peer)
        else:
            c, peer = s.accept()
            c.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + peer[0].encode())
            c.close()
"""
PYTHON = "/usr/bin/python3"
TCP6 = {"family": socket.AF_INET6, "options": [[socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1]]}
DUAL = {"family": socket.AF_INET6, "options": [[socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0]]}
SO_REUSEPORT, SO_PRIORITY, IP_FREEBIND, IPV6_FREEBIND, TCP_FASTOPEN = 15, 12, 15, 78, 23


def listener(number, port, address="0.0.0.0", backlog=5, **more) -> dict:
    return {"numbers": [number], "address": [address, port], "backlog": backlog, **more}


def datagrams(number, port, address="0.0.0.0") -> dict:
    return {"numbers": [number], "type": socket.SOCK_DGRAM, "address": [address, port]}


def started(sockets: list, words: list, **told) -> list:
    """The command, with these sockets under their numbers and these variables; None: what the pid is."""
    return [PYTHON, "-c", STARTER, json.dumps({"sockets": sockets, "told": told}), *map(str, words)]


def server_of(sockets: list, serve: bool = True, numbers: dict = None) -> list:
    asked = numbers or {number: [[level, name] for level, name, _ in one.get("options", [])]
                        for one in sockets for number in one["numbers"]}
    return [PYTHON, "-c", SERVER, json.dumps({"numbers": asked, "serve": serve})]


def run_with(mw, sockets, words, net="isolated", seconds=60, **told):
    return proc.run(started(sockets, [mw, "run", "--net", net, "--", *words], **told), seconds, check=False)


@pytest.fixture
def passed(mw, unchanged, tmp_path):
    """passed(sockets, net, server, told) -> the session, and what its program says of its sockets."""
    sessions = []

    def begin(sockets, net="isolated", command=None, **told):
        words = started(sockets, [mw, "run", "--net", net, "--", *(command or server_of(sockets))], **told)
        background = proc.Background(words, tmp_path / f"passed{len(sessions)}.log")
        sessions.append(background)
        return Session(background)

    yield begin
    for background in sessions:
        background.stop()


def said_by(session) -> dict:
    def line():
        lines = [one for one in session.background.tail().splitlines() if one.startswith("{")]
        return json.loads(lines[-1]) if lines else None
    return proc.wait_for(line, 60, "the program's sockets", session.background)


def answer(port: int, host: str = "127.0.0.1") -> str:
    """What the server says, which is who it takes us for."""
    with socket.create_connection((host, port), 60) as client:
        return b"".join(iter(lambda: client.recv(100), b"")).decode().rpartition("\n")[2]


ALIKE = [
    {"numbers": [3], "address": ["0.0.0.0", 18201], "backlog": 17, "nonblocking": True, "options": [
        [socket.SOL_SOCKET, socket.SO_REUSEADDR, 1], [socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1],
        [socket.SOL_SOCKET, socket.SO_RCVBUF, 30000], [socket.SOL_SOCKET, socket.SO_SNDBUF, 50000],
        [socket.SOL_SOCKET, socket.SO_LINGER, "0100000009000000"], [socket.IPPROTO_TCP, socket.TCP_NODELAY, 1],
        [socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 3], [socket.IPPROTO_TCP, TCP_FASTOPEN, 20],
        [socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 123], [socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4],
        [socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000], [socket.IPPROTO_IP, socket.IP_TOS, 16],
        [socket.SOL_SOCKET, SO_PRIORITY, 3], [socket.IPPROTO_IP, socket.IP_TTL, 33],
        [socket.IPPROTO_IP, IP_FREEBIND, 1]]},
    {"numbers": [4], "family": socket.AF_INET6, "address": ["::", 18202], "backlog": 4096, "options": [
        [socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1], [socket.SOL_SOCKET, SO_REUSEPORT, 1],
        [socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 32], [socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 5]]},
    {"numbers": [5], "type": socket.SOCK_DGRAM, "address": ["0.0.0.0", 18203], "options": [
        [socket.SOL_SOCKET, socket.SO_BROADCAST, 1], [socket.SOL_SOCKET, socket.SO_RCVBUF, 100000],
        [socket.IPPROTO_IP, 8, 1]]},
    {"numbers": [6], "type": socket.SOCK_DGRAM, "family": socket.AF_INET6, "address": ["::", 18204],
     "nonblocking": True, "options": [
         [socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0], [socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1]]},
    {"numbers": [17], "options": [[socket.SOL_SOCKET, socket.SO_REUSEADDR, 1]]},
    {"numbers": [600], "type": socket.SOCK_DGRAM},
]


@pytest.mark.parametrize("net", ["isolated", "host"])
def test_a_socket_of_the_ins_is_like_the_one_that_was_passed(mw, unchanged, net):
    """Name, options, backlog, flags, numbers; what systemd says beside; and the pid that it says it to."""
    told = {"LISTEN_PID": None, "LISTEN_FDS": "4", "LISTEN_FDNAMES": "http:https:dns:dns6"}
    native = proc.run(started(ALIKE, server_of(ALIKE, False), **told), 60)
    ours = run_with(mw, ALIKE, server_of(ALIKE, False), net, **told)
    assert ours.returncode == 0, ours.stderr.decode()
    said = json.loads(ours.stdout)
    assert said == json.loads(native.stdout)
    assert said["mine"] and said["same"] == len(ALIKE)
    for one in ALIKE:
        assert f"mw: took over descriptor {one['numbers'][0]}, ".encode() in ours.stderr


def test_it_serves_whom_the_hosts_socket_would_have_served(mw, passed, visitor):
    """By the INS: from the network it is reached as before, by the family that it had, and knows its peers."""
    reused = [[socket.SOL_SOCKET, socket.SO_REUSEADDR, 1]]  # as systemd has it
    sockets = [listener(3, 18211, options=reused), listener(4, 18212, "::", **TCP6), listener(5, 18213, "::", **DUAL),
               datagrams(6, 18214), listener(7, 18215, visitor.HOST4), listener(8, 18216, "127.0.0.1"),
               listener(9, 18217, visitor.HOST6, **TCP6)]
    session = passed(sockets)
    said_by(session)

    def reached(host, port):
        return visitor.curl(f"http://{host}:{port}/", 10, check=False).stdout.decode().strip()

    v4, v6 = visitor.HOST4, f"[{visitor.HOST6}]"
    expected = {(v4, 18211): visitor.OWN4, (v6, 18211): "", (v4, 18212): "", (v6, 18212): visitor.OWN6,
                (v4, 18213): f"::ffff:{visitor.OWN4}", (v6, 18213): visitor.OWN6, (v4, 18215): visitor.OWN4,
                (v6, 18215): "", (v4, 18216): "", (v6, 18217): visitor.OWN6}
    assert {way: reached(*way) for way in expected} == expected
    assert answer(18211) == answer(18216) == session.refresh()["host4"]
    asks = ("import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(20)\n"
            f"s.sendto(b'x', ('{v4}', 18214))\nprint(s.recv(100).decode())")
    assert visitor.run(PYTHON, "-c", asks).stdout.decode().strip() == visitor.OWN4
    published = json.loads(proc.run([mw, "ps", "--json", session.name], 20).stdout)["sessions"][0]["published"]
    assert [(p["host"], p["port"], p["ins_port"], p["protocol"]) for p in published[:4]] == [
        ("0.0.0.0", 18211, 18211, "tcp"), ("::", 18212, 18212, "tcp"), ("", 18213, 18213, "tcp"),
        ("0.0.0.0", 18214, 18214, "udp")]
    # They are any other listeners of the session.
    for who in HELPERS:
        old = session.pid(who)
        os.kill(old, signal.SIGKILL)
        proc.wait_for(lambda: session.pid(who) not in (0, old) and session.alive(who), 60, "a successor",
                      session.background)
        assert proc.wait_for(lambda: reached(v4, 18211), 60, "an answer", session.background) == visitor.OWN4


def test_on_the_hosts_network_the_ins_has_the_address(mw, passed):
    sockets = [listener(3, 18221, "127.0.0.1"), datagrams(4, 18222, "127.0.0.1"), listener(5, 18223, "::1", **TCP6)]
    session = passed(sockets, "host")
    assert said_by(session)["3"]["name"] == ["127.0.0.1", 18221]
    assert answer(18221) == "127.0.0.1" and answer(18223, "::1") == "::1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(60)
        client.sendto(b"x", ("127.0.0.1", 18222))
        assert client.recv(100) == b"127.0.0.1"


def test_the_port_of_the_host_stays_taken_and_refuses(mw, passed):
    """What no rule leads to the INS is reset at once, by whatever front end the session has."""
    session = passed([listener(3, 18231, "::", **DUAL)])
    said_by(session)

    def assert_held():
        with socket.socket() as other, pytest.raises(OSError):
            other.bind(("0.0.0.0", 18231))
        with socket.create_connection(("::1", 18231), 60) as client, pytest.raises(ConnectionResetError):
            client.recv(1)
        assert answer(18231).endswith(session.refresh()["host4"])

    assert_held()
    session.adopted(session.lose_front_end())
    assert_held()
    session.end()


def test_what_waited_is_refused_and_told(mw, unchanged, tmp_path):
    """The connection or datagram that activated the server, say."""
    with socket.create_server(("0.0.0.0", 18241)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("0.0.0.0", 18242))
        clients = [socket.create_connection(("127.0.0.1", 18241)) for _ in range(3)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(2):
                sender.sendto(b"x", ("127.0.0.1", 18242))
        os.set_inheritable(tcp.fileno(), True)
        os.set_inheritable(udp.fileno(), True)
        done = proc.run([mw, "run", "--", "true"], 60)
        assert b"mw: 3 connections that waited at 0.0.0.0:18241 were reset" in done.stderr
        assert b"mw: 2 datagrams that waited at 0.0.0.0:18242 were dropped" in done.stderr
        for client in clients:
            with client, pytest.raises(ConnectionResetError):
                client.recv(1)
        # Whoever has the host's socket still has it as it was.
        with socket.create_connection(("127.0.0.1", 18241)):
            tcp.settimeout(60)
            tcp.accept()[0].close()
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def test_what_was_accepted_before_goes_on(mw, passed):
    """By whoever had the socket then, through the stack of the host."""
    with socket.create_server(("0.0.0.0", 18245)) as server, socket.create_connection(("127.0.0.1", 18245)) as client:
        accepted = server.accept()[0]
        os.set_inheritable(server.fileno(), True)
        session = passed([], command=server_of([], numbers={server.fileno(): []}))
        said_by(session)
        with accepted:
            for one, other in ((client, accepted), (accepted, client)):
                one.sendall(b"x")
                other.settimeout(60)
                assert other.recv(1) == b"x"
        assert answer(18245) == session.refresh()["host4"]


def test_who_keeps_a_socket_open_keeps_the_ins_off_the_hosts_network(mw, unchanged):
    """As systemd does; isolated that is no obstacle (above)."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as kept:
            kept.setsockopt(socket.SOL_SOCKET, SO_REUSEPORT, 1)  # with it, both could have the address
            kept.bind(("127.0.0.1", 18251))
            if kind == socket.SOCK_STREAM:
                kept.listen()
            os.set_inheritable(kept.fileno(), True)
            done = proc.run([mw, "run", "--net", "host", "--", "true"], 60, check=False)
        assert done.returncode == 125
        protocol = b"tcp" if kind == socket.SOCK_STREAM else b"udp"
        assert b"127.0.0.1:18251/" + protocol + b": its address is still in use" in done.stderr


def test_sockets_that_share_a_port_go_on_sharing(mw, passed):
    options = [[socket.SOL_SOCKET, SO_REUSEPORT, 1]]
    session = passed([listener(n, 18255, options=options) for n in (3, 4, 5)])
    assert said_by(session)["same"] == 3
    for _ in range(20):
        assert answer(18255) == session.refresh()["host4"]


def test_one_socket_under_three_numbers(mw, passed, tmp_path):
    """inetd's wait, with datagrams: it writes to what it reads from."""
    told = tmp_path / "told"
    program = ("import os, socket, sys\n"
               f"open({str(told)!r}, 'w').write(str(len({{os.fstat(n).st_ino for n in range(3)}})))\n"
               "s = socket.socket(fileno=0)\nwhile True:\n    data, peer = s.recvfrom(9)\n"
               "    socket.socket(fileno=os.dup(1)).sendto(data * 2, peer)")
    sockets = [{"numbers": [0, 1, 2], "type": socket.SOCK_DGRAM, "address": ["0.0.0.0", 18261]}]
    passed(sockets, command=[PYTHON, "-c", program])

    def echoed():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(1)
            client.sendto(b"x", ("127.0.0.1", 18261))
            try:
                return client.recv(9)
            except (TimeoutError, ConnectionRefusedError):
                return b""
    assert proc.wait_for(echoed, 60, "an answer") == b"xx"
    assert told.read_text() == "1"


def test_it_passes_through_shells_and_execs(mw, passed):
    sockets = [listener(3, 18265), listener(8, 18266)]
    session = passed(sockets, command=["/bin/sh", "-c", "true; exec env X=1 \"$@\"", "sh", *server_of(sockets)])
    assert said_by(session)["8"]["listens"] == 1
    assert answer(18265) == answer(18266) == session.refresh()["host4"]
    assert proc.run([mw, "flows", "-s", session.name], 20).stdout.count(b"python3") >= 2


def test_nginx_takes_the_listeners_of_its_predecessor(mw, passed, tmp_path):
    (tmp_path / "page").mkdir(mode=0o755)
    (tmp_path / "page/index.html").write_text("page\n")
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; user root; pid {tmp_path}/pid; error_log {tmp_path}/error; events {{}}\n"
        f"http {{ access_log off; server {{ listen 18271; listen [::]:18272; root {tmp_path}/page; }} }}")
    sockets = [listener(11, 18271, backlog=511, nonblocking=True),
               listener(12, 18272, "::", 511, nonblocking=True, **TCP6)]
    session = passed(sockets, command=["/usr/sbin/nginx", "-c", tmp_path / "nginx.conf"], NGINX="11;12;")

    def page():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", 18271), 60) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: client.recv(1000), b""))
        return b""
    assert proc.wait_for(page, 60, "nginx serves").endswith(b"page\n")
    assert "using inherited sockets from" in session.background.tail()
    assert "bind()" not in session.background.tail() + (tmp_path / "error").read_text()


@pytest.mark.parametrize("net", ["isolated", "host"])
def test_socket_activation_by_systemd(mw, unchanged, tmp_path, net):
    """It starts the program when the first connection comes."""
    tool = shutil.which("systemd-socket-activate")
    if tool is None:
        pytest.skip("systemd-socket-activate is not installed")
    numbers = {3: [], 4: []}
    words = [tool, "-l", "0.0.0.0:18281", "-l", "[::]:18282", "--fdname", "a:b", mw, "run", "--net", net, "--",
             *server_of([], numbers=numbers)]
    with proc.Background(words, tmp_path / "log") as background:
        proc.wait_for(lambda: "Listening on" in background.tail(), 60, "it listens", background)

        def answered():
            try:
                return answer(18281)
            except OSError:
                return ""
        proc.wait_for(answered, 60, "an answer", background)
        said = next(json.loads(line) for line in background.tail().splitlines() if line.startswith("{"))
        assert said["mine"] and said["told"] == {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
        assert "that waited at 0.0.0.0:18281 w" in background.tail()


@pytest.mark.parametrize("told", [
    {"LISTEN_FDS": "nonsense"}, {"LISTEN_FDS": "-1"}, {"LISTEN_FDS": "9" * 20}, {"LISTEN_FDS": "2"},
    {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "nonsense"}], ids=str)
def test_what_is_said_of_the_sockets_is_the_programs_to_judge(mw, unchanged, told):
    """A count that is none, a number without a socket: what counts is what is there."""
    sockets = [listener(3, 18285)]
    told = {"LISTEN_PID": None, **told}
    native = proc.run(started(sockets, server_of(sockets, False), **told), 60)
    ours = run_with(mw, sockets, server_of(sockets, False), **told)
    assert ours.returncode == 0, ours.stderr.decode()
    assert json.loads(ours.stdout) == json.loads(native.stdout)


TELLS = ("import os, socket\nprint(os.environ['LISTEN_PID'] == str(os.getpid()), os.environ['LISTEN_FDS'], "
         "socket.socket(fileno=3).getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))")


def test_a_local_listener_is_passed_on(mw, unchanged, tmp_path):
    local = {"numbers": [3], "family": socket.AF_UNIX, "address": str(tmp_path / "path"), "backlog": 1}
    netlink = {"numbers": [9], "family": socket.AF_NETLINK, "type": socket.SOCK_RAW}
    done = run_with(mw, [local, netlink], [PYTHON, "-c", TELLS], LISTEN_PID=None, LISTEN_FDS="1")
    assert done.stdout == b"True 1 1\n", done.stderr.decode()
    assert b"took over" not in done.stderr


REFUSED = {
    "raw": ([{"numbers": [3], "type": socket.SOCK_RAW, "protocol": 1}], "raw socket", "isolated"),
    "packet": ([{"numbers": [3], "family": socket.AF_PACKET, "type": socket.SOCK_DGRAM}], "family of addresses",
               "host"),
    "ping": ([{"numbers": [3], "type": socket.SOCK_DGRAM, "protocol": 1}], "its protocol", "isolated"),
    "mptcp": ([listener(3, 18291, protocol=262)], "its protocol", "isolated"),
    "loopback": ([listener(3, 18292, "::1", **TCP6)], "::1", "isolated"),
    "device": ([listener(3, 18293, options=[[socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo".hex()]])], "interface",
               "isolated"),
    "multicast": ([datagrams(3, 18294, "224.0.0.251")], "multicast", "host"),
    "broadcast": ([datagrams(3, 18294, "255.255.255.255")], "broadcast",
                  "isolated"),
    "broadcast of a network": ([datagrams(3, 18294, "192.0.2.255")], "broadcast", "isolated"),
    "link": ([{"numbers": [3], "family": socket.AF_INET6, "address": ["fe80::1", 18294, 0, 1], "backlog": 1,
               "options": [[socket.IPPROTO_IPV6, IPV6_FREEBIND, 1]]}], "address of a link", "isolated"),
    "transparent": ([listener(3, 18295, options=[[socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1]])], "IP_TRANSPARENT",
                    "isolated"),
    "two addresses": ([listener(4, 18296, "127.0.0.1"), listener(3, 18296, "127.0.0.2")], "one address for both",
                      "isolated"),
    "many": ([listener(n, 20000 + n, "127.0.0.1") for n in range(3, 303)], "at most", "isolated"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_over_is_refused(mw, unchanged, tmp_path, case):
    """With one sentence, and nothing runs."""
    sockets, reason, net = REFUSED[case]
    if case == "ping":
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
    try:
        done = run_with(mw, sockets, ["touch", tmp_path / "ran"], net)
    finally:
        if case == "ping":
            Path("/proc/sys/net/ipv4/ping_group_range").write_text("1 0")
    assert done.returncode == 125, done.stderr.decode()
    refusal = next(line for line in done.stderr.decode().splitlines() if line.startswith("mw: cannot "))
    assert reason in refusal
    assert case == "many" or "descriptor 3" in refusal or "descriptor 4" in refusal
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("number", [0, 1, 3, 7])
@pytest.mark.parametrize("net", ["isolated", "host"])
def test_a_connection_is_refused(mw, unchanged, tmp_path, net, number):
    """inetd's nowait, systemd's Accept=yes: it stands in the host's stack, and cannot change to another one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sockets = [{"numbers": [number], "peer": server.getsockname()}]
        done = run_with(mw, sockets, ["touch", tmp_path / "ran"], net)
    assert done.returncode == 125
    assert f"mw: cannot take over descriptor {number}, 127.0.0.1:".encode() in done.stderr
    assert b"it is a connection" in done.stderr and not (tmp_path / "ran").exists()


def test_a_socket_of_another_network_is_refused(mw, unchanged, namespace, tmp_path):
    """Where it listens is not where the session would publish."""
    words = ["nsenter", f"--net=/proc/{os.getpid()}/ns/net", mw, "run", "--", "touch", tmp_path / "ran"]
    words[0] = shutil.which("nsenter")
    done = proc.run(namespace.wrap(started([listener(3, 18297)], words)), 60, check=False)
    assert done.returncode == 125
    assert b"descriptor 3, 0.0.0.0:18297/tcp: it belongs to another network namespace" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_program_that_runs_uncovered_gets_none(mw, unchanged):
    words = [mw, "run", "--allow-uncovered", "--", "/sbin/ldconfig", "-p"]
    done = proc.run(started([listener(3, 18298)], words), 60, check=False)
    assert done.returncode == 125 and b"runs uncovered" in done.stderr


def test_without_root_the_ins_of_the_same_user_takes_them(mw, unchanged, tmp_path):
    """A low port it cannot have, which is said."""
    open_to_others(tmp_path)
    own = copy_of_the_build(mw, tmp_path / "own")
    open_to_others(tmp_path / "own/bin")
    open_to_others(tmp_path / "own/lib")

    def run_as_nobody(port):
        words = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", own, "run", "--",
                 *server_of([], False, {3: []})]
        return proc.run(started([listener(3, port, "127.0.0.1")], words), 60, check=False,
                        env={**os.environ, "XDG_RUNTIME_DIR": ""})
    done = run_as_nobody(18299)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["3"]["name"] == ["127.0.0.1", 18299]
    done = run_as_nobody(81)
    assert done.returncode == 125 and b"ip_unprivileged_port_start" in done.stderr
