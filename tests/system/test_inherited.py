"""What the caller of `mw run` has open or in its environment: the application gets it, the session's helpers do not,
whoever starts them, and what the application and the caller have closed is closed."""

import fcntl
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from mwtest import proc
from mwtest.session import gone

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


# -- sockets that somebody else listens on

ACTIVATES = ("import os, socket, sys\nkind = sys.argv[1]\n"
             "s = socket.socket(socket.AF_UNIX) if kind == 'unix' else "
             "socket.socket(socket.AF_INET6 if kind == 'tcp6' else socket.AF_INET, "
             "socket.SOCK_DGRAM if kind == 'udp' else socket.SOCK_STREAM)\n"
             "s.bind(sys.argv[2] if kind == 'unix' else ('::1' if kind == 'tcp6' else '127.0.0.1', 0))\n"
             "kind != 'udp' and s.listen()\n"
             "number = int(sys.argv[3])\nos.dup2(os.dup2(s.fileno(), 50, inheritable=False), number, inheritable=True)\n"
             "if number == 3: os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
             "os.execv(sys.argv[4], sys.argv[4:])")
TELLS = ("import os, socket\nprint(os.environ['LISTEN_PID'] == str(os.getpid()), os.environ['LISTEN_FDS'], "
         "socket.socket(fileno=3).getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))")


@pytest.mark.parametrize(("kind", "number"), [("tcp", 3), ("tcp6", 3), ("udp", 3), ("tcp", 7), ("tcp", 0)])
def test_a_listener_of_the_host_is_refused(mw, unchanged, tmp_path, kind, number):
    """systemd's socket activation, a descriptor that just is there, inetd."""
    done = proc.run(["/usr/bin/python3", "-c", ACTIVATES, kind, tmp_path / "path", number, mw, "run", "--net", "host", "--",
                     "true"], 60, check=False)
    assert done.returncode == 125
    assert f"mw: cannot take over descriptor {number}, ".encode() in done.stderr and b"-p" in done.stderr


def test_a_local_listener_is_passed_on(mw, unchanged, tmp_path):
    done = proc.run(["/usr/bin/python3", "-c", ACTIVATES, "unix", tmp_path / "path", 3, mw, "run", "--net", "host", "--",
                     "/usr/bin/python3", "-c", TELLS], 60)
    assert done.stdout == b"True 1 1\n"
