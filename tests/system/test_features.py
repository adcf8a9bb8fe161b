"""What an engine sets or reads of one socket, told by what the peer and the application then see."""

import errno
import select
import subprocess

import pytest

from mwtest import proc
from mwtest.echo import ECHO, SECONDS, Echo

from mwnetflow import Feature, Kind

# Tells an engine more than it answers: one socket that does not block, one with an error that nobody has asked for.
STATES = """
import json, select, socket, sys
log = open(sys.argv[2], "a", buffering=1)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
quiet = socket.socket()
quiet.setblocking(False)
nobody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
nobody.bind(("127.0.0.1", 0))
refused = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
refused.connect(nobody.getsockname())
nobody.close()
log.write(json.dumps({"event": "ready"}) + "\\n")
served = listener.accept()[0]
for word in served.makefile():
    if word == "ask\\n":
        refused.send(b"x")
        select.select([refused], [], [], 20)
    answer = refused.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if word == "take\\n" else quiet.fileno()
    served.sendall(b"%d\\n" % answer)
"""


@pytest.fixture
def serve(start, free_port, tmp_path):
    """On the host's network, so that nobody stands between the peer and the stack."""
    def begin(text: str) -> Echo:
        program = tmp_path / "server.py"
        program.write_text(text)
        session = start("--net", "host", "--", "/usr/bin/python3", str(program), str(free_port), str(tmp_path / "log"))
        one = Echo(session, free_port, tmp_path / "log")
        one.wait_event(event="ready")
        return one
    return begin


def accepted(engine, port: int):
    return next(o for o in engine.observations() if o.kind is Kind.ACCEPT and o.remote.port == port)


def test_a_listener_that_defers_shows_no_silent_connection(serve) -> None:
    served = serve(ECHO)
    with served.engine() as engine, served.pair(engine) as (peer, _), served.connect() as loud:
        listener = accepted(engine, loud.getsockname()[1]).socket
        assert engine.get(Feature.DEFER_ACCEPT, listener) == 0
        assert engine.set(Feature.DEFER_ACCEPT, 60, listener) >= 60
        with served.connect() as silent, served.connect() as speaker:
            speaker.sendall(b"word")
            first = next(o for o in engine.observations() if o.kind is Kind.ACCEPT)
            assert first.remote.port == speaker.getsockname()[1] and speaker.recv(4) == b"word"
            silent.sendall(b"late")
            assert accepted(engine, silent.getsockname()[1]) and silent.recv(4) == b"late"
        assert engine.set(Feature.DEFER_ACCEPT, 0, listener) == 0
        with served.connect() as silent:
            assert accepted(engine, silent.getsockname()[1])


def test_a_send_timeout_reaches_a_call_that_is_blocked(serve) -> None:
    served = serve(ECHO)
    with served.engine() as engine, served.pair(engine) as (peer, number):
        assert engine.get(Feature.SNDTIMEO, number) == 0
        peer.setblocking(False)
        # Until the server, which sends all that comes back and reads nothing meanwhile, takes no more.
        while select.select([], [peer], [], 1)[1]:
            peer.send(bytes(65536))
        assert engine.set(Feature.SNDTIMEO, 0.25, number) == 0.25
        served.wait_event(event="error", errno=errno.EAGAIN, peer=peer.getsockname()[1])


def test_keepalive_runs_its_timer(serve) -> None:
    served = serve(ECHO)
    with served.engine() as engine, served.pair(engine) as (peer, number):
        def timer() -> str:
            query = ["ss", "-tnoH", f"sport = :{served.port} and dport = :{peer.getsockname()[1]}"]
            return subprocess.run(query, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
        assert "keepalive" not in timer()
        assert engine.set(Feature.KEEPALIVE, 1, number) == 1
        proc.wait_for(lambda: "keepalive" in timer(), SECONDS, "the timer runs")
        assert engine.set(Feature.KEEPALIVE, 0, number) == 0
        proc.wait_for(lambda: "keepalive" not in timer(), SECONDS, "the timer is stopped")


def test_what_the_application_set_and_what_it_has_not_asked_for(serve) -> None:
    served = serve(STATES)
    with served.engine() as engine, served.connect() as peer:
        lines = peer.makefile("rwb", buffering=0)

        def says(word: str) -> int:
            lines.write(word.encode() + b"\n")
            return int(lines.readline())
        says("look")
        flows = {flow.socket: flow for flow in engine.list()}
        states = {number: engine.get(Feature.NONBLOCK, number) for number in flows}
        assert sorted(states.values()) == [0, 0, 0, 1]
        refused = [number for number, flow in flows.items() if flow.datagram]
        assert len(refused) == 1 and engine.get(Feature.ERROR, refused[0]) == 0
        says("ask")
        assert engine.get(Feature.ERROR, refused[0]) == errno.ECONNREFUSED
        assert says("take") == errno.ECONNREFUSED
        assert engine.get(Feature.ERROR, refused[0]) == 0
