"""Fixtures for tests of `mw run`: the host's state must be the same after every test as before it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from mwtest import build, clock, host, proc

BASE = Path("/run/mwcomms")


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def links() -> list:
    return sorted(re.findall(r"^\d+: (mwv\d+)", output("ip", "-o", "link"), re.MULTILINE))


def forwarding() -> dict:
    """Every setting of the host that `mw run` may change, with its value."""
    values = {}
    for pattern in ("ipv4/conf/*/forwarding", "ipv6/conf/*/force_forwarding", "ipv6/conf/*/forwarding",
                    "ipv6/conf/*/accept_ra", "ipv4/ip_forward"):
        for path in Path("/proc/sys/net").glob(pattern):
            if "/mwv" not in str(path):
                values[str(path)] = path.read_text().strip()
    return values


def sessions() -> dict:
    """name -> its record, of every session in the registry."""
    found = {}
    for owner in BASE.glob("*/owner"):
        lines = owner.read_text().splitlines()
        found[owner.parent.name] = dict(line.split("=", 1) for line in lines)
    return found


def host_state() -> dict:
    return {"rules": output("nft", "list", "ruleset"), "links": links(),
            "namespaces": sorted(name for name in os.listdir("/run/netns") if name.startswith("mw-"))
            if os.path.isdir("/run/netns") else [],
            "sessions": sorted(name for name, record in sessions().items() if record["isolated"] == "1"),
            "forwarding": forwarding()}


@pytest.fixture(scope="module")
def mw() -> str:
    if os.geteuid() != 0:
        pytest.skip("isolated networks need root")
    with host.own_host():
        yield str(build.program("mw"))


@pytest.fixture
def unchanged(mw):
    """The host looks the same afterwards; gives the state before."""
    before = host_state()
    yield before
    proc.run([mw, "clean"], 120)
    assert host_state() == before


class Session:
    """A running `mw run`, known by its record."""

    def __init__(self, background: proc.Background) -> None:
        self.background = background
        self.name, self.record = proc.wait_for(self._find, 60, "mw run serves", background)

    def _find(self):
        for name, record in sessions().items():
            mine = record["owner"].split()[0] == str(self.background.pid)
            if mine and record["application"].split()[0] != "0":
                return name, record
        return None

    def refresh(self) -> dict:
        self.record = sessions()[self.name]
        return self.record

    def pid(self, who: str) -> int:
        return int(self.refresh()[who].split()[0])


@pytest.fixture
def start(mw, tmp_path):
    """start(arguments...) -> Session, ended after the test."""
    running = []

    def begin(*arguments: str) -> Session:
        background = proc.Background([mw, "run", *arguments], tmp_path / f"mw{len(running)}.log")
        running.append(background)
        return Session(background)

    yield begin
    for background in running:
        background.stop()


@pytest.fixture
def server(tmp_path) -> list:
    """A small HTTP server that says who asks and what it was told to say: [...command, PORT, TEXT]."""
    path = tmp_path / "server.py"
    path.write_text("""
import http.server, socket, sys
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{sys.argv[2]} {self.client_address[0]}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
Server(("::", int(sys.argv[1])), Handler).serve_forever()
""")
    return ["/usr/bin/python3", str(path)]


@pytest.fixture
def free_port() -> int:
    """A port of the host that nobody has: nobody else is here, and connections do not start from it."""
    return 18080


@pytest.fixture
def fair_clock():
    with clock.FairClock() as one:
        yield one
