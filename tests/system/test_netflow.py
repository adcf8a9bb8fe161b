"""The NetFlow interface of a real session, through the Python client: what engines see, and what their
requests do to the peer and to the application."""

import asyncio
import errno
import json
import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mwtest import proc
from mwtest.echo import ECHO, SECONDS, Echo, mw_says

from mwnetflow import (AsyncClient, Client, Congestion, Feature, Kind, Request, RequestError)

@pytest.fixture
def echo(start, free_port, tmp_path) -> Echo:
    program = tmp_path / "echo.py"
    program.write_text(ECHO)
    log = tmp_path / "echo.log"
    session = start("-p", f"{free_port}:{free_port}", "--", "/usr/bin/python3", str(program),
                    str(free_port), str(log))
    served = Echo(session, free_port, log)
    served.wait_event(event="ready")
    return served


def until(engine: Client, kind: Kind, about=lambda o: True):
    """The next observation of this kind, and those before it."""
    before = []
    for o in engine.observations():
        if o.kind is kind and about(o):
            return o, before
        before.append(o)
    raise AssertionError("observations have no end")


def test_a_connection_from_accept_to_close(echo) -> None:
    with echo.engine() as engine:
        with echo.connect() as peer:
            peer.sendall(b"x" * 1000)
            assert peer.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
            port = peer.getsockname()[1]
        accepted, _ = until(engine, Kind.ACCEPT)
        new = accepted.extra
        received, _ = until(engine, Kind.RECV, lambda o: o.socket == new)
        sent, _ = until(engine, Kind.SEND, lambda o: o.socket == new)
        closed, _ = until(engine, Kind.CLOSE)
    assert accepted.socket != new and new >> 56 == 0x53 and accepted.socket >> 56 == 0x53
    assert (accepted.bytes_in, accepted.bytes_out) == (0, 0)
    assert accepted.local.port == echo.port and accepted.remote.port == port
    assert (received.bytes_in, received.bytes_out, received.extra) == (1000, 0, 0)
    assert (sent.bytes_in, sent.bytes_out, sent.extra) == (1000, 1000, 0)
    assert closed.socket == closed.extra == new
    assert (closed.bytes_in, closed.bytes_out) == (1000, 1000)
    assert closed.local == accepted.local and closed.remote == accepted.remote
    assert accepted.session_start <= accepted.now <= received.now <= sent.now <= closed.now
    assert abs(closed.now - time.time()) < 60 and closed.session_start == accepted.session_start


def test_both_listeners_serve_the_same(echo) -> None:
    host, port = echo.tcp_address()
    assert host == "127.0.0.1"
    with echo.engine() as first, Client(f"{host}:{port}", timeout=SECONDS) as second:
        for engine in (first, second):  # an answer: from here on it is told of everything
            engine.get(Feature.CONGESTION)
        with echo.connect() as peer:
            peer.sendall(b"1")
            assert peer.recv(1) == b"1"
        seen = [until(engine, Kind.CLOSE) for engine in (first, second)]
    assert [(o.kind, o.socket, o.now) for o in [*seen[0][1], seen[0][0]]] == \
        [(o.kind, o.socket, o.now) for o in [*seen[1][1], seen[1][0]]]


def test_a_clients_calls(echo, start, tmp_path) -> None:
    program = tmp_path / "client.py"
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    program.write_text(f"""
import socket
import ssl
open({str(gate)!r}).read()
s = socket.socket()
s.bind(("0.0.0.0", 0))
s.connect(("{echo.session.record['host4']}", {echo.port}))
s.sendall(b"abc")
assert s.recv(3) == b"abc"
s.close()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.sendto(b"12345", ("127.0.0.1", 9))
u.close()
open({str(gate)!r}).read()
""")
    session = start("--egress", echo.session.record["host4"], "--", "/usr/bin/python3", str(program))
    with Client(session=session.name, timeout=SECONDS) as engine:
        engine.monitor(True)
        gate.write_text("")
        closed, before = until(engine, Kind.CLOSE)
        datagram, after = until(engine, Kind.CLOSE, lambda o: o.socket != closed.socket)
    gate.write_text("")
    kinds = [o.kind for o in before if o.socket == closed.socket]
    assert kinds == [Kind.CREATE, Kind.BIND, Kind.CONNECT, Kind.SEND, Kind.RECV]
    assert before[0].remote.port == 0 and before[0].local.port == 0
    assert closed.remote.port == echo.port and str(closed.remote.address) == echo.session.record["host4"]
    assert closed.local.port != 0 and (closed.bytes_in, closed.bytes_out) == (3, 3)
    assert [o.kind for o in after if o.socket == datagram.socket] == [Kind.CREATE, Kind.SEND]
    assert datagram.bytes_out == 5


def test_monitoring_is_the_engines_own(echo) -> None:
    with echo.engine() as quiet, echo.engine() as other:
        quiet.monitor(False)
        with echo.pair(other):
            pass
        until(other, Kind.CLOSE)
        assert select.select([quiet], [], [], 0.2)[0] == []
        quiet.monitor(True)
        with echo.pair(quiet):
            pass
        until(quiet, Kind.CLOSE)


def test_closing_cuts_the_peer_and_a_blocked_call(echo) -> None:
    with echo.engine() as engine, echo.pair(engine) as (peer, number):
        assert engine.get(Feature.IS_OPEN, number) == 1
        engine.close_socket(number)
        # The application was blocked in recv() all the time.
        echo.wait_event(event="error", errno=errno.ECONNRESET, peer=peer.getsockname()[1])
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
        closed, _ = until(engine, Kind.CLOSE)
        assert closed.socket == number
        with pytest.raises(RequestError) as error:
            engine.get(Feature.IS_OPEN, number)
        assert error.value.errno == errno.EBADF
        with echo.pair(engine):
            pass  # the server goes on


def test_a_socket_that_was_there_before_the_engine(echo) -> None:
    with echo.engine() as engine, echo.pair(engine) as (peer, number):
        engine.close()
        with echo.engine() as late:
            assert late.get(Feature.NODELAY, number) == 0
            late.close_socket(number)
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


OPTIONS = [(Feature.KEEPALIVE, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
           (Feature.REUSEADDR, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
           (Feature.REUSEPORT, socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
           (Feature.NODELAY, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
           (Feature.SNDBUF, socket.SOL_SOCKET, socket.SO_SNDBUF, 20000),
           (Feature.RCVBUF, socket.SOL_SOCKET, socket.SO_RCVBUF, 30000),
           (Feature.RCVLOWAT, socket.SOL_SOCKET, socket.SO_RCVLOWAT, 7)]


@pytest.mark.parametrize("feature, level, name, value", OPTIONS, ids=lambda v: getattr(v, "name", None))
def test_an_option_is_set_on_the_real_socket(echo, feature, level, name, value) -> None:
    with echo.engine() as engine, echo.pair(engine) as (peer, number):
        granted = engine.set(feature, value, number)
        assert granted == (2 * value if feature in (Feature.SNDBUF, Feature.RCVBUF) else value)
        assert engine.get(feature, number) == granted
        peer.sendall(f"!opt {level} {name}".encode())
        assert int(peer.recv(20)) == granted  # as the application's own getsockopt() says


def test_engine_and_program_see_the_same_reuse_of_an_address(echo) -> None:
    """On the real socket it stays on, for a successor of the INS."""
    with echo.engine() as engine, echo.pair(engine) as (peer, number):
        for value in (None, 1, 0, 1, 0):
            if value is not None:
                assert engine.set(Feature.REUSEADDR, value, number) == value
            peer.sendall(f"!opt {socket.SOL_SOCKET} {socket.SO_REUSEADDR}".encode())
            assert int(peer.recv(20)) == engine.get(Feature.REUSEADDR, number)


def test_what_the_stack_refuses_is_its_errno(echo) -> None:
    with echo.engine() as engine, echo.pair(engine) as (_, number):
        for feature, value, status in ((Feature.SNDLOWAT, 10, errno.ENOPROTOOPT),
                                       (Feature.NONBLOCK, 1, errno.EOPNOTSUPP),
                                       (Feature.ERROR, 1, errno.EOPNOTSUPP),
                                       (Feature.NODELAY, 2, errno.EINVAL)):
            with pytest.raises(RequestError) as error:
                engine.set(feature, value, number)
            assert error.value.errno == status, feature
        assert engine.get(Feature.SNDLOWAT, number) == 1
        assert engine.get(Feature.NONBLOCK, number) == 0
        assert engine.get(Feature.ERROR, number) == 0


def test_unknown_things_are_answered_and_the_connection_lives(echo) -> None:
    with echo.engine() as engine, echo.pair(engine) as (_, number):
        identity = struct.pack(">q12x", number)
        gone = struct.pack(">q12x", number + 1000)
        for request, status in ((Request(1, 0, 0x7777), errno.EINVAL),
                                (Request(2, 2, Feature.NODELAY, identity=gone), errno.EBADF),
                                (Request(3, 2, Feature.NODELAY), errno.EBADF),
                                (Request(4, 0, Feature.NODELAY, identity=identity), errno.EINVAL),
                                (Request(5, 8, Feature.NODELAY, identity=identity), errno.EINVAL),
                                (Request(6, 4, Feature.ADDRESS_BLOCK), errno.EOPNOTSUPP),
                                (Request(7, 2, Feature.NODELAY, identity=identity), 0)):
            response = engine.request(request)
            assert (response.id, response.status) == (request.id, status), request


def test_requests_in_pieces_and_several_at_once(echo) -> None:
    with socket.create_connection(echo.tcp_address(), SECONDS) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        requests = b"".join(Request(n, 1, Feature.MONITOR_OFF).pack() for n in range(1, 4))
        for at in range(len(requests) - 50):
            raw.sendall(requests[at:at + 1])
        raw.sendall(requests[-50:])
        answers = raw.makefile("rb").read(78)
    assert [struct.unpack(">HIIQQ", answers[at:at + 26])[:3] for at in (0, 26, 52)] == \
        [(0xd32f, n, 0) for n in (1, 2, 3)]


def test_an_unknown_signature_ends_the_connection(echo) -> None:
    with socket.create_connection(echo.tcp_address(), SECONDS) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert raw.recv(1) == b""
    proc.wait_for(lambda: "message that no engine sends" in echo.session.background.tail(), SECONDS,
                  "the driver says so", echo.session.background)
    with echo.engine() as engine, echo.pair(engine):
        pass


def test_a_receive_timeout_reaches_a_call_that_is_blocked(echo) -> None:
    with echo.engine() as engine, echo.pair(engine) as (peer, number):
        assert engine.get(Feature.RCVTIMEO, number) == 0
        assert engine.set(Feature.RCVTIMEO, 0.25, number) == 0.25
        echo.wait_event(event="error", errno=errno.EAGAIN, peer=peer.getsockname()[1])


def test_a_low_water_mark_holds_a_reader_back(echo) -> None:
    with echo.engine() as engine, echo.pair(engine) as (peer, number):
        assert engine.set(Feature.RCVLOWAT, 10, number) == 10
        peer.sendall(b"12345")
        until(engine, Kind.RECV, lambda o: o.socket == number and o.bytes_in == 10)
        assert select.select([peer], [], [], 0.2)[0] == []
        assert engine.set(Feature.RCVLOWAT, 1, number) == 1
        assert peer.recv(5) == b"12345"


def test_the_owner_is_interrupted(echo) -> None:
    with echo.engine() as engine, echo.pair(engine) as (_, number):
        assert engine.get(Feature.OWNER_RUNNING, number) == 1
        assert engine.set(Feature.OWNER_RUNNING, 0, number) in (0, 1)
        echo.wait_event(event="interrupted")


def test_congestion_control_of_all_sockets(echo) -> None:
    with echo.engine() as engine, echo.pair(engine) as (peer, _):
        for value in (Congestion.NEWRENO, Congestion.RENO):
            assert engine.set(Feature.CONGESTION, value) == Congestion.RENO
        assert engine.get(Feature.CONGESTION) == Congestion.RENO
        inside = ["ip", "netns", "exec", f"mw-{echo.session.name}", "ss", "-tinH"]
        for _ in range(2):  # one that was there, and a new one
            listing = subprocess.run(inside, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
            assert " reno " in listing and " bbr " not in listing and " cubic " not in listing
            with echo.pair(engine):
                pass
        with pytest.raises(RequestError) as error:
            engine.set(Feature.CONGESTION, 0x99)
        assert error.value.errno == errno.EINVAL


def test_delayed_acknowledgements(echo) -> None:
    with echo.engine() as engine, echo.pair(engine):
        try:
            ticks = engine.get(Feature.DELACK_TICKS)
        except RequestError as error:
            assert error.errno == errno.ENOPROTOOPT  # a kernel before 6.16
            return
        assert engine.set(Feature.DELACK_TICKS, -5) == ticks - 5
        assert engine.get(Feature.DELACK_TICKS) == ticks - 5
        assert engine.set(Feature.DELACK_TICKS, 5) == ticks


def test_a_blocked_peer_is_cut_and_kept_out(echo) -> None:
    with echo.engine() as engine, echo.pair(engine) as (peer, _):
        accepted_from = None
        with echo.pair(engine) as (other, number):
            other.sendall(b"again")
            seen, _ = until(engine, Kind.RECV, lambda o: o.socket == number)
            accepted_from = seen.remote.address
            assert engine.block(accepted_from) == 1
            for one in (peer, other):
                with pytest.raises(ConnectionResetError):
                    while one.recv(16):
                        pass
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", echo.port), 1).close()
        assert engine.unblock(accepted_from) == 0
        with echo.pair(engine):
            pass
        # The form that older engines send.
        old = struct.pack(">I16s", 2, str(accepted_from).encode())
        assert engine.request(Request(77, 5, Feature.ADDRESS_BLOCK, 1, 0, old)).status == 0
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", echo.port), 1).close()
        assert engine.request(Request(78, 5, Feature.ADDRESS_BLOCK, 0, 0, old)).status == 0
        with echo.pair(engine):
            pass


def test_what_was_wished_outlives_the_ins(echo) -> None:
    with echo.engine() as engine, echo.pair(engine) as (peer, number):
        assert engine.set(Feature.CONGESTION, Congestion.RENO) == Congestion.RENO
        before = echo.session.pid("ins")
        os.kill(before, 9)
        closed, _ = until(engine, Kind.CLOSE, lambda o: o.socket == number)
        assert closed.extra == number
        proc.wait_for(lambda: echo.session.pid("ins") not in (before, 0), SECONDS, "another INS")

        def serves():
            try:
                with echo.connect() as again:
                    again.sendall(b"x")
                    return again.recv(1) == b"x"
            except OSError:
                return False
        proc.wait_for(serves, SECONDS, "the server is reached again", echo.session.background)
        accepted, _ = until(engine, Kind.ACCEPT)
        assert accepted.extra >> 40 != number >> 40  # another INS's socket
        assert engine.get(Feature.CONGESTION) == Congestion.RENO


def test_a_driver_that_is_started_anew_is_found_again(echo) -> None:
    with echo.engine() as engine, echo.pair(engine) as (peer, number):
        before = echo.session.pid("driver")
        os.kill(before, 9)
        with pytest.raises(ConnectionResetError):
            until(engine, Kind.NONE)
        proc.wait_for(lambda: echo.session.pid("driver") not in (before, 0), SECONDS, "another driver")

        def again():
            try:
                with echo.engine() as late:
                    return number in [f.socket for f in late.list()]
            except OSError:
                return False  # it is not there yet
        proc.wait_for(again, SECONDS, "the new driver knows the old connection", echo.session.background)
        with echo.engine() as late:
            peer.sendall(b"on")
            assert peer.recv(2) == b"on"
            seen, _ = until(late, Kind.RECV)
            assert (seen.socket, seen.bytes_in) == (number, 7)


def test_an_engine_that_reads_nothing_delays_nobody(echo) -> None:
    with echo.engine() as stalled, echo.engine() as engine:
        with echo.connect() as peer:
            blob = b"y" * 1000
            for _ in range(3000):
                peer.sendall(blob)
                assert peer.recv(1000, socket.MSG_WAITALL) == blob
        closed, before = until(engine, Kind.CLOSE)
        assert closed.bytes_in == 3_000_000
        assert len([o for o in before if o.kind is Kind.RECV]) >= 3000
        stalled.monitor(False)  # its answer comes at once, ahead of what it did not read


def test_other_users_are_kept_out(echo) -> None:
    host, port = echo.tcp_address()
    program = ("import socket,sys,os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
               "s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)\n"
               "sys.exit(0 if s.recv(1) == b'' else 1)")
    done = subprocess.run([sys.executable, "-c", program, host, str(port)], timeout=SECONDS)
    assert done.returncode == 0
    assert "belongs to user 65534" in echo.session.background.tail()


def test_the_asyncio_client(echo) -> None:
    async def play() -> None:
        async with AsyncClient(session=echo.session.name) as engine:
            await engine.get(Feature.CONGESTION)
            reader, writer = await asyncio.open_connection("127.0.0.1", echo.port)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            async for seen in engine.observations():
                if seen.kind is Kind.ACCEPT:
                    break
            values = await asyncio.gather(*[engine.get(Feature.NODELAY, seen.extra) for _ in range(50)])
            assert values == [0] * 50
            await engine.close_socket(seen.extra)
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            writer.close()
            with pytest.raises(RequestError):
                await engine.get(Feature.NODELAY, seen.extra)
    asyncio.run(asyncio.wait_for(play(), SECONDS))


def make_certificate(folder: Path) -> None:
    proc.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
              "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-days", "2", "-subj", "/CN=mw",
              "-addext", "subjectAltName=IP:127.0.0.1"], SECONDS)


def test_a_token_behind_tls(start, tmp_path) -> None:
    make_certificate(tmp_path)
    tokens = {"act": "ab" * 32, "look": "0C" * 32}
    for name, token in tokens.items():
        (tmp_path / name).write_text(token + "\n")
        (tmp_path / name).chmod(0o600)
    session = start("--netflow", "0.0.0.0:0", "--netflow-token-file", str(tmp_path / "act"),
                    "--netflow-read-token-file", str(tmp_path / "look"), "--netflow-certificate",
                    str(tmp_path / "cert.pem"), "--netflow-key", str(tmp_path / "key.pem"), "--", "sleep", "1000")
    published = Path("/run/mwcomms", session.name, "mw/pvm/netflow").read_text().strip()
    assert published.startswith("0.0.0.0:")
    address = published.replace("0.0.0.0", "127.0.0.1")
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))

    def up():
        with Client(session=session.name, timeout=SECONDS) as local:
            return local.request(Request(1, 0, Feature.CONGESTION)).status == 0
    proc.wait_for(up, SECONDS, "the INS serves", session.background)
    with Client(address, token=tokens["act"], tls=context, timeout=SECONDS) as engine:
        assert engine.set(Feature.CONGESTION, Congestion.RENO) == Congestion.RENO
    with Client(address, token=tokens["look"], tls=context, timeout=SECONDS) as engine:
        assert engine.get(Feature.CONGESTION) == Congestion.RENO
        with pytest.raises(RequestError) as error:
            engine.set(Feature.CONGESTION, Congestion.RENO)
        assert error.value.errno == errno.EPERM
    with Client(address, token="ac" * 32, tls=context, timeout=SECONDS) as engine:
        with pytest.raises(OSError):
            engine.get(Feature.CONGESTION)
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), SECONDS) as plain:
        plain.sendall(Request(1, 1, Feature.MONITOR_ON).pack())
        try:
            assert not plain.recv(100).startswith(b"\xd3")  # at most TLS's own words
        except ConnectionResetError:
            pass  # or none

    async def play() -> None:
        async with AsyncClient(address, token=tokens["act"], tls=context) as engine:
            assert await engine.get(Feature.CONGESTION) == Congestion.RENO
    asyncio.run(asyncio.wait_for(play(), SECONDS))


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_nothing_listens_beyond_loopback_without_token_and_tls(mw, unchanged, address) -> None:
    done = proc.run([mw, "run", "--netflow", address, "--", "true"], SECONDS, check=False)
    assert done.returncode == 125
    assert b"needs a token file, a certificate and a key" in done.stderr


def test_no_netflow_interface(start) -> None:
    session = start("--netflow", "none", "--", "sleep", "1000")
    folder = Path("/run/mwcomms", session.name)
    assert not (folder / "netflow.sock").exists() and not (folder / "mw/pvm/netflow").exists()


def test_the_list_of_sockets(echo) -> None:
    with echo.connect() as peer:  # before any engine was there, and silent since
        peer.sendall(b"abc")
        assert peer.recv(3) == b"abc"
        with echo.engine() as engine:
            flows = engine.list()
            by_peer = {f.remote.port: f for f in flows}
            mine = by_peer[peer.getsockname()[1]]
            assert (mine.bytes_in, mine.bytes_out, mine.listener, mine.datagram) == (3, 3, False, False)
            assert mine.pid == echo.wait_event(event="ready")["pid"] and mine.uid == 0
            assert mine.command.startswith("python3") and mine.local.port == echo.port
            assert [f.local.port for f in flows if f.listener] == [echo.port]
            engine.close_socket(mine.socket)
            assert mine.socket not in [f.socket for f in engine.list()]


def test_the_commands(echo, mw) -> None:
    name = echo.session.name
    with echo.connect() as peer:
        peer.sendall(b"abc")
        assert peer.recv(3) == b"abc"
        table = mw_says(mw, "flows", "-s", name)
        assert f":{echo.port}" in table and "listen" in table and "python3" in table
        flows = json.loads(mw_says(mw, "flows", "-s", name, "-j", "port", str(peer.getsockname()[1])))
        assert len(flows) == 1 and flows[0]["bytes_in"] == 3 and flows[0]["type"] == "tcp"
        number, uid = flows[0]["socket"], f"M{flows[0]['id']:016x}"
        assert mw_says(mw, "get", "-s", name, number, "nodelay") == "0\n"
        assert mw_says(mw, "set", "-s", name, number, "nodelay", "1") == "1\n"
        assert json.loads(mw_says(mw, "get", "-j", "-s", name, number, "nodelay")) == {"value": 1}
        assert mw_says(mw, "set", "-s", name, "all", "congestion", "144") == "144\n"
        watcher = subprocess.Popen([mw, "flows", "-w", "-s", name], stdout=subprocess.PIPE, text=True)
        try:
            record = json.loads(watcher.stdout.readline())  # what is open already
            assert record["uid"] == uid and record["final"] is False and record["orig_bytes"] == 3
            mw_says(mw, "close", "-s", name, uid)
            with pytest.raises(ConnectionResetError):
                peer.recv(1)
            record = json.loads(watcher.stdout.readline())
            assert record["uid"] == uid and record["final"] is True and record["orig_bytes"] == 3
            assert record["conn_state"] == "RSTR" and record["cut"] is True
            assert record["id.orig_p"] == peer.getsockname()[1] and record["id.resp_p"] == echo.port
        finally:
            watcher.kill()
            watcher.communicate()
        mw_says(mw, "close", "-s", name, number, status=1)
        mw_says(mw, "get", "-s", name, number, "nothing", status=2)
        mw_says(mw, "block", "-s", name, "not-an-address", status=2)
        mw_says(mw, "flows", "-s", "no-such-session", status=3)
    peer_address = echo.session.record["host4"]
    mw_says(mw, "block", "-s", name, peer_address)
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", echo.port), 1).close()
    mw_says(mw, "unblock", "-s", name, peer_address)
    echo.connect().close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_blocked_peer_on_the_hosts_network(start, free_port, tmp_path, workers) -> None:
    program = tmp_path / "echo.py"
    program.write_text(ECHO)
    session = start("--net", "host", "--workers", workers, "--", "/usr/bin/python3", str(program), str(free_port),
                    str(tmp_path / "echo.log"))
    served = Echo(session, free_port, tmp_path / "echo.log")
    served.wait_event(event="ready")
    with served.engine() as engine, served.pair(engine) as (first, _), served.pair(engine) as (second, _):
        assert engine.block("127.0.0.1") == 1
        for peer in (first, second):
            with pytest.raises(ConnectionResetError):
                peer.recv(1)
        with pytest.raises(ConnectionResetError), served.connect() as peer:
            peer.recv(1)
        assert engine.unblock("127.0.0.1") == 0
        with served.pair(engine):
            pass
