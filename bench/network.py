"""network.py - clients at a distance: a wire between two network namespaces, and what a request costs at its end.

distance    What a client calls it: the time there and back. Each direction has half of it. The wire is
            bench/wire.cc, since a kernel need not have netem.
cost        The processor time of a request is that of everything but the client and the wire: what all processors
            did, less the client's process and less the wire's, but for the part of the wire's in which the kernel
            receives packets in the server's namespace. So the server is in it with its relay or its INS and driver,
            the kernel's work for packets on the server's side wherever it was done, and every wake-up.
            What all processors did is their number times the time, less what /proc/stat calls idle, waiting or
            stolen: without ticks the kernel measures idle time, and does not sample it. Two things are in it that
            are not the server's, in all variants alike: interrupts on the client's behalf outside its own time,
            and what else runs on this machine, which should be nothing.
"""

import contextlib
import json
import os
import resource
import socket
import subprocess
import time
from pathlib import Path

from mwtest import build, netns, proc

QUEUE = 20_000  # packets under way in one direction; what finds no room is a drop, and a drop fails the row
TICKS = os.sysconf("SC_CLK_TCK")
DIRECTIONS = ("to_second", "to_first")
SERVER_PARTS = ("server", "INS", "driver", "relay")
_NAMES = {"mwins": "INS", "mwcommsd": "driver", "mw": "driver", "haproxy": "relay", "socat": "relay"}


def drops(counters: dict) -> int:
    """Packets that did not arrive, wherever they got lost."""
    return sum(counters[way][kind] for way in DIRECTIONS for kind in ("dropped", "refused", "device_dropped"))


class Wire:
    """A running wire; a context manager. The server's end is the first one."""

    def __init__(self, name: str, round_trip_us: int, server: netns.Namespace, server_address: str,
                 client: netns.Namespace, client_address: str, queue: int = QUEUE) -> None:
        self.words = [build.program("wire"), name, round_trip_us // 2, queue,
                       f"/run/netns/{server.name}", f"{server_address}/24",
                       f"/run/netns/{client.name}", f"{client_address}/24"]
        self.address = server_address  # where clients connect

    def __enter__(self) -> "Wire":
        self.process = subprocess.Popen([str(word) for word in self.words], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            self.__exit__()
            raise AssertionError("the wire does not start; its message stands above")
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(BrokenPipeError):  # it ended before it read the last line
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)

    def counters(self) -> dict:
        """What it has moved so far, each direction by itself."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the end of its output says so too
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError("the wire has ended; its message stands above")
        return json.loads(line)

    def check(self) -> None:
        """Fails if a packet got lost: a figure would not be the server's."""
        counters = self.counters()
        if drops(counters):
            raise AssertionError(f"the wire lost {drops(counters)} packets: {json.dumps(counters)}")


def busy_seconds() -> float:
    """Processor time of the machine; only differences of it mean something."""
    lines = Path("/proc/stat").read_text().splitlines()
    count = sum(line.startswith("cpu") for line in lines) - 1
    values = [int(word) for word in lines[0].split()[1:]]
    idle, waiting, stolen = values[3], values[4], values[7]
    return time.monotonic() * count - (idle + waiting + stolen) / TICKS


def part_of(pid: int) -> str:
    return _NAMES.get(Path(f"/proc/{pid}/comm").read_text().strip(), "server")


def process_seconds(pid: int) -> float:
    """Processor time of the process, of its threads that have ended, and of its children that have."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / TICKS


def split_seconds(pids: list) -> dict:
    """part -> processor time of those processes that are of it."""
    parts = dict.fromkeys(SERVER_PARTS, 0.0)
    for pid in pids:
        try:
            parts[part_of(pid)] += process_seconds(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile: its parent has its time
    return parts


class Meter:
    """Processor time while it is open; a context manager around a client that runs to its end inside.

    family() gives the processes on the server's side, for the division into parts only. Afterwards `total` is what
    was used, in seconds, `parts` of what it is made, and `late_us` by how much the wire was late with a packet."""

    def __init__(self, wire: Wire, family) -> None:
        self._wire, self._family = wire, family

    def __enter__(self) -> "Meter":
        # Our own work, which is that of looking through processes above all, stays outside.
        parts = split_seconds(self._family())
        self._before = {**parts, **self._totals()}
        return self

    def __exit__(self, *_) -> None:
        after = self._totals()
        after.update(split_seconds(self._family()))
        used = {what: value - self._before[what] for what, value in after.items()}
        self.total, self.parts = account(used)
        self.late_us = used["late"] / used["delivered"] * 1e6 if used["delivered"] else 0.0

    def _totals(self) -> dict:
        counters = self._wire.counters()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {"machine": busy_seconds(), "client": children.ru_utime + children.ru_stime,
                "wire": counters["cpu_ns"] / 1e9, "kernel receives": counters["to_first"]["deliver_cpu_ns"] / 1e9,
                "client's kernel receives": counters["to_second"]["deliver_cpu_ns"] / 1e9,
                "late": sum(counters[way]["late_ns"] for way in DIRECTIONS) / 1e9,
                "delivered": sum(counters[way]["delivered"] for way in DIRECTIONS)}


def account(used: dict) -> tuple:
    """Seconds of everything but client and wire, and of its parts: `rest` is what the kernel did outside of them. The
    last two are not counted; the client's kernel receives within the wire's writes, as the server's does."""
    client = used["client"] + used["client's kernel receives"]
    wire = used["wire"] - used["kernel receives"] - used["client's kernel receives"]
    total = used["machine"] - client - wire
    parts = {what: used[what] for what in (*SERVER_PARTS, "kernel receives")}
    return total, {**parts, "rest": total - sum(parts.values()), "client, not counted": client,
                   "wire, not counted": wire}


def wait_answers(address: str, port: int, client: netns.Namespace, server: proc.Background) -> None:
    """Waits until the server takes a connection from over there: a published port has no listener on the host."""
    def answers() -> bool:
        with client.entered():
            try:
                socket.create_connection((address, port), 5).close()
            except (ConnectionRefusedError, TimeoutError):
                return False
        return True
    proc.wait_for(answers, 60, f"port {port} answers", server)
