"""Makes tests/mwtest and the Python client importable, removes what a killed test run left behind, and has the
fixtures for `mw run`."""

import os
import signal
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "clients" / "python")]

from mwtest import box, build, clock, host, netns, proc, repairs  # noqa: E402  (needs the paths above)
from mwtest.session import Session, host_state  # noqa: E402

nothing_repaired = repairs.nothing_repaired  # a fixture of every test


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A background job of a shell without job control begins with SIGINT ignored, one of nohup with SIGHUP, and so
    would every child: a shell cannot even trap it then. What has a handler here is at its default in the children."""

    def end(number, _frame):
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
              signal.SIGHUP: signal.signal(signal.SIGHUP, end)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def no_leftovers():
    netns.sweep()
    box.sweep()
    yield


@pytest.fixture
def namespace():
    with netns.Namespace() as one:
        yield one


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


@pytest.fixture
def start(mw, tmp_path):
    """start(arguments...) -> Session, ended after the test; `limits` are bash's ulimit's."""
    running = []
    begun = []

    def begin(*arguments: str, limits: str = "-c 0", program: str = mw) -> Session:
        words = ["bash", "-c", f'ulimit {limits}; exec "$@"', "bash", program, "run", *arguments]
        background = proc.Background(words, tmp_path / f"mw{len(running)}.log")
        running.append(background)
        session = Session(background)
        begun.append(session)
        return session

    yield begin
    for background in running:
        background.stop()
    for session in begun:
        session.end()


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
