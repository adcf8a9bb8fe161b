"""How connections are told of: by whom they are held, how they stand and how they ended, live (`mw flows -w`) and in the
exported file, which are the same records."""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading

import pytest

from mwtest import proc
from mwtest.echo import ECHO, SECONDS, Echo, mw_says

from mwnetflow import Client, ExtendedObservation, Feature, FlowFlag, Kind, Observation

ACCEPTED = FlowFlag.INBOUND | FlowFlag.ESTABLISHED


@pytest.fixture
def exported(tmp_path):
    return tmp_path / "flows.json"


@pytest.fixture
def echo(start, free_port, tmp_path, exported) -> Echo:
    config = tmp_path / "exports.toml"
    config.write_text(f'[exports.json_lines]\nfile = "{exported}"\n')
    program, log = tmp_path / "echo.py", tmp_path / "echo.log"
    program.write_text(ECHO)
    session = start("--config", str(config), "-p", f"{free_port}:{free_port}", "--", "/usr/bin/python3", str(program),
                    str(free_port), str(log))
    served = Echo(session, free_port, log)
    served.wait_event(event="ready")
    return served


class Watcher:
    """`mw flows -w` and what it printed so far."""

    def __init__(self, mw, session, *words: str) -> None:
        self.process = subprocess.Popen([mw, "flows", "-w", "-s", session.name, *words], stdout=subprocess.PIPE, text=True)
        self.records = []
        self.news = threading.Condition()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        for line in self.process.stdout:
            with self.news:
                self.records.append(json.loads(line))
                self.news.notify_all()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()

    def until(self, holds):
        """The first record of which this holds."""
        def found():
            return next((r for r in self.records if holds(r)), None)
        with self.news:
            assert self.news.wait_for(lambda: found() is not None, SECONDS), self.records
            return found()


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def closed(engine: Client, number: int) -> ExtendedObservation:
    return next(o for o in engine.observations() if o.kind is Kind.CLOSE and o.socket == number)


def test_an_engine_that_asks_for_it_is_told_who_and_how(echo) -> None:
    server = echo.wait_event(event="ready")["pid"]
    with echo.engine() as engine, echo.engine() as plain:
        assert engine.get(Feature.OBSERVATIONS) == 1
        engine.observe_holders()
        assert engine.get(Feature.OBSERVATIONS) == 2
        with echo.connect() as peer:
            peer.sendall(b"x")
            assert peer.recv(1) == b"x"
            accepted = next(o for o in engine.observations() if o.kind is Kind.ACCEPT)
            received = next(o for o in engine.observations() if o.kind is Kind.RECV)
            peer.shutdown(socket.SHUT_WR)
            # The end that the peer sent is no call of the application.
            ended = next(o for o in engine.observations() if o.kind is Kind.NONE)
        end = closed(engine, accepted.extra)
        assert ended.flags == ACCEPTED | FlowFlag.PEER_FIN
        assert end.flags == ACCEPTED | FlowFlag.PEER_FIN | FlowFlag.OUR_FIN
        for o in (accepted, received, end):
            assert (o.pid, o.uid, o.datagram) == (server, 0, False) and o.command.startswith("python3")
        # The server may not have taken it yet when its first byte comes.
        assert received.flags & ~FlowFlag.LISTENERS_HOLDER == ACCEPTED
        assert end.sequence > received.sequence > accepted.sequence
        # Nothing of this reaches whoever did not ask.
        seen = []
        for o in plain.observations():
            seen.append(o)
            if o.kind is Kind.CLOSE:
                break
        assert {type(o) for o in seen} == {Observation} and Kind.NONE not in {o.kind for o in seen}


def test_how_accepted_connections_end(echo) -> None:
    with echo.engine() as engine:
        engine.observe_holders()
        with echo.pair(engine) as (peer, number):
            reset(peer)
            assert closed(engine, number).flags == ACCEPTED | FlowFlag.PEER_RST
        with echo.pair(engine) as (peer, number):
            engine.close_socket(number)
            assert closed(engine, number).flags == ACCEPTED | FlowFlag.OUR_RST | FlowFlag.CUT
        # Shorter than any sample, and without a byte.
        echo.connect().close()
        end = next(o for o in engine.observations() if o.kind is Kind.CLOSE)
        assert end.flags == ACCEPTED | FlowFlag.PEER_FIN | FlowFlag.OUR_FIN
        assert end.pid == echo.wait_event(event="ready")["pid"] and (end.bytes_in, end.bytes_out) == (0, 0)


def test_an_application_that_leaves_bytes_unread_resets(start, free_port, tmp_path) -> None:
    program = tmp_path / "rude.py"
    program.write_text("import select, socket, sys\n"
                       "s = socket.create_server(('', int(sys.argv[1])))\n"
                       "while True:\n"
                       "    c = s.accept()[0]\n"
                       "    select.select([c], [], [])\n"
                       "    c.close()\n")
    session = start("-p", f"{free_port}:{free_port}", "--", "/usr/bin/python3", str(program), str(free_port))
    with Client(session=session.name, timeout=SECONDS) as engine:
        engine.monitor(True)
        engine.observe_holders()

        def connects():
            with contextlib.suppress(ConnectionError):
                return socket.create_connection(("127.0.0.1", free_port), SECONDS)

        with proc.wait_for(connects, SECONDS, "the server listens", session.background) as peer:
            peer.sendall(b"nobody reads this")
            end = next(o for o in engine.observations()
                       if o.kind is Kind.CLOSE and o.remote.port == peer.getsockname()[1] or o.flags & FlowFlag.OUR_RST)
            assert end.flags == ACCEPTED | FlowFlag.OUR_RST


def test_how_attempts_end_and_what_may_be_asked_for(echo, mw, start, tmp_path) -> None:
    """A client's connections: refused, given up, closed by itself, and a datagram, each with its state; the filters hold
    for what began after they were set."""
    gate, program = tmp_path / "gate", tmp_path / "client.py"
    os.mkfifo(gate)
    host = echo.session.record["host4"]
    program.write_text(f"""
import socket
held = socket.create_connection(({host!r}, {echo.port}))
held_too = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
held_too.connect(("127.0.0.1", 12))
open({str(gate)!r}).read()
def attempt(port, address={host!r}):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex((address, port))
    return s
refused = socket.socket()
try:
    refused.connect(("127.0.0.1", 9))
except ConnectionRefusedError:
    pass
refused.close()
nobody = attempt(10, "192.0.2.99")
nobody.close()
ok = socket.create_connection(({host!r}, {echo.port}))
ok.sendall(b"abc")
assert ok.recv(3) == b"abc"
ok.shutdown(socket.SHUT_WR)
assert ok.recv(1) == b""
ok.close()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.connect(("127.0.0.1", 11))
u.send(b"12345")
u.close()
open({str(gate)!r}).read()
""")
    session = start("--egress", f"{host},192.0.2.99", "--", "/usr/bin/python3", str(program))
    with Client(session=session.name, timeout=SECONDS) as engine:
        engine.monitor(True)
        engine.observe_holders()
        with Watcher(mw, session) as everything, Watcher(mw, session, "udp") as udp, \
                Watcher(mw, session, "tcp", "uid", "0", "command", "python3") as tcp, \
                Watcher(mw, session, "pid", "1") as nothing:
            # Who tells of what is held follows the rest.
            for watcher, port in ((everything, echo.port), (everything, 12), (udp, 12), (tcp, echo.port)):
                watcher.until(lambda r: r["id.resp_p"] == port)
            gate.write_text("")
            pid = next(o.pid for o in engine.observations() if o.kind is Kind.SEND)
            datagram = udp.until(lambda r: r["final"])
            assert (datagram["proto"], datagram["id.resp_p"], datagram["orig_bytes"]) == ("udp", 11, 5)
            done = everything.until(lambda r: r["final"] and r["proto"] == "udp")
            assert done == {**datagram, "mono_ns": done["mono_ns"]}
            ends = {r["id.resp_p"]: r for r in everything.records if r["final"]}
            assert (ends[9]["conn_state"], ends[9]["history"]) == ("REJ", "Sr")
            assert (ends[10]["conn_state"], ends[10]["history"]) == ("S0", "S")
            assert (ends[echo.port]["conn_state"], ends[echo.port]["local_orig"]) == ("SF", True)
            assert ends[echo.port]["history"] == "ShADdFf"
            assert {(r["pid"], r["user_id"], r["command"]) for r in everything.records} == {(pid, 0, "python3")}
            tcp.until(lambda r: r["final"] and r["id.resp_p"] == echo.port)
            assert {r["proto"] for r in tcp.records} == {"tcp"} and {r["proto"] for r in udp.records} == {"udp"}
            assert not nothing.records
    gate.write_text("")


def test_what_happens_while_somebody_begins_to_follow_is_told_whole(mw, start) -> None:
    """A program's datagram sockets come and go all the time, and watchers begin meanwhile."""
    session = start("--", "/usr/bin/python3", "-c", """
import socket
while True:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("127.0.0.1", 9))
""")
    for _ in range(10):
        with Watcher(mw, session) as watcher:
            watcher.until(lambda r: r["final"])
            assert {(r["proto"], r.get("command")) for r in watcher.records} == {("udp", "python3")}


def test_a_held_connection_is_told_again_and_the_file_has_the_same_name_for_it(echo, mw, exported) -> None:
    with echo.connect() as held:
        held.sendall(b"abc")
        assert held.recv(3) == b"abc"
        port = held.getsockname()[1]
        with Watcher(mw, echo.session, "--interval", "1", "port", str(port)) as watcher:
            first = watcher.until(lambda r: r["reason"] == "begun")
            again = watcher.until(lambda r: r["duration"] > first["duration"] + 2)
            for r in (first, again):
                assert (r["final"], r["conn_state"], r["orig_bytes"], r["resp_bytes"]) == (False, "S1", 3, 3)
                assert (r["schema"], r["proto"], r["local_orig"]) == (1, "tcp", False)
                assert r["pid"] == echo.wait_event(event="ready")["pid"]
            held.shutdown(socket.SHUT_WR)
            assert held.recv(1) == b""
            last = watcher.until(lambda r: r["final"])
            assert (last["conn_state"], last["uid"], last["reason"]) == ("SF", first["uid"], "closed")
            assert watcher.records[-1] is last

    def in_file():
        lines = [json.loads(line) for line in exported.read_text().splitlines()]
        return [line for line in lines if line["uid"] == last["uid"] and line["final"]]

    same = proc.wait_for(in_file, SECONDS, "the file has it", echo.session.background)[0]
    assert set(same) == set(last)
    for name in set(same) - {"mono_ns"}:
        if name != "history":  # the file saw its beginning
            assert same[name] == last[name], name
    assert same["history"] == "ShADdFf" and last["history"] == "Ff"


def test_what_dies_with_its_stack_did_not_finish(echo, exported) -> None:
    with echo.connect() as peer:
        peer.sendall(b"abc")
        assert peer.recv(3) == b"abc"
        os.kill(echo.session.pid("ins"), signal.SIGKILL)

        def told():
            lines = [json.loads(line) for line in exported.read_text().splitlines()]
            return [line for line in lines if line["id.orig_p"] == peer.getsockname()[1] and line["final"]]

        record = proc.wait_for(told, SECONDS, "its record", echo.session.background)[0]
    assert (record["reason"], record["conn_state"]) == ("unobserved", "S1") and "F" not in record["history"].upper()


def test_an_interval_that_is_none_is_refused(mw) -> None:
    mw_says(mw, "flows", "-w", "--interval", "0", status=2)
