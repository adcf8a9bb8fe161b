"""`mw run` as tests see it: its sessions, and the state of the host that it must leave as it was."""

import contextlib
import os
import re
import shutil
import signal
import socket
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
        try:
            lines = owner.read_text().splitlines()
        except FileNotFoundError:
            continue  # it ended after it was listed
        found[owner.parent.name] = dict(line.split("=", 1) for line in lines)
    return found


def host_state() -> dict:
    return {"rules": output("nft", "list", "ruleset"), "links": links(),
            "namespaces": sorted(name for name in os.listdir("/run/netns") if name.startswith("mw-"))
            if os.path.isdir("/run/netns") else [],
            "sessions": sorted(name for name, record in sessions().items() if record["isolated"] == "1"),
            "forwarding": forwarding()}


def serves(port: int) -> bool:
    """Whether a web server answers there."""
    try:
        with socket.create_connection(("127.0.0.1", port), 120) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return client.recv(100).startswith(b"HTTP/1.0 200")
    except OSError:
        return False


def gone(pid: int) -> bool:
    """It has ended, whether or not anybody has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def copy_of_the_build(mw: str, folder: Path) -> Path:
    """The programs that `mw run` needs, copied; gives the copy's mw."""
    source = Path(mw).parent.parent
    for name in ("bin/mw", "bin/mwins", "bin/mwcommsd", "lib/libmwshim.so"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, folder / name)
    return folder / "bin/mw"


def open_to_others(folder: Path) -> None:
    """Another user may go into the folder, however private those are that it stands in."""
    for path in (folder, *folder.parents):
        if path == Path("/tmp"):
            break
        path.chmod(path.stat().st_mode | 0o055)


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

    def alive(self, who: str) -> bool:
        return not gone(self.pid(who))

    def lose_front_end(self) -> int:
        """kill -9 of whatever supervises it; gives its pid."""
        victim = self.pid("owner")
        os.kill(victim, signal.SIGKILL)
        if victim == self.background.pid:
            self.background.process.wait(60)
        else:
            proc.wait_for(lambda: gone(victim), 60, "its end")
        return victim

    def adopted(self, before: int) -> int:
        """Waits until another front end than `before` has the session; gives its pid."""
        proc.wait_for(lambda: self.pid("owner") != before and self.alive("owner"), 60, "another front end")
        return self.pid("owner")

    def end(self) -> None:
        """Ends a session that some other front end than our `mw run` may have by now."""
        self.background.stop()
        record = sessions().get(self.name)
        if record is None:
            return
        pids = [int(record[who].split()[0]) for who in ("owner", "application")]
        for pid in filter(None, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        proc.wait_for(lambda: self.name not in sessions(), 60, f"the end of {self.name}")
