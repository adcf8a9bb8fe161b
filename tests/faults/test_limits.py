"""Out of descriptors, memory or disk: the errno that the kernel would give, or one clear sentence.

Nothing else breaks, and when there is room again everything goes on.
"""

import json
import os
import resource
import socket
from pathlib import Path

import pytest

from mwtest import proc

PUPPET = Path(__file__).parent / "puppet.py"
PORT = 7000
SECONDS = 120
HEARTBEATS = 8
# Processor time that a process may use in a second in which it has nothing to do.
IDLE = 0.2


class Puppet:
    """A protected program that evaluates expressions."""

    def __init__(self, session, path: Path) -> None:
        self.session = session
        self._path = str(path)
        proc.wait_for(path.exists, 60, "the puppet listens", session.background)

    def __call__(self, expression: str):
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(SECONDS)
            control.connect(self._path)
            control.sendall(expression.encode() + b"\n")
            answer = b""
            while chunk := control.recv(65536):
                answer += chunk
        return json.loads(answer)

    def log(self) -> str:
        return self.session.background.tail(1000)


@pytest.fixture
def begin(start, tmp_path):
    """begin(...) -> a Puppet whose echo answers on PORT; takes what start() takes."""
    def one(**options) -> Puppet:
        path = tmp_path / "control"
        session = start("-p", f"{PORT}:{PORT}", "--", "/usr/bin/python3", str(PUPPET), str(path), **options)
        puppet = Puppet(session, path)
        puppet(f"echo({PORT})")
        proc.wait_for(echoes, 60, "an echo", session.background)
        return puppet
    return one


def echoes(text: bytes = b"hello") -> bool:
    """Whether the published echo answers."""
    try:
        with socket.create_connection(("127.0.0.1", PORT), 5) as client:
            client.settimeout(5)
            client.sendall(text)
            return client.recv(100) == text
    except OSError:
        return False


def descriptors(pid: int) -> list:
    return [int(name) for name in os.listdir(f"/proc/{pid}/fd")]


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rests(pid: int) -> bool:
    before = processor_seconds(pid)
    try:
        proc.wait_for(lambda: False, 1, "a second")
    except AssertionError:
        pass  # it is over
    return processor_seconds(pid) - before < IDLE


# -- descriptors


def test_the_application_is_out_of_descriptors(unchanged, begin):
    puppet = begin()
    puppet("limit_files(40)")
    taken, why = puppet("take(100)")
    assert why == "EMFILE" and 0 < taken < 40
    assert puppet("take(1, 'AF_INET6', 'SOCK_DGRAM')") == [0, "EMFILE"]
    assert puppet("drop()") == taken
    assert echoes()
    assert puppet("take(100)") == [taken, "EMFILE"], "a descriptor has leaked"


def test_the_ins_is_out_of_descriptors(unchanged, begin):
    # A socket takes one descriptor of the application and two of the INS.
    puppet = begin(limits="-n 80")
    ins = puppet.session.pid("ins")
    taken, why = puppet("take(100)")
    assert why == "ENFILE" and taken > 0, "as when the system has no more files"
    assert puppet("take(1, 'AF_INET6', 'SOCK_DGRAM')") == [0, "ENFILE"]
    # Whoever connects now waits in the kernel's queue, or is reset; the INS does not spin over it.
    with socket.create_connection(("127.0.0.1", PORT), 60) as waiting:
        waiting.settimeout(60)
        reset = []  # it may get the last descriptor, when there is none for its other half
        try:
            waiting.sendall(b"patience")
        except ConnectionResetError as told:
            reset.append(told)
        assert rests(ins)
        assert puppet("drop()") == taken
        try:
            assert reset or waiting.recv(100) == b"patience"
        except ConnectionResetError:
            pass
    proc.wait_for(echoes, 60, "an echo", puppet.session.background)
    proc.wait_for(lambda: puppet(f"take({taken})") == [taken, None] or not puppet("drop()") >= 0, 60,
                  "as many as before: none has leaked")
    assert puppet.session.pid("ins") == ins, "the INS lives on"


def test_the_driver_is_out_of_descriptors(unchanged, begin):
    puppet = begin()
    driver = puppet.session.pid("driver")
    before = resource.prlimit(driver, resource.RLIMIT_NOFILE)
    used = {int(number) for number in os.listdir(f"/proc/{driver}/fd")}
    full = min(set(range(len(used) + 1)) - used)  # the limit is on numbers, and there may be gaps
    resource.prlimit(driver, resource.RLIMIT_NOFILE, (full, before[1]))
    assert echoes(), "what runs goes on"
    assert puppet("take(10)") == [10, None]
    child = ["/usr/bin/python3", "-c", "import socket\nsocket.socket()"]
    expression = f"__import__('subprocess').run({child!r}, capture_output=True, text=True).stderr"
    refused = puppet(expression)
    assert "Network is down" in refused and refused.count("mwshim: ") == 1, refused
    assert rests(driver)
    resource.prlimit(driver, resource.RLIMIT_NOFILE, before)
    assert puppet(expression) == ""
    assert puppet("in_child(take, 3)") == [3, None]
    assert echoes()
    assert puppet.session.pid("driver") == driver, "the driver lives on"


@pytest.mark.parametrize("limit", [4, 8, 12, 16, 20, 24, *range(26, 46)])
def test_mw_is_out_of_descriptors(mw, unchanged, limit):
    script = f"ulimit -n {limit}; exec {mw} run -p 18193:80 -- true"
    done = proc.run(["bash", "-c", script], SECONDS, check=False)
    assert done.returncode in (0, 125), done.stderr.decode()
    assert done.returncode == 0 or b"mw: cannot " in done.stderr


# -- memory


@pytest.mark.parametrize(("limit", "reason"), [("-v 2000000", "Cannot allocate memory"),
                                               ("-f 100", "File too large")])
def test_no_memory_for_a_session(mw, unchanged, limit, reason):
    done = proc.run(["bash", "-c", f"ulimit {limit}; exec {mw} run -- true"], SECONDS, check=False)
    assert done.returncode == 125
    assert done.stderr.decode().startswith("mw: cannot make the session's shared memory: ")
    assert reason in done.stderr.decode() and len(done.stderr.splitlines()) == 1


def test_no_memory_for_the_session_in_the_application(mw, unchanged):
    script = ("import resource, socket\n"
              "size = next(line for line in open('/proc/self/status') if line.startswith('VmSize'))\n"
              "resource.setrlimit(resource.RLIMIT_AS, (int(size.split()[1]) << 10, resource.RLIM_INFINITY))\n"
              "for _ in range(3):\n try: socket.socket()\n except OSError as e: print(e.errno)\n"
              "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
              "print(int(socket.socket().type))")
    done = proc.run([mw, "run", "--", "/usr/bin/python3", "-c", script], SECONDS)
    assert done.stdout == b"100\n" * 3 + b"1\n", "ENETDOWN until there is memory"
    said = [line for line in done.stderr.decode().splitlines() if line.startswith("mwshim: ")]
    assert said == ["mwshim: the session's memory cannot be mapped; network sockets fail with ENETDOWN. "
                    "Raise the limit of address space (RLIMIT_AS, ulimit -v)."]


# -- disk


@pytest.fixture
def registry(mw):
    """registry(options) mounts another file system where the registry is."""
    mounted = []

    def mount(options: str) -> None:
        proc.run(["mount", "-t", "tmpfs", "-o", f"mode=755,{options}", "small", "/run/mwcomms"], 60)
        mounted.append(options)

    yield mount
    for _ in mounted:
        proc.run(["umount", "/run/mwcomms"], 60)


@pytest.mark.parametrize(("options", "reason"), [
    ("ro", "Read-only file system"), ("nr_inodes=1", "No space left on device"),
    ("nr_inodes=3", "No space left on device"), ("nr_inodes=5", "No space left on device")])
def test_no_room_for_the_registry(mw, unchanged, registry, options, reason):
    registry(options)
    done = proc.run([mw, "run", "--", "true"], SECONDS, check=False)
    text = done.stderr.decode()
    assert done.returncode == 125, text
    assert text.startswith("mw: cannot ") and reason in text
    assert "it must be writable by you and have room" in text
    assert [name for name in os.listdir("/run/mwcomms") if name != "lock"] == []


def test_a_disk_that_fills_up_ends_nothing(mw, unchanged, registry, begin):
    registry("size=1m")
    puppet = begin()
    ins, beat = puppet.session.pid("ins"), Path(f"/run/mwcomms/{puppet.session.name}/mw")
    filler = Path("/run/mwcomms/filler")
    with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    # Longer than an INS that has stopped may stay.
    heartbeats = beat / puppet.session.record["ins_id"] / "heartbeat"
    for _ in range(HEARTBEATS):
        old = heartbeats.read_text()
        proc.wait_for(lambda: heartbeats.read_text() != old, 60, "a heartbeat", puppet.session.background)
    assert echoes()
    assert puppet("in_child(take, 5)") == [5, None], "another process joins the session"
    assert puppet.session.background.alive() and processor_seconds(ins) >= 0
    filler.unlink()
    assert echoes()
    assert puppet.session.pid("ins") == ins
