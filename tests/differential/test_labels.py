"""Two sockets have the same port label if they really share the port, and never by chance."""

import re
from pathlib import Path

from mwtest import netns
from script import Runner, Variant

# Each family and protocol has ports of its own, and a closed socket's number is free again: in a
# small range coincidences are certain.
_OPENS = """
%(name)s = socket %(family)s %(type)s
bind %(name)s %(host)s:0
getsockname %(name)s
close %(name)s
"""
_SHARES = """
l = socket AF_INET6 SOCK_STREAM
bind l [::]:0
listen l 5
la = getsockname l
q: c = socket AF_INET SOCK_STREAM
q: connect c 127.0.0.1:%la
s = accept l
getsockname s
q: getpeername c
q: getsockname c
"""


def _labels(script: str, directory: Path) -> list:
    path = directory / "labels.sock"
    path.write_text(script)
    with netns.Namespace() as namespace:
        transcript = Runner(path, Variant("plain", "accepted"), "native", namespace).run()
    assert not any("STOPPED" in line for line in transcript), transcript
    return re.findall(r"addr=\S*:(P\d+)", "\n".join(transcript))


def test_chance_gives_no_label_twice(tmp_path):
    kinds = [{"name": "s", "family": family, "type": kind, "host": host}
             for family, host in (("AF_INET", "127.0.0.1"), ("AF_INET6", "[::1]"))
             for kind in ("SOCK_STREAM", "SOCK_DGRAM")]
    script = "".join(_OPENS % kind for kind in kinds * 20)
    assert _labels(script, tmp_path) == [f"P{number}" for number in range(1, 81)]


def test_a_shared_port_has_one_label(tmp_path):
    # The listener's; the client's, as the server sees it; the accepted socket has the listener's.
    assert _labels(_SHARES, tmp_path) == ["P1", "P2", "P1", "P1", "P2"]


def test_windows_do_not_overlap():
    with netns.Namespace() as namespace:
        ports = netns.EphemeralPorts(namespace)
        seen = []
        for _ in range(300):
            ports.advance()
            with namespace.entered():
                low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
            seen.append((low, high))
        ports.close()
    assert all(before[1] < after[0] for before, after in zip(seen, seen[1:]))
    assert all(high - low >= 60 for low, high in seen)
