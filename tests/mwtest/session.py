"""`mw run` as tests see it: its sessions, and the state of the host that it must leave as it was."""

import os
import re
import subprocess
from pathlib import Path

from . import proc

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
