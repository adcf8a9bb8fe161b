"""bench.py [--json] [--quick] [--only WORD] - MwComms against the plain kernel and against relays.

purpose     The same server in the same namespace four times: plain ("native"), protected ("ours"), plain
            behind haproxy in TCP mode, and plain behind socat. The client is always plain.
            Most clients are on the server's host; those of network_* are at a distance (network.py), and there
            "ours" is an isolated stack with a published port, and rows of its own have one with --net host.
method      All four run at once; the rounds are interleaved, so that a slow minute of the machine hits
            all alike. Values are medians, with the spread (largest - smallest, of the median).
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "clients/python"), str(HERE)]

import janitor  # noqa: E402  (needs the path above)
import mwnetflow  # noqa: E402
import network  # noqa: E402
from mwtest import build, netns, proc  # noqa: E402

FILES = 1_000_000
IDLE_CONNECTIONS = 100_000
IDLE_LIMIT = 8 * 1024
IDLE_CPU_LIMIT = 0.001  # of one core; below the accounting's own noise
SAMPLED_CONNECTIONS = 10_000
SAMPLING_INTERVAL = 0.25  # seconds
SAMPLING_LIMIT = 0.05  # of one core
DISTANCES = {"1 ms": 1_000, "20 ms": 20_000}  # there and back, microseconds
MOST_UNKNOWN = 0.25  # of a processor time
DISTANT_COST = "us of processor, but client and wire"  # a request; the last row of a load, with its parts


@dataclass
class Target:
    """What a row promises; `text` is printed, `holds` decides from native and ours."""
    text: str
    holds: object
    higher_is_better: bool = True


@dataclass
class Row:
    workload: str
    metric: str
    native: float
    ours: float
    relays: dict
    target: Target
    spread: dict = field(default_factory=dict)
    tried: int = None   # of what the target counts, where it names a number
    wanted: int = None  # what the target asks for; less than that decides nothing
    parts: dict = field(default_factory=dict)  # what the figure is made of: part -> path -> value
    disturbed: str = ""  # what makes the figure decide nothing

    @property
    def ratio(self) -> float:
        return self.ours / self.native if self.native else None

    @property
    def met(self) -> bool:
        """Whether the target is met; None if that is not decided."""
        if self.tried != self.wanted or self.disturbed:
            return None
        return bool(self.target.holds(self.native, self.ours))

    @property
    def beats_relays(self) -> bool:
        """Whether it is better than each relay; None if none was measured."""
        if not self.relays:
            return None
        if self.target.higher_is_better:
            return all(self.ours > value for value in self.relays.values())
        return all(self.ours < value for value in self.relays.values())

    def document(self) -> dict:
        known = {"workload": self.workload, "metric": self.metric, "native": self.native,
                 "ours": self.ours, "ratio": self.ratio, "relays": self.relays,
                 "target": self.target.text, "met": self.met, "beats_relays": self.beats_relays,
                 "spread": self.spread}
        if self.parts:
            known["parts"] = self.parts
        if self.disturbed:
            known["disturbed"] = self.disturbed
        return known if self.wanted is None else {**known, "tried": self.tried, "wanted": self.wanted}

    def verdict(self) -> str:
        """As the table has it."""
        if self.disturbed:
            text = f"not decided: {self.disturbed}"
        elif self.met is None:
            text = f"not decided at {self.tried} of {self.wanted}"
        else:
            text = "met" if self.met else "MISSED"
        return text if self.beats_relays is not False else text + ", NOT BETTER THAN A RELAY"


def at_least(part: float) -> Target:
    return Target(f">= {part:g} x native", lambda native, ours: ours >= part * native)


def at_most(part: float) -> Target:
    return Target(f"<= {part:g} x native", lambda native, ours: ours <= part * native, False)


def at_most_more(micro: float) -> Target:
    return Target(f"<= native + {micro:g} us", lambda native, ours: ours <= native + micro, False)


def reported(higher_is_better: bool = False) -> Target:
    return Target("reported", lambda native, ours: True, higher_is_better)


class Stage:
    """The namespace, a scratch directory, and the processes of one workload.

    A janitor removes them if we are killed."""

    def __init__(self) -> None:
        self._running = []

    def __enter__(self) -> "Stage":
        self._place = janitor.Place("mwbench")
        self.directory = self._place.directory
        try:
            self.namespace = self.add_namespace()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for one in reversed(self._running):
            one.stop()
        self._place.close()

    def add_namespace(self) -> netns.Namespace:
        one = self._place.add_namespace()
        with one.entered():
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("1024 65000")
        return one

    def start(self, name: str, words: list, mode: str = "native", env: dict = None, ports: list = ()
              ) -> proc.Background:
        """`ports` are published where the mode is isolated."""
        one = proc.Background(self.namespace.wrap(build.wrap(mode, words, ports)),
                              self.directory / f"{name}-{mode}.log", cwd=self.directory,
                              env=None if env is None else {**os.environ, **env})
        if mode != "native":
            self._place.add_session(one.pid)
        self._running.append(one)
        return one

    def run(self, *words, seconds: float = 300) -> str:
        return proc.run(self.namespace.wrap(list(words)), seconds,
                        cwd=self.directory).stdout.decode()

    def wait_port(self, port: int, server: proc.Background) -> None:
        def listens() -> bool:
            text = self.run("ss", "-Hltn", f"sport = :{port}")
            return bool(text.strip())
        proc.wait_for(listens, 30, f"port {port} listens", server)

    def four(self, name: str, command, base: int) -> dict:
        """Starts the server natively and protected and the relays; returns name -> port."""
        ports = {"native": base, "ours": base + 1, "haproxy": base + 2, "socat": base + 3}
        for mode, key in (("native", "native"), ("mw", "ours")):
            self.wait_port(ports[key], self.start(name, command(ports[key]), mode))
        self.relays(ports)
        return ports

    def relays(self, ports: dict, address: str = "127.0.0.1") -> dict:
        """Starts the relays at that address in front of the native server; returns name -> process."""
        config = self.directory / f"haproxy-{ports['haproxy']}.cfg"
        config.write_text(
            "global\n maxconn 4000\n"
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
            f"listen relay\n bind {address}:{ports['haproxy']}\n server one 127.0.0.1:{ports['native']}\n")
        commands = {
            "haproxy": ["haproxy", "-db", "-f", config],
            "socat": ["socat", f"TCP-LISTEN:{ports['socat']},bind={address},fork,reuseaddr,nodelay,backlog=1024",
                      f"TCP:127.0.0.1:{ports['native']},nodelay"]}
        started = {name: self.start(name, words) for name, words in commands.items()}
        for name, relay in started.items():
            self.wait_port(ports[name], relay)
        return started


def measure(ports: dict, rounds: int, once) -> dict:
    """once(port) -> {metric: value}; returns metric -> path -> list of values."""
    values = {}
    for _ in range(rounds):
        for path, port in ports.items():
            for metric, value in once(port).items():
                values.setdefault(metric, {}).setdefault(path, []).append(value)
    return values


def make_row(workload: str, metric: str, values: dict, target: Target) -> Row:
    medians = {path: statistics.median(list_) for path, list_ in values.items()}
    spread = {path: round((max(list_) - min(list_)) / statistics.median(list_), 3)
              for path, list_ in values.items()}
    relays = {path: medians[path] for path in ("haproxy", "socat") if path in medians}
    return Row(workload, metric, medians["native"], medians["ours"], relays, target, spread)


_UNITS = {"us": 1.0, "ms": 1000.0, "s": 1e6}


def nginx_command(stage: Stage, port: int, tls: str = "") -> list:
    """nginx with two workers and a small page. tls: the name of a key and its certificate in the stage's folder."""
    (stage.directory / "index.html").write_text("small page\n" * 50)
    config = stage.directory / f"nginx-{port}.conf"
    listen = f"listen 127.0.0.1:{port}" + (
        f" ssl; ssl_certificate {stage.directory}/{tls}.crt; ssl_certificate_key {stage.directory}/{tls}.key"
        if tls else "")
    config.write_text(
        f"worker_processes 2; pid {stage.directory}/nginx-{port}.pid; "
        f"events {{ worker_connections 4096; }} http {{ access_log off; sendfile on; "
        f"tcp_nopush on; keepalive_requests 10000000; server {{ {listen}; "
        f"root {stage.directory}; }} }}")
    return ["nginx", "-c", config, "-e", "stderr", "-g", "daemon off;"]


def wrk(stage: Stage, url: str, seconds: int, connections: int = 64) -> dict:
    text = stage.run("wrk", "-t", 2, "-c", connections, "-d", f"{seconds}s", "--latency", url)
    assert "Socket errors" not in text and "Non-2xx" not in text, text
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", text).groups()
    return {"requests/s": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),
            "p99 us": float(number) * _UNITS[unit]}


def nginx(stage: Stage, quick: bool) -> list:
    values = measure(stage.four("nginx", lambda port: nginx_command(stage, port), 8000), 1 if quick else 5,
                     lambda port: wrk(stage, f"http://127.0.0.1:{port}/index.html", 1 if quick else 5))
    return [make_row("nginx keep-alive, 64 connections", "requests/s", values["requests/s"],
                     at_least(0.90)),
            make_row("nginx keep-alive, 64 connections", "p99 us", values["p99 us"], at_most(1.3))]


def nginx_tls(stage: Stage, quick: bool) -> list:
    """Answers that are written in pieces until the socket takes no more."""
    stage.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
              "-subj", "/CN=localhost", "-days", "2", "-keyout", stage.directory / "tls.key",
              "-out", stage.directory / "tls.crt")
    ports = stage.four("nginx_tls", lambda port: nginx_command(stage, port, "tls"), 8050)
    rows = []
    for name, size, connections in (("1 KiB", 1024, 64), ("3 MB", 3_000_000, 8)):
        (stage.directory / f"{size}.bin").write_bytes(b"x" * size)
        values = measure(ports, 1 if quick else 3,
                         lambda port: wrk(stage, f"https://127.0.0.1:{port}/{size}.bin", 3 if quick else 5, connections))
        rows += [make_row(f"nginx with TLS, {name}, {connections} connections", "requests/s", values["requests/s"],
                          at_least(0.90)),
                 make_row(f"nginx with TLS, {name}, {connections} connections", "p99 us", values["p99 us"],
                          at_most(1.3))]
    return rows


def apache_command(stage: Stage, port: int, address: str = "127.0.0.1") -> list:
    """Apache's event MPM and a small page."""
    (stage.directory / "index.html").write_text("small page\n" * 50)
    modules = "/usr/lib/apache2/modules"
    config = stage.directory / f"apache-{port}.conf"
    config.write_text(
        f"ServerRoot {stage.directory}\nServerName bench\nListen {address}:{port}\n"
        f"PidFile {stage.directory}/apache-{port}.pid\nDefaultRuntimeDir {stage.directory}\n"
        f"ErrorLog {stage.directory}/apache-{port}.error\n"
        f"LoadModule mpm_event_module {modules}/mod_mpm_event.so\n"
        f"LoadModule authz_core_module {modules}/mod_authz_core.so\n"
        f"User www-data\nGroup www-data\nDocumentRoot {stage.directory}\n"
        # Debian's mpm_event.conf, with enough workers for 500 clients
        "StartServers 2\nServerLimit 24\nMinSpareThreads 25\nMaxSpareThreads 75\n"
        "ThreadLimit 64\nThreadsPerChild 25\nMaxRequestWorkers 600\n")
    return ["apache2", "-DFOREGROUND", "-f", config]


def apache(stage: Stage, quick: bool) -> list:
    ports = stage.four("apache", lambda port: apache_command(stage, port), 8100)
    rows = []
    for clients in (1, 10, 100, 500):
        def once(port: int) -> dict:
            text = stage.run("ab", "-q", "-n", 2000 if quick else 20000, "-c", clients,
                             f"http://127.0.0.1:{port}/index.html")
            assert re.search(r"Failed requests:\s+0\n", text), text
            return {"ms": float(re.search(r"Time per request:\s+([\d.]+) \[ms\] \(mean\)", text)[1])}
        values = measure(ports, 1 if quick else 3, once)
        rows.append(make_row(f"Apache event, ab, c = {clients}", "ms/request", values["ms"],
                             at_most(1.15)))
    return rows


def redis(stage: Stage, quick: bool) -> list:
    def command(port: int) -> list:
        return ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir",
                stage.directory]

    def once(port: int) -> dict:
        text = stage.run("redis-benchmark", "-h", "127.0.0.1", "-p", port, "--csv", "-t", "set,get",
                         "-c", 50, "-n", 20000 if quick else 200000)
        return {line.split(",")[0].strip('"'): float(line.split(",")[1].strip('"'))
                for line in text.splitlines() if line.startswith(('"SET"', '"GET"'))}

    values = measure(stage.four("redis", command, 8200), 1 if quick else 5, once)
    return [make_row("redis-benchmark, 50 clients", f"{name} requests/s", values[name],
                     at_least(0.85)) for name in ("GET", "SET")]


def pingpong(stage: Stage, quick: bool) -> list:
    tool = build.program("benchtool")

    def once(port: int) -> dict:
        text = stage.run(tool, "pingpong", port, 10000 if quick else 100000)
        p50, p99 = re.match(r"p50 ([\d.]+) p99 ([\d.]+)", text).groups()
        return {"p50": float(p50), "p99": float(p99)}

    ports = stage.four("echo", lambda port: [tool, "echo", port], 8300)
    values = measure(ports, 1 if quick else 5, once)
    return [make_row("1-byte ping-pong", "p50 us", values["p50"], at_most_more(6)),
            make_row("1-byte ping-pong", "p99 us", values["p99"], at_most(2))]


def iperf_once(stage: Stage, port: int, seconds: int, flags: list) -> float:
    """Gbit/s. A server that has not noticed the end of the test before, through a relay, is asked again."""
    for _ in range(50):
        document = json.loads(stage.run("iperf3", "-c", "127.0.0.1", "-p", port, "-J", "-t", seconds, *flags))
        if "error" not in document:
            return document["end"]["sum_received"]["bits_per_second"] / 1e9
        if "busy" not in document["error"]:
            break
        time.sleep(0.1)  # between two questions
    raise AssertionError(f"iperf3 to port {port}: {document['error']}")


def iperf(stage: Stage, quick: bool) -> list:
    def once(port: int) -> dict:
        seconds = 1 if quick else 4
        return {"to the server": iperf_once(stage, port, seconds, []),
                "from the server": iperf_once(stage, port, seconds, ["-R"])}

    ports = stage.four("iperf3", lambda port: ["iperf3", "-s", "-B", "127.0.0.1", "-p", port], 8400)
    values = measure(ports, 1 if quick else 3, once)
    return [make_row("iperf3, one stream", f"Gbit/s {name}", values[name], at_least(0.9))
            for name in values]


def churn(stage: Stage, quick: bool) -> list:
    tool = build.program("benchtool")

    def once(port: int) -> dict:
        text = stage.run(tool, "churn", port, 1 if quick else 3, 8)
        return {"rate": float(text.split()[1])}

    ports = stage.four("closer", lambda port: [tool, "closer", port], 8500)
    values = measure(ports, 1 if quick else 5, once)
    return [make_row("connections opened and closed", "connections/s", values["rate"],
                     at_least(0.8))]


# ---- clients at a distance ----

@dataclass
class Load:
    """One run of a client: command(address, port), read(its output) -> ({metric: value}, number of requests)."""
    title: str
    distance: str
    command: object
    read: object


@contextlib.contextmanager
def wires(stage: Stage):
    """Gives a namespace for clients, and for each distance its wire to the stage's."""
    client = stage.add_namespace()
    with contextlib.ExitStack() as stack:
        yield client, {
            distance: stack.enter_context(network.Wire(
                f"away{number}", round_trip, stage.namespace, f"10.202.{number}.1", client, f"10.202.{number}.2"))
            for number, (distance, round_trip) in enumerate(DISTANCES.items())}


def distant(stage: Stage, name: str, command, base: int, loads: list, rounds: int) -> dict:
    """Runs the loads against all variants of a server; returns title -> metric -> path -> list of values."""
    ports = {path: base + number for number, path in enumerate(("native", "ours", "host", "haproxy", "socat"))}
    paths = {port: path for path, port in ports.items()}
    with wires(stage) as (client, to_client):
        near = next(iter(to_client.values()))
        servers = {}
        for path, mode in (("native", "native"), ("ours", build.ISOLATED), ("host", "mw")):
            port = ports[path]
            servers[path] = [stage.start(name, command(port), mode, ports=[port])]
            network.wait_answers(near.address, port, client, servers[path][0])
        for path, relay in stage.relays(ports, "0.0.0.0").items():
            servers[path] = [*servers["native"], relay]
        found = {}
        for load in loads:
            wire = to_client[load.distance]

            def once(port: int) -> dict:
                def processes() -> list:
                    return [pid for one in servers[paths[port]] for pid in family(one.pid)]
                with network.Meter(wire, processes) as meter:
                    text = proc.run(client.wrap(load.command(wire.address, port)), 300,
                                    cwd=stage.directory).stdout.decode()
                metrics, requests = load.read(text)
                return {**metrics, DISTANT_COST: meter.total * 1e6 / requests,
                        "part wire, how late a packet was": meter.late_us,
                        **{f"part {part}": used * 1e6 / requests for part, used in meter.parts.items()}}
            found[load.title] = measure(ports, rounds, once)
            wire.check()
    return found


def distant_rows(title: str, values: dict, targets: dict) -> list:
    """The rows of one load: each metric with an isolated stack and with --net host."""
    rows = []
    for path, suffix in (("ours", ""), ("host", ", --net host")):
        for metric, target in targets.items():
            chosen = {**values[metric], "ours": values[metric][path]}
            del chosen["host"]
            rows.append(make_row(title + suffix, metric, chosen, target))
        rows[-1].parts = {
            metric.removeprefix("part "): {"native": statistics.median(taken["native"]),
                                           "ours": statistics.median(taken[path])}
            for metric, taken in values.items() if metric.startswith("part ")}
        rest = rows[-1].parts["rest"]
        unknown = max(rest["native"] / rows[-1].native, rest["ours"] / rows[-1].ours)
        if unknown > MOST_UNKNOWN:
            rows[-1].disturbed = f"{unknown:.0%} of it is no part's: the machine did something else"
    return rows


def distant_targets(unit: str, rate: str, distance: str) -> dict:
    """metric -> target. Far away the distance is nearly all of the time, whatever the server does."""
    decided = distance == "1 ms"
    return {unit: at_most(1.05) if decided else reported(), rate: at_least(0.97) if decided else reported(True),
            "p50 ms": reported(), "p99 ms": reported(), DISTANT_COST: at_most(1.25)}


def network_apache(stage: Stage, quick: bool) -> list:
    count, seconds = 2000 if quick else 20000, 15  # whichever comes first
    percentiles = stage.directory / "percentiles.csv"

    def read(text: str) -> tuple:
        complete = int(re.search(r"Complete requests:\s+(\d+)", text)[1])
        assert complete > 0 and re.search(r"Failed requests:\s+0\n", text), text
        taken = dict(line.split(",") for line in percentiles.read_text().splitlines()[1:])
        return {"ms/request": float(re.search(r"Time per request:\s+([\d.]+) \[ms\] \(mean\)", text)[1]),
                "requests/s": float(re.search(r"Requests per second:\s+([\d.]+)", text)[1]),
                "p50 ms": float(taken["50"]), "p99 ms": float(taken["99"])}, complete

    def ab(clients: int):
        return lambda address, port: ["ab", "-q", "-t", seconds, "-n", count, "-c", clients, "-e", percentiles,
                                      f"http://{address}:{port}/index.html"]
    loads = [Load(f"Apache event, ab, c = {clients}, {distance} away", distance, ab(clients), read)
             for distance in DISTANCES for clients in (100, 500)]
    found = distant(stage, "apache", lambda port: apache_command(stage, port, "0.0.0.0"), 8960, loads,
                    1 if quick else 3)
    return [row for load in loads for row in distant_rows(
        load.title, found[load.title], distant_targets("ms/request", "requests/s", load.distance))]


def network_churn(stage: Stage, quick: bool) -> list:
    tool, seconds, clients = build.program("benchtool"), 1 if quick else 3, 64

    def read(text: str) -> tuple:
        rate, p50, p99 = map(float, re.match(r"rate ([\d.]+) p50 ([\d.]+) p99 ([\d.]+)", text).groups())
        return {"ms/connection": clients / rate * 1000, "connections/s": rate, "p50 ms": p50 / 1000,
                "p99 ms": p99 / 1000}, rate * seconds

    def churn_there(address: str, port: int) -> list:
        return [tool, "churn", port, seconds, clients, address]
    loads = [Load(f"opened and closed by {clients}, {distance} away", distance, churn_there, read)
             for distance in DISTANCES]
    found = distant(stage, "closer", lambda port: [tool, "closer", port], 8970, loads, 1 if quick else 3)
    return [row for load in loads for row in distant_rows(
        load.title, found[load.title], distant_targets("ms/connection", "connections/s", load.distance))]


# ---- memory, idle cost and system calls ----

def family(pid: int) -> list:
    """The process and all its descendants."""
    found = [pid]
    for one in found:
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                found += [int(word) for word in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return found


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def pss(pids: list) -> int:
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1]) * 1024
    return total


def kernel_memory() -> int:
    text = Path("/proc/meminfo").read_text()
    return sum(int(re.search(rf"^{key}:\s+(\d+)", text, re.M)[1]) * 1024
               for key in ("Slab", "KernelStack", "PageTables"))


def raise_file_limit() -> int:
    """The most descriptors that a process may have here: some containers do not let root raise it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for wanted in (FILES, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
        except ValueError:
            continue
    return hard


def idle_count(wanted: int, quick: bool) -> int:
    """How many idle connections are tried: as many as wanted, if the limit on open files allows that."""
    # An INS has two descriptors for a connection: its socket and the end of the placeholder.
    fit = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500) // 2
    count = min(min(5000, wanted) if quick else wanted, fit)
    if not quick and count < wanted:
        print(f"bench: the limit on open files, which root may not raise here, allows {count} idle "
              f"connections instead of {wanted}", file=sys.stderr)
    return count


@contextlib.contextmanager
def idle_clients(stage: Stage, server: proc.Background, port: int, count: int):
    """Holds that many silent connections to the server, all of them established."""
    client = subprocess.Popen([str(word) for word in
                               stage.namespace.wrap([build.program("benchtool"), "open", port, count])],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if client.stdout.readline() != b"open\n":
            raise AssertionError(f"{count} connections to port {port} do not fit\n{server.tail()}")
        held = lambda: int(stage.run("ss", "-Htn", "state", "established",
                                     f"sport = :{port}").count("\n")) >= count
        proc.wait_for(held, 60, f"{count} connections are established", server)
        yield
    finally:
        client.stdin.close()
        client.stdout.close()
        client.wait(120)


def idle_connections(stage: Stage, quick: bool) -> list:
    count = idle_count(IDLE_CONNECTIONS, quick)
    tool = build.program("benchtool")
    grown = {}
    for mode, path, port in (("native", "native", 8600), ("mw", "ours", 8601)):
        server = stage.start("hold", [tool, "hold", port], mode)
        stage.wait_port(port, server)
        pids = family(server.pid)
        before, kernel_before = pss(pids), kernel_memory()
        with idle_clients(stage, server, port, count):
            # The last accepts are still under way: wait until the sizes stand still.
            last = -1
            while (now := pss(family(server.pid))) != last:
                last = now
                time.sleep(1)
            grown[path] = {"user": (now - before) / count,
                           "kernel": (kernel_memory() - kernel_before) / count}
        server.stop(60)
    return [
        Row(f"{count} idle connections", "bytes PSS a connection", grown["native"]["user"],
            grown["ours"]["user"], {},
            Target("<= native + 8 KiB", lambda native, ours: ours <= native + IDLE_LIMIT, False),
            tried=count, wanted=IDLE_CONNECTIONS),
        Row(f"{count} idle connections", "bytes of kernel a connection, both ends",
            grown["native"]["kernel"], grown["ours"]["kernel"], {},
            Target("reported", lambda native, ours: True, False), tried=count, wanted=IDLE_CONNECTIONS)]


def cpu_seconds(pids: list) -> float:
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def idle_session(stage: Stage, quick: bool) -> list:
    """Processor time of a session with one open, silent connection."""
    tool = build.program("benchtool")
    seconds = 2 if quick else 10
    used = {}
    for mode, path, port in (("native", "native", 8700), ("mw", "ours", 8701)):
        server = stage.start("hold", [tool, "hold", port], mode)
        stage.wait_port(port, server)
        with idle_clients(stage, server, port, 1):
            time.sleep(1)  # not a synchronisation: the first second after activity is not idle
            pids = family(server.pid)
            before = cpu_seconds(pids)
            time.sleep(seconds)  # the measured interval itself
            used[path] = (cpu_seconds(pids) - before) / seconds
        server.stop()
    return [Row("idle session", "part of a core", used["native"], used["ours"], {},
                Target(f"<= {IDLE_CPU_LIMIT:g}", lambda native, ours: ours <= IDLE_CPU_LIMIT, False))]


def count_calls(stage: Stage, pids: list, load) -> int:
    """System calls of the processes, all threads, while load() runs."""
    report = stage.directory / "strace.out"
    words = ["strace", "-f", "-c", "-o", str(report)]
    for pid in pids:
        words += ["-p", str(pid)]
    tracer = subprocess.Popen(words, stderr=subprocess.PIPE)
    try:
        attached = 0
        while attached < len(pids):
            line = tracer.stderr.readline()
            if not line:
                raise RuntimeError("strace ended before it was attached")
            attached += b"attached" in line
        load()
    finally:
        tracer.terminate()
        tracer.communicate(timeout=30)
    total = re.search(r"^100\.00\s+\S+\s+\S*\s+(\d+).*total$", report.read_text(), re.M)
    return int(total[1]) if total else 0


def allocations_so_far(stage: Stage, pid: int) -> int:
    return int.from_bytes((stage.directory / "allocations" / str(pid)).read_bytes(), sys.byteorder)


def per_message(stage: Stage, quick: bool) -> list:
    """redis with 50 clients: system calls and allocations for one GET, of the server and of the INS."""
    requests = 5000 if quick else 50000
    calls, allocations = {}, {}
    (stage.directory / "allocations").mkdir()
    (stage.directory / "allocations").chmod(0o777)
    counter = {"LD_PRELOAD": str(build.program("libcount_allocations.so")),
               "MWBENCH_ALLOCATIONS": str(stage.directory / "allocations")}
    for mode, path, port in (("native", "native", 8800), ("mw", "ours", 8801)):
        server = stage.start("redis", ["redis-server", "--port", port, "--bind", "127.0.0.1",
                                       "--save", "", "--dir", stage.directory], mode, counter)
        stage.wait_port(port, server)

        def load() -> None:
            stage.run("redis-benchmark", "-h", "127.0.0.1", "-p", port, "--csv", "-t", "get",
                      "-c", 50, "-n", requests)
        load()
        named = {command_of(pid): pid for pid in family(server.pid)}
        counted = [(path, named["redis-server"])]
        if path == "ours":
            counted.append(("ins", named["mwins"]))
        for key, pid in counted:
            before = allocations_so_far(stage, pid)
            load()
            allocations[key] = (allocations_so_far(stage, pid) - before) / requests
            calls[key] = count_calls(stage, [pid], load) / requests
        server.stop()
    reported = Target("reported", lambda native, ours: True, False)
    return [Row("redis GET, 50 clients", f"{what}/request of the {who}", counts.get(native, 0),
                counts[ours], {}, reported)
            for what, counts in (("system calls", calls), ("allocations", allocations))
            for who, native, ours in (("application", "native", "ours"), ("INS", "", "ins"))]


OBSERVATION_BYTES = 116


class Engines:
    """Programs that are connected to a session's NetFlow server while this is open."""

    def __init__(self, kind: str, count: int, socket: Path) -> None:
        self.received = 0  # bytes, once it is closed
        self._all = [subprocess.Popen([str(build.program("benchtool")), kind, str(socket)],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
        for one in self._all:
            assert one.stdout.readline() == b"connected\n"

    def __enter__(self) -> "Engines":
        return self

    def __exit__(self, *_) -> None:
        for one in self._all:
            self.received += int(one.communicate(timeout=30)[0])


def netflow_socket(server: proc.Background) -> Path:
    """Where the session of this `mw run` serves engines."""
    listed = json.loads(proc.run([build.program("mw"), "ps", "--json"], 30).stdout)
    socket, = (Path(one["registry"]) / "netflow.sock" for one in listed["sessions"]
               if one["pids"]["mw_run"] == server.pid)
    return socket


def sampling(stage: Stage, quick: bool) -> list:
    """Processor time of the INS and of the driver while one engine reads samples of silent connections."""
    port, seconds = 8950, 1 if quick else 10
    count = idle_count(SAMPLED_CONNECTIONS, quick)
    server = stage.start("hold", [build.program("benchtool"), "hold", port], "mw")
    stage.wait_port(port, server)
    with idle_clients(stage, server, port, count), \
            mwnetflow.Client(str(netflow_socket(server)), timeout=30) as engine:
        engine.sample(SAMPLING_INTERVAL)
        named = {command_of(pid): pid for pid in family(server.pid)}
        engine.next_round()
        before = {name: cpu_seconds([named[name]]) for name in ("mwins", "mwcommsd")}
        began, samples = time.monotonic(), 0
        while (elapsed := time.monotonic() - began) < seconds:
            samples += len(engine.next_round().samples)
        used = {name: (cpu_seconds([named[name]]) - was) / elapsed for name, was in before.items()}
    workload = f"samples of {count} idle connections"
    limit = Target(f"<= {SAMPLING_LIMIT:g}", lambda native, ours: ours <= SAMPLING_LIMIT, False)
    every = count / SAMPLING_INTERVAL
    return [Row(workload, "part of a core, INS and driver", 0, sum(used.values()), {}, limit,
                tried=count, wanted=SAMPLED_CONNECTIONS),
            Row(workload, "samples/s", 0, samples / elapsed, {},
                Target(f">= 0.95 x {every:.0f}", lambda native, ours: ours >= 0.95 * every))]


def observations(stage: Stage, quick: bool) -> list:
    """What mwcommsd's NetFlow service delivers from a source that no application and no stack can be here."""
    seconds, rows = 1 if quick else 5, []
    for rate, count in ((500_000, 1), (50_000, 8)):
        socket = stage.directory / f"source-{count}.sock"
        source = subprocess.Popen([str(build.program("netflow_source")), str(socket), str(rate)],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            if source.stdout.readline() != b"serving\n":
                raise AssertionError("the source of observations does not serve")
            began = time.monotonic()
            with Engines("engine", count, socket) as engines:
                time.sleep(seconds)  # the measured interval itself
                elapsed = time.monotonic() - began
            refused, used_ns = map(int, source.communicate(timeout=30)[0].split())
        finally:
            source.kill()
            source.wait()
        wanted = rate * count
        workload = f"{rate} observations/s, {count} engine{'s' if count > 1 else ''}"
        rows += [Row(workload, "observations/s delivered", 0,
                     engines.received / OBSERVATION_BYTES / elapsed, {},
                     Target(f">= 0.99 x {wanted}", lambda native, ours, wanted=wanted: ours >= 0.99 * wanted)),
                 Row(workload, "part of a core, the service", 0, used_ns / 1e9 / elapsed, {},
                     Target("reported", lambda *_: True)),
                 Row(workload, "observations without room in the ring", 0, refused, {},
                     Target("== 0", lambda native, ours: ours == 0))]
    return rows


def monitoring(stage: Stage, quick: bool) -> list:
    """The same protected nginx unwatched (in the column "native"), and watched in several ways."""
    port, seconds = 8900, 1 if quick else 5
    server = stage.start("nginx", nginx_command(stage, port), "mw")
    stage.wait_port(port, server)
    socket = netflow_socket(server)
    ways = {"one engine": ("engine", 1, 0.95), "eight engines": ("engine", 8, 0.95),
            "one engine that reads nothing": ("deaf", 1, 0.98)}
    rates, delivered = {}, {}
    for _ in range(1 if quick else 5):
        rates.setdefault("unwatched", []).append(wrk(stage, f"http://127.0.0.1:{port}/index.html", seconds)["requests/s"])
        for way, (kind, count, _) in ways.items():
            with Engines(kind, count, socket) as engines:
                rates.setdefault(way, []).append(wrk(stage, f"http://127.0.0.1:{port}/index.html", seconds)["requests/s"])
            delivered.setdefault(way, []).append(engines.received / OBSERVATION_BYTES / seconds)
    rows = []
    for way, (kind, count, part) in ways.items():
        rows.append(make_row("nginx, watched", f"requests/s with {way}",
                             {"native": rates["unwatched"], "ours": rates[way]},
                             Target(f">= {part:g} x unwatched",
                                    lambda native, ours, part=part: ours >= part * native)))
        if kind == "engine":
            rows.append(Row("nginx, watched", f"observations/s to {way}", 0,
                            statistics.median(delivered[way]), {}, Target("reported", lambda *_: True)))
    return rows


WORKLOADS = (nginx, nginx_tls, apache, redis, pingpong, iperf, churn, network_apache, network_churn, idle_connections,
             idle_session, per_message, sampling, observations, monitoring)


def machine() -> dict:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"],
                            capture_output=True, text=True, timeout=20)
    return {"cpu": model[1] if model else platform.machine(), "cores": os.cpu_count(),
            "kernel": platform.release(), "commit": commit.stdout.strip() or "unknown",
            "date": datetime.date.today().isoformat(), "command": " ".join(sys.argv)}


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def print_table(rows: list) -> None:
    print(f"{'workload':48} {'metric':40} {'native':>9} {'ours':>9} {'ratio':>6} {'haproxy':>9} "
          f"{'socat':>9}  target")
    for row in rows:
        relays = [number(row.relays[name]) if name in row.relays else "-"
                  for name in ("haproxy", "socat")]
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        print(f"{row.workload:48} {row.metric:40} {number(row.native):>9} {number(row.ours):>9} "
              f"{ratio:>6} {relays[0]:>9} {relays[1]:>9}  {row.target.text}: {row.verdict()}")
        for part, taken in row.parts.items():
            print(f"{'':48} {'  ' + part:40} {number(taken['native']):>9} {number(taken['ours']):>9}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all")
    parser.add_argument("--only", action="append", choices=[one.__name__ for one in WORKLOADS],
                        help="only this workload; may be repeated")
    parser.add_argument("--check-arguments", action="store_true", help="do nothing else")
    options = parser.parse_args()
    if options.check_arguments:
        return 0
    from mwtest import repairs  # here: it needs pytest, which may not be installed to check arguments
    if os.geteuid() != 0:
        print("bench.py: needs root: it makes a network namespace", file=sys.stderr)
        return 1
    netns.sweep()
    raise_file_limit()
    rows = []
    failed = []
    for workload in WORKLOADS:
        if options.only and workload.__name__ not in options.only:
            continue
        print(f"bench: {workload.__name__}", file=sys.stderr, flush=True)
        try:
            watch = repairs.Watch()
            with Stage() as stage:
                rows += workload(stage, options.quick)
            if grown := watch.grown():
                failed.append(f"{workload.__name__}: {repairs.sentence(grown)}")
        except AssertionError as e:
            # The others' minutes are not lost with it.
            failed.append(f"{workload.__name__}: {e}")
    if options.json:
        json.dump({"machine": machine(), "rows": [row.document() for row in rows]}, sys.stdout,
                  indent=1)
        print()
    else:
        print(", ".join(f"{key}: {value}" for key, value in machine().items()))
        print_table(rows)
    for failure in failed:
        print(f"bench.py: failed: {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
