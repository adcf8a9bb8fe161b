"""Private network namespaces that never outlive their test.

A namespace's name carries the pid of the test run that made it, so that leftovers of a killed run
are recognised and removed by sweep() at the next start, and those of a running one are not.
"""

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
from pathlib import Path

_PREFIX = "mwt"
_CLONE_NEWNET = 0x40000000
_IP_SECONDS = 120  # a bound for a hang; removing a namespace waits for the kernel
_libc = ctypes.CDLL(None, use_errno=True)
_counter = itertools.count()


def ip(*words: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True,
                          timeout=_IP_SECONDS)
    if check and done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()} (root is needed)")
    return done.stdout


def _with_descendants(pids: list) -> list:
    """A stack of `mw run` lives in a network namespace of its own."""
    found = list(pids)
    for pid in found:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the listing and here
        found += [child for child in children if child not in found]
    return found


def remove(name: str) -> None:
    """Kills what runs inside, with what it started, and deletes it."""
    for pid in _with_descendants(ip("netns", "pids", name, check=False).split()):
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended between the listing and here
    ip("netns", "delete", name, check=False)


def sweep() -> list:
    """Removes the namespaces of test runs that are no longer alive; returns their names."""
    removed = []
    for line in ip("netns", "list").splitlines():
        name = line.split()[0]
        owner = name[len(_PREFIX):].partition("-")[0]
        if name.startswith(_PREFIX) and owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            remove(name)
            removed.append(name)
    return removed


class Namespace:
    """A new network namespace with its loopback up; a context manager."""

    def __init__(self) -> None:
        self.name = f"{_PREFIX}{os.getpid()}-{next(_counter)}"

    def __enter__(self) -> "Namespace":
        ip("netns", "add", self.name)
        ip("-n", self.name, "link", "set", "lo", "up")
        # An INS on its caller's network has no capability: the namespace must let it have port 80.
        with self.entered():
            Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
        return self

    def __exit__(self, *_) -> None:
        remove(self.name)

    def wrap(self, command: list) -> list:
        """The command, started inside."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *[str(word) for word in command]]

    @contextlib.contextmanager
    def entered(self):
        """The calling thread makes its sockets inside, until the block ends."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        inside = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(inside)
            yield self
        finally:
            _enter(outside)
            os.close(inside)
            os.close(outside)


class EphemeralPorts:
    """Makes the kernel take the ephemeral ports of a namespace from one window after the other.

    Otherwise two sockets of different families, protocols or peers may get the same number by
    chance, or one socket the number that another had, and a test that tells sockets by their port
    sees one where there are two.
    """

    _FIRST, _LAST, _WIDTH = 20000, 59999, 100

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():
            # The file keeps to the namespace in which it was opened.
            self._file = os.open("/proc/sys/net/ipv4/ip_local_port_range",
                                 os.O_WRONLY | os.O_CLOEXEC)
        self._next = self._FIRST

    def advance(self) -> None:
        """Ports that are taken from now on differ from all that were taken before."""
        last = self._next + self._WIDTH - 1
        if last > self._LAST:
            raise RuntimeError("more windows of ephemeral ports than there are")
        os.pwrite(self._file, f"{self._next} {last}".encode(), 0)
        self._next += self._WIDTH

    def close(self) -> None:
        os.close(self._file)


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
