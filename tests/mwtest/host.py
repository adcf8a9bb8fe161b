"""A host of a test's own: network, packet filter, namespaces and session registry.

What else runs on the machine neither disturbs the tests that watch the host's state nor is
disturbed by them. Only the calling thread lives there, with the threads and processes it starts.
"""

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path

from . import build, netns

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_BOUND = 60
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what} (root is needed)")


def _run(*words: str) -> None:
    subprocess.run(words, check=True, timeout=_BOUND)


ADDRESS = build.HOST


@contextlib.contextmanager
def own_host(network: int = None):
    """Enters a new host with a loopback and one interface that leads nowhere; leaves it again.

    `network` is a descriptor of the network namespace to use instead of a new one."""
    kept = [os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            for kind in ("net", "mnt")]
    folder = os.open(".", os.O_PATH | os.O_CLOEXEC)
    if network is None:
        _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET), "unshare")
    else:
        _check(_libc.unshare(_CLONE_NEWNS), "unshare")
        _check(_libc.setns(network, _CLONE_NEWNET), "setns")
    try:
        _run("mount", "--make-rprivate", "/")
        for path in ("/run/mwcomms", "/run/netns"):
            Path(path).mkdir(mode=0o755, exist_ok=True)
            _run("mount", "-t", "tmpfs", "-o", "mode=755", "own-host", path)
        _run("mount", "-t", "sysfs", "own-host", "/sys")  # shows the interfaces of this network only
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "outside", "type", "veth", "peer", "name", "nowhere")
        _run("ip", "address", "add", f"{ADDRESS}/24", "dev", "outside")
        for link in ("outside", "nowhere"):
            _run("ip", "link", "set", link, "up")
        _run("ip", "route", "add", "default", "via", "192.0.2.1")
        yield
    finally:
        for fd, kind in zip(kept, (_CLONE_NEWNET, _CLONE_NEWNS)):
            _check(_libc.setns(fd, kind), "setns")
            os.close(fd)
        os.fchdir(folder)  # entering a mount namespace goes to its root
        os.close(folder)


class OwnHost(netns.Namespace):
    """A host of a test's own whose network has a name, so that a later run finds and ends what a killed one left there.

    The calling thread lives there until the end, and so does what it starts."""

    def __enter__(self) -> "OwnHost":
        self._host = contextlib.ExitStack()
        super().__enter__()
        try:
            network = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._host.enter_context(own_host(network))
            finally:
                os.close(network)
        except BaseException:
            super().__exit__()
            raise
        self._inside = True
        return self

    def __exit__(self, *_) -> None:
        for name in os.listdir("/run/netns"):  # this host's own: of a session that did not end by itself
            netns.remove(name)
        self._inside = False
        self._host.close()
        super().__exit__()

    _inside = False

    def wrap(self, command: list) -> list:
        return [str(word) for word in command] if self._inside else super().wrap(command)

    def entered(self):
        return contextlib.nullcontext(self) if self._inside else super().entered()
