"""Rounds of samples of a real session: every value is compared with what the test made happen."""

import asyncio
import contextlib
import os
import signal
import socket
import time

import pytest

from mwtest import proc

from mwnetflow import AsyncClient, Client, Feature, RequestError, SampleFlag

SECONDS = 20
ROUND = 0.1

# Serves each connection in a thread: "flood" is answered without an end, "fork" by a child, whose pid is
# said first; everything else comes back. A second listener accepts nobody.
SERVER = """
import os, socket, sys, threading
def serve(c):
    while data := c.recv(65536):
        if data == b"fork":
            child = os.fork()
            if child == 0:
                c.recv(1)
                os._exit(0)
            c.sendall(str(child).encode())
            os.waitpid(child, 0)
            threading.Event().wait()
        while data == b"flood":
            c.sendall(bytes(65536))
        c.sendall(data)
full = socket.create_server(("0.0.0.0", int(sys.argv[2])), backlog=8)
s = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=64)
print("ready", os.getpid(), flush=True)
while True:
    threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"""


class Served:
    def __init__(self, session, ports) -> None:
        self.session = session
        self.port, self.full_port = ports

    def engine(self) -> Client:
        engine = Client(session=self.session.name, timeout=SECONDS)
        engine.monitor(False)
        engine.sample(ROUND)
        return engine

    def connect(self, port=None, **options) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port or self.port), SECONDS, **options)


@pytest.fixture
def served(start, free_port, tmp_path) -> Served:
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = free_port, other.getsockname()[1]
    program = tmp_path / "server.py"
    program.write_text(SERVER)
    words = [f"-p{port}:{port}" for port in ports]
    session = start(*words, "--", "/usr/bin/python3", str(program), *map(str, ports))
    proc.wait_for(lambda: "ready" in session.background.tail(), SECONDS, "the server", session.background)
    return Served(session, ports)


def the(whole, found):
    """The sample of a round that is meant; None if there is none."""
    return next((s for s in whole.samples if found(s)), None)


def of_peer(peer: socket.socket):
    port = peer.getsockname()[1]
    return lambda s: s.remote.port == port


def round_where(engine: Client, holds):
    """The first round of which it holds, and what it gave."""
    deadline = time.monotonic() + SECONDS
    last = None
    while time.monotonic() < deadline:
        last = engine.next_round()
        if (value := holds(last)):
            return last, value
    raise AssertionError(f"it never held; the last round: {last}")


def test_a_silent_connection_is_in_every_round_with_its_cost(served) -> None:
    with served.engine() as engine, served.connect() as peer:
        silent = of_peer(peer)
        first, begun = round_where(engine, lambda r: (s := the(r, silent)) and s.waiting_threads and s)
        rounds = [engine.next_round() for _ in range(8)]
        samples = [the(r, silent) for r in rounds]
        assert all(samples), "it is in each"
        last = samples[-1]
        passed = last.mono - begun.mono
        assert passed > 6 * ROUND
        # A thread of the server waits for it all the time, and for nothing else.
        assert last.waiting_threads == 1 and last.pid == served.session.pid("application")
        assert last.command.startswith("python3") and last.uid == 0
        assert abs((last.worker_us - begun.worker_us) / 1e6 - passed) < 0.1
        assert abs((last.waiting_ms - begun.waiting_ms) / 1e3 - passed) < 0.1
        assert abs((last.age - begun.age) - passed) < 0.1
        assert (last.first_in, last.last_in, last.first_out, last.bytes_in) == (None, None, None, 0)
        assert SampleFlag.INBOUND in last.flags and SampleFlag.TCP in last.flags and last.tcp_state == 1
        assert last.local.port == served.port and last.snd_wnd > 0 and last.rtt_us > 0
        # Nothing was missed, and every message counts.
        assert [r.round.round for r in rounds] == list(range(first.round.round + 1, first.round.round + 9))
        sequence = first.round.sequence
        for whole in rounds:
            for message in [*whole.samples, *whole.processes, whole.round]:
                sequence += 1
                assert message.sequence == sequence
            assert whole.round.sockets == len(whole.samples) and whole.round.processes == len(whole.processes)
            assert whole.round.missed == 0

        peer.sendall(b"x" * 1000)
        assert len(peer.recv(1000, socket.MSG_WAITALL)) == 1000
        _, spoken = round_where(engine, lambda r: (s := the(r, silent)) and s.bytes_out and s)
        assert (spoken.bytes_in, spoken.bytes_out) == (1000, 1000) and spoken.calls_in >= 1
        assert spoken.bytes_received == 1000 and spoken.rate_in > 0 and spoken.rate_out > 0
        for age in (spoken.first_in, spoken.last_in, spoken.first_out, spoken.last_out):
            assert 0 <= age < spoken.age
        _, later = round_where(engine, lambda r: (s := the(r, silent)) and s.last_in > spoken.last_in + 0.3 and s)
        assert abs((later.first_in - spoken.first_in) - (later.mono - spoken.mono)) < 0.1
        assert later.bytes_acked >= 1000 and later.rate_in < spoken.rate_in


def test_a_peer_that_stops_reading_shows_as_such(served) -> None:
    with served.engine() as engine, contextlib.closing(socket.socket()) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", served.port))
        peer.sendall(b"flood")
        stuck = of_peer(peer)
        _, full = round_where(engine, lambda r: (s := the(r, stuck)) and s.waiting_ms > 300 and s.notsent and s)
        # The bytes wait in the kernel and in the ring, and a thread for room.
        assert full.unsent > full.notsent > 0 and full.waiting_threads == 1
        assert full.snd_wnd < 65536
        _, later = round_where(engine, lambda r: (s := the(r, stuck)) and s.snd_wnd == 0
                               and s.rwnd_limited_us > full.rwnd_limited_us and s)
        assert later.bytes_acked == the(engine.next_round(), stuck).bytes_acked, "nothing moves"
        peer.recv(1 << 20)
        round_where(engine, lambda r: (s := the(r, stuck)) and s.bytes_acked > later.bytes_acked)


def test_listeners_processes_and_the_stack(served) -> None:
    with served.engine() as engine, contextlib.ExitStack() as peers:
        for _ in range(5):
            peers.enter_context(served.connect(served.full_port))

        def queued(whole):
            return the(whole, lambda s: SampleFlag.LISTENER in s.flags and s.local.port == served.full_port
                       and s.queue == 5)
        whole, listener = round_where(engine, queued)
        assert listener.backlog == 8 and listener.waiting_threads == 0
        accepting = the(whole, lambda s: SampleFlag.LISTENER in s.flags and s.local.port == served.port)
        assert accepting.queue == 0 and accepting.waiting_threads == 1, "the server waits in accept()"
        server = served.session.pid("application")
        process = next(p for p in whole.processes if p.pid == server)
        assert process.command.startswith("python3") and process.rss_bytes > 1 << 20 and process.threads >= 1
        assert process.uid == 0
        end = whole.round
        assert end.ins_pid == served.session.pid("ins") and end.heartbeat < 5 and end.ins_restarts == 0
        assert end.ins_rss_bytes > 1 << 20 and end.slots > 5

        def fds_of(pid):
            return len(os.listdir(f"/proc/{pid}/fd"))
        # They are looked at once a second.
        round_where(engine, lambda r: any(p.pid == server and p.fds == fds_of(server) for p in r.processes)
                    and r.round.ins_fds == fds_of(end.ins_pid))

        # A stack that does nothing is seen as such, and its sockets are shown as they were.
        os.kill(end.ins_pid, signal.SIGSTOP)
        frozen, _ = round_where(engine, lambda r: r.round.heartbeat > 1)
        os.kill(end.ins_pid, signal.SIGCONT)
        assert frozen.round.sockets >= whole.round.sockets and queued(frozen)
        round_where(engine, lambda r: r.round.heartbeat < 1)

        os.kill(end.ins_pid, signal.SIGKILL)
        after, _ = round_where(engine, lambda r: r.round.ins_restarts == 1)
        assert after.round.ins != end.ins
        round_where(engine, lambda r: the(r, lambda s: s.local.port == served.full_port))


def test_who_was_killed_waits_no_more(served) -> None:
    with served.engine() as engine, served.connect() as peer:
        peer.sendall(b"fork")
        child = int(peer.recv(64))
        mine = of_peer(peer)
        round_where(engine, lambda r: (s := the(r, mine)) and s.waiting_threads == 1)
        os.kill(child, signal.SIGKILL)
        _, dead = round_where(engine, lambda r: (s := the(r, mine)) and s.waiting_threads == 0 and s)
        assert the(engine.next_round(), mine).worker_us == dead.worker_us > 0


def test_sampling_is_the_connections_own_and_checked(served) -> None:
    with served.engine() as engine, Client(session=served.session.name, timeout=SECONDS) as other:
        assert engine.get(Feature.SAMPLING) == ROUND * 1000 and other.get(Feature.SAMPLING) == 0
        for wrong in (1, 49, 60001, 1 << 40):
            with pytest.raises(RequestError):
                other.set(Feature.SAMPLING, wrong)
        with pytest.raises(RequestError):
            other.set(Feature.SAMPLING, 100, engine.next_round().samples[0].socket)
        assert engine.set(Feature.SAMPLING, 0) == 0
        # Nothing of it comes behind the answer; the other one's rounds go on undisturbed.
        other.sample(0.05)
        assert other.next_round().round.round < other.next_round().round.round

    async def follow() -> None:
        async with AsyncClient(session=served.session.name) as client:
            await client.sample(0.05)
            seen = 0
            async for whole in client.rounds():
                assert whole.samples and whole.round.sockets == len(whole.samples)
                seen += 1
                if seen == 3:
                    return
    asyncio.run(asyncio.wait_for(follow(), SECONDS))
