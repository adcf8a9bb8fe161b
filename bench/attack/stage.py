"""stage.py - where an attack takes place: three namespaces, a server behind the channel, and defences.

    honest, probe  10.201.1.0/24 --- [ server's host: haproxy if asked, mw run -p PORT:80 ] --- 10.201.2.0/24  attacker

The host's own network is not touched: what `mw run` publishes is published in the server's namespace. Everything is
removed at the end; if the bench is killed, its janitor does it.
"""

import itertools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "tests")]

import generators  # noqa: E402  (needs the path above)
import janitor  # noqa: E402
import measure  # noqa: E402
from mwtest import build, netns, proc, session  # noqa: E402

PYTHON = "/usr/bin/python3"
FRONT_PORT, CONTROL_PORT = 8081, 8090
SERVER_FOR_HONEST, SERVER_FOR_ATTACKER = "10.201.1.1", "10.201.2.1"
HONEST = [f"10.201.1.{number}" for number in range(10, 40)]
SHARED = "10.201.1.99"  # of the browsers among the honest clients, and of an attack that hides behind them
ATTACKER = "10.201.2.10"
PAGE_BYTES, FILE_BYTES, BIG_BYTES = 10_000, 400_000, 8_000_000


class Defence:
    """What stands between an attack and the server. `name` is what a user calls it."""
    name = "none"
    reqtimeout = None  # mod_reqtimeout's directives; None: the module is not loaded
    front_port = 0     # where clients connect, if not to the server itself

    def why_not(self, server: str) -> str:
        """Why it cannot be used with this server here; empty if it can."""
        return ""

    def start(self, stage: "Stage") -> None:
        """Starts what it needs beside the server; the stage ends it."""

    def first_action(self, stage: "Stage", attack: "Attack") -> float:
        """When it first did something about a connection or the address of the attack, if it says so itself."""
        return None


class ReqTimeout(Defence):
    def __init__(self, name: str, directives: str) -> None:
        self.name, self.reqtimeout = name, directives

    def why_not(self, server: str) -> str:
        return "" if server == "apache" else "it is a module of Apache"


class Haproxy(Defence):
    name, front_port = "haproxy", FRONT_PORT
    CONFIG = """
global
  maxconn 8000
defaults
  mode http
  option http-buffer-request
  timeout http-request 10s
  timeout http-keep-alive 2s
  timeout connect 5s
  timeout client 20s
  timeout server 20s
  timeout queue 5s
frontend front
  bind *:{front}
  default_backend servers
backend servers
  server one 127.0.0.1:{port} maxconn 140
"""

    def start(self, stage: "Stage") -> None:
        config = stage.directory / "haproxy.cfg"
        config.write_text(self.CONFIG.format(front=FRONT_PORT, port=stage.published))
        stage.start("haproxy", stage.server, ["haproxy", "-db", "-f", config])


class Guard(Defence):
    """The reference engine, with the rules that are built in. program: of another version than the one at hand."""

    def __init__(self, name: str = "guard", program: Path = None) -> None:
        self.name, self._program = name, program

    def start(self, stage: "Stage") -> None:
        stage.start("guard", stage.server, [self._program or build.program("mw"), "guard", "--act", "--audit",
                                            stage.directory / "audit.jsonl", stage.session])

    def first_action(self, stage: "Stage", attack: "Attack") -> float:
        """By its audit log; `ts_mono_ns` is CLOCK_MONOTONIC."""
        lines = map(json.loads, (stage.directory / "audit.jsonl").read_text().splitlines())
        acts = ((one["ts_mono_ns"] / 1e9, one["peer"]) for one in lines if one["what"] in ("close", "block", "cap"))
        return measure.first_act(acts, attack.begin, attack.owns)


DEFENCES = [
    Defence(),
    ReqTimeout("reqtimeout-debian", "RequestReadTimeout header=20-40,minrate=500 body=10,minrate=500\n"),
    ReqTimeout("reqtimeout-strict", "RequestReadTimeout header=5-10,minrate=500 body=5,minrate=500\n"),
    Haproxy(),
    Guard(),
]


class Stage:
    _numbers = itertools.count()

    def __init__(self) -> None:
        # Sessions of one host never publish the same port, even when their namespaces differ: each bench has its own.
        self.published = 10_000 + (os.getpid() * 8 + next(self._numbers) % 8) % 20_000
        self.port = self.published  # where clients connect
        self._running = []
        self._mw = None

    def __enter__(self) -> "Stage":
        self._place = janitor.Place("mwattack")
        self.directory = self._place.directory
        try:
            self._make_network()
            self._make_documents()
            self.start("control", self.server, [
                PYTHON, HERE / "load.py", "control", "--host", "0.0.0.0", "--port", CONTROL_PORT])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        # The namespaces go last: `mw run` still removes its session from within.
        for one in reversed(self._running):
            one.stop(20)
        self._place.close()

    # -- making the place

    def _make_network(self) -> None:
        self.server, self.honest, self.attacker = (self._place.add_namespace() for _ in range(3))
        for name, other, here, there in (("honest", self.honest, SERVER_FOR_HONEST, [*HONEST, SHARED]),
                                         ("attack", self.attacker, SERVER_FOR_ATTACKER, [ATTACKER])):
            netns.ip("link", "add", name, "netns", self.server.name, "type", "veth", "peer", "name", "eth0",
                     "netns", other.name)
            netns.ip("-n", self.server.name, "address", "add", f"{here}/24", "dev", name)
            netns.ip("-n", self.server.name, "link", "set", name, "up")
            for address in there:
                netns.ip("-n", other.name, "address", "add", f"{address}/24", "dev", "eth0")
            netns.ip("-n", other.name, "link", "set", "eth0", "up")
            netns.ip("-n", other.name, "route", "add", "default", "via", here)

    def _make_documents(self) -> None:
        self.documents = self.directory / "www"
        self.documents.mkdir(mode=0o755)
        for name, size in (("page.txt", PAGE_BYTES), ("probe.txt", 20), ("upload.txt", 20), ("file.bin", FILE_BYTES),
                           ("big.bin", BIG_BYTES)):
            (self.documents / name).write_bytes(b"x" * size)

    # -- processes

    def start(self, name: str, namespace: netns.Namespace, words: list, env: dict = None) -> proc.Background:
        one = proc.Background(namespace.wrap(words), self.directory / f"{name}.log", env=env, cwd=self.directory)
        self._running.append(one)
        return one

    def check(self) -> None:
        """Fails if anything that should run has ended: the server, a defence, the load."""
        for one in self._running:
            if not one.alive():
                raise RuntimeError(f"{one.log.name} ended with {one.process.returncode}\n{one.tail()}")

    def stop(self, one: proc.Background, seconds: float) -> None:
        one.stop(seconds)
        self._running.remove(one)

    def start_server(self, server: str, defence: Defence, workers: int = 0) -> None:
        """Through the channel; returns when it answers where clients connect. workers: 0 is Debian's number."""
        backend = self.start("backend", self.server, [PYTHON, HERE / "load.py", "backend", "--socket", self._backend])
        proc.wait_for(self._backend.exists, 20, "the backend listens", backend)
        command, env = (self._apache if server == "apache" else self._nginx)(defence, workers)
        self._mw = self.start(server, self.server,
                              [build.program("mw"), "run", "-p", f"{self.published}:80", "--", *command], env)
        self._place.add_session(self._mw.pid)
        self.session = session.Session(self._mw).name
        self._wait_for_page(self.published, self._mw)
        defence.start(self)
        self.port = defence.front_port or self.published
        self._wait_for_page(self.port, self._running[-1])

    def _wait_for_page(self, port: int, server: proc.Background) -> None:
        def answers() -> bool:
            done = proc.run(self.honest.wrap(["curl", "-s", "-o", "/dev/null", "-m", "5",
                                              f"http://{SERVER_FOR_HONEST}:{port}/page.txt"]), 20, check=False)
            return done.returncode == 0
        proc.wait_for(answers, 60, f"port {port} answers", server)

    # -- servers

    @property
    def _backend(self) -> Path:
        """The socket of what answers long polls and sends events."""
        return self.directory / "backend.sock"

    def _apache(self, defence: Defence, workers: int) -> tuple:
        root = self.directory / "apache2"
        shutil.copytree("/etc/apache2", root, symlinks=True)
        for one in (*(root / "mods-enabled").glob("reqtimeout.*"), *(root / "sites-enabled").iterdir()):
            one.unlink()
        if defence.reqtimeout:
            (root / "mods-enabled/reqtimeout.load").symlink_to("../mods-available/reqtimeout.load")
            (root / "mods-enabled/reqtimeout.conf").write_text(defence.reqtimeout)
        for one in ("proxy.load", "proxy_http.load"):
            link = root / "mods-enabled" / one
            if not link.exists():
                link.symlink_to(f"../mods-available/{one}")
        passed_on = "".join(f" ProxyPass /{one} unix:{self._backend}|http://backend/{one} flushpackets=on\n"
                            for one in ("poll", "events"))
        (root / "sites-enabled/site.conf").write_text(
            f"<VirtualHost *:80>\n DocumentRoot {self.documents}\n{passed_on}</VirtualHost>\n"
            f"<Directory {self.documents}>\n Require all granted\n</Directory>\n")
        if workers:  # one worker a connection, and few of them
            for one in (root / "mods-enabled").glob("mpm_*"):
                one.unlink()
            (root / "mods-enabled/mpm_prefork.load").symlink_to("../mods-available/mpm_prefork.load")
            (root / "mods-enabled/mpm_prefork.conf").write_text(
                f"StartServers {workers}\nMinSpareServers 1\nMaxSpareServers {workers}\nMaxRequestWorkers {workers}\n")
        for folder in ("run", "lock", "logs"):
            (self.directory / folder).mkdir(mode=0o777)
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C",
               "APACHE_RUN_USER": "www-data", "APACHE_RUN_GROUP": "www-data",
               "APACHE_PID_FILE": f"{self.directory}/run/apache2.pid", "APACHE_RUN_DIR": f"{self.directory}/run",
               "APACHE_LOCK_DIR": f"{self.directory}/lock", "APACHE_LOG_DIR": f"{self.directory}/logs"}
        return ["apache2", "-d", root, "-f", "apache2.conf", "-D", "FOREGROUND"], env

    def _nginx(self, defence: Defence, workers: int) -> tuple:
        """Debian's settings; an upload goes to a second server, since nginx alone takes none."""
        config = self.directory / "nginx.conf"
        config.write_text(f"""
user www-data;
daemon off;
worker_processes {"1" if workers else "auto"};
pid {self.directory}/nginx.pid;
error_log {self.directory}/nginx-error.log;
events {{ worker_connections {workers or 768}; }}
http {{
  sendfile on;
  tcp_nopush on;
  types_hash_max_size 2048;
  include /etc/nginx/mime.types;
  default_type application/octet-stream;
  access_log {self.directory}/nginx-access.log;
  server {{
    listen 80 default_server;
    root {self.documents};
    location = /upload.txt {{ proxy_pass http://127.0.0.1:81; }}
    location = /poll {{ proxy_pass http://unix:{self._backend}; }}
    location = /events {{ proxy_pass http://unix:{self._backend}; proxy_buffering off; }}
  }}
  server {{ listen 127.0.0.1:81; location / {{ return 200 "taken"; }} }}
}}
""")
        return ["nginx", "-c", config], None


# -- one run

def read_events(path: Path) -> list:
    """The complete lines of an events file."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[:text.rfind("\n") + 1].splitlines() if line.startswith("{")]


class Load:
    """The honest clients and the probe, as long as the stage needs them."""

    def __init__(self, stage: Stage, fast: int = 6, slow: int = 5, waiting: int = 3, browsers: int = 6,
                 per_browser: int = 6) -> None:
        """waiting: clients of each kind that waits for the server, long polls and event streams."""
        common = ["--host", SERVER_FOR_HONEST, "--port", stage.port, "--page", PAGE_BYTES, "--file", FILE_BYTES]
        sources = [word for address in HONEST[1:] for word in ("--source", address)]
        self._stage = stage
        self.begin = time.monotonic()
        self._honest = stage.start("honest", stage.honest, [PYTHON, HERE / "load.py", "honest", *common, *sources,
                                                           "--fast", fast, "--slow", slow, "--polls", waiting,
                                                           "--streams", waiting, "--browsers", browsers,
                                                           "--per-browser", per_browser, "--shared-source", SHARED])
        self._probe = stage.start("probe", stage.honest, [
            PYTHON, HERE / "load.py", "probe", *common, "--source", HONEST[0], "--control-host", SERVER_FOR_HONEST,
            "--control-port", CONTROL_PORT])

    def probes(self, kind: str = "probe") -> list:
        return [one for one in read_events(self._probe.log) if one["kind"] == kind]

    def honest(self) -> list:
        return read_events(self._honest.log)

    def finish(self) -> None:
        """Nothing new is started; what runs may end. Then the events are complete."""
        for one in (self._honest, self._probe):
            one.process.send_signal(signal.SIGTERM)
        for one in (self._honest, self._probe):
            proc.wait_for(lambda one=one: not one.alive(), 30, f"{one.log.name} finishes")
            if one.process.returncode != 0:
                raise RuntimeError(f"{one.log.name} ended with {one.process.returncode}\n{one.tail()}")


class Attack:
    """One attack, under way until stop()."""

    def __init__(self, stage: Stage, name: str, connections: int, number: int = 0) -> None:
        self._stage = stage
        self.begin = time.monotonic()
        self.shared = name in generators.SHARED
        where = stage.honest if self.shared else stage.attacker
        self._process = stage.start(f"attack-{name}-{number}", where, [
            PYTHON, HERE / "generators.py", name, "--host", SERVER_FOR_HONEST if self.shared else SERVER_FOR_ATTACKER,
            "--port", stage.port, "--connections", connections, "--rate", max(10, connections // 5),
            *(("--source", SHARED) if self.shared else ())])

    def events(self) -> list:
        return read_events(self._process.log)

    def owns(self, peer: str, when: float) -> bool:
        """Is this the attack's address, or ADDRESS:PORT a connection of it? A shared address is honest people's too."""
        address, _, port = peer.partition(":")
        if not self.shared:
            return address == ATTACKER
        mine = (one["ports"] for one in self.events() if one["kind"] == "attack" and one["t"] <= when + 1)
        return address == SHARED and port != "" and any(int(port) in ports for ports in mine)

    def stop(self) -> None:
        self._stage.stop(self._process, 10)
