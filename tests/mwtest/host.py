"""A host of a test's own: network, packet filter, namespaces and session registry.

What else runs on the machine neither disturbs the tests that watch the host's state nor is
disturbed by them. Only the calling thread lives there, with the threads and processes it starts.
"""

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_BOUND = 60
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what} (root is needed)")


def _run(*words: str) -> None:
    subprocess.run(words, check=True, timeout=_BOUND)


@contextlib.contextmanager
def own_host():
    """Enters a new host with a loopback and one interface that leads nowhere; leaves it again."""
    kept = [os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            for kind in ("net", "mnt")]
    folder = os.open(".", os.O_PATH | os.O_CLOEXEC)
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET), "unshare")
    try:
        _run("mount", "--make-rprivate", "/")
        for path in ("/run/mwcomms", "/run/netns"):
            Path(path).mkdir(mode=0o755, exist_ok=True)
            _run("mount", "-t", "tmpfs", "-o", "mode=755", "own-host", path)
        _run("mount", "-t", "sysfs", "own-host", "/sys")  # shows the interfaces of this network only
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "outside", "type", "veth", "peer", "name", "nowhere")
        _run("ip", "address", "add", "192.0.2.10/24", "dev", "outside")
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
