"""What engines change, as rules: the effect on the peer and on the application, and how it ends."""

import asyncio
import concurrent.futures
import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mwtest import build, proc
from mwtest.echo import ECHO, SECONDS, Echo, mw_says

from mwnetflow import AsyncClient, Client, Feature, MinRate, Request, RequestError, RuleState, SampleFlag

# Answers whole lines only, as a server does that waits for a request's end.
LINES = ECHO.replace("while data := c.recv(65536):", "for data in c.makefile('rb'):")


@pytest.fixture
def serve(start, free_port, tmp_path):
    def begin(text: str, *options: str) -> Echo:
        program = tmp_path / "server.py"
        program.write_text(text)
        session = start(*options, "--", "/usr/bin/python3", str(program), str(free_port), str(tmp_path / "log"))
        one = Echo(session, free_port, tmp_path / "log")
        one.wait_event(event="ready")
        return one
    return begin


@pytest.fixture
def served(serve) -> Echo:
    """On the host's network, so that nobody stands between the peer and the stack."""
    return serve(ECHO, "--net", "host", "--workers", "2")


def peer_from(served: Echo, address: str, timeout: float = SECONDS, **options) -> socket.socket:
    s = socket.socket()
    for option, value in options.items():
        s.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
    s.settimeout(timeout)
    s.bind((address, 0))
    s.connect(("127.0.0.1", served.port))
    return s


def receive(peer: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (more := peer.recv(count - len(got))):
        got += more
    return got


def talks(peer: socket.socket) -> bool:
    try:
        peer.sendall(b"ping\n")
        return receive(peer, 5) == b"ping\n"
    except ConnectionResetError:
        return False


def is_served(served: Echo, address: str) -> bool:
    """A new connection from there is."""
    with contextlib.suppress(ConnectionResetError, TimeoutError), peer_from(served, address, 1) as peer:
        return talks(peer)
    return False


def is_cut(peer: socket.socket, seconds: float = SECONDS) -> bool:
    """A reset arrives in time."""
    poller = select.poll()
    poller.register(peer, select.POLLHUP | select.POLLERR)
    return bool(poller.poll(seconds * 1000)) and bool(peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                                                      or poller.poll(0))


def numbers_of(engine: Client) -> dict:
    """The sockets that are open, by the port of the other end."""
    return {f.remote.port: f.socket for f in engine.list() if not f.listener}


def number_of(engine: Client, peer: socket.socket) -> int:
    return numbers_of(engine)[peer.getsockname()[1]]


def in_force(engine: Client) -> list:
    return [r for r in engine.rules() if r.state is RuleState.IN_FORCE]


def refused(error: int):
    @contextlib.contextmanager
    def check():
        with pytest.raises(RequestError) as raised:
            yield
        assert raised.value.errno == error
    return check()


def ended(engine: Client, rule: int, state: RuleState):
    return proc.wait_for(lambda: [r for r in engine.rules() if r.id == rule and r.state is state], SECONDS,
                         f"rule {rule} is {state.name}")


def test_a_minimum_rate_cuts_who_is_too_slow_and_nobody_else(serve) -> None:
    served = serve(LINES, "--net", "host", "--workers", "2")
    with served.engine() as engine:
        made = engine.change(Feature.MIN_RATE_IN, MinRate(500, 1), reason="too slow")
        assert made.value == MinRate(500, 1) == engine.get(Feature.MIN_RATE_IN)
        begun = time.monotonic()
        trickler, honest, idle = [served.connect() for _ in range(3)]
        assert talks(idle)
        cut_after = None
        widest = 0.0  # the longest that this program was not there to see it
        last = begun
        while (now := time.monotonic()) - begun < 2.6:
            widest, last = max(widest, now - last), now
            honest.sendall(b"h" * 1500)
            if cut_after is None:
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    trickler.sendall(b"t")
                if is_cut(trickler, 0):
                    cut_after = time.monotonic() - begun
            time.sleep(max(0.0, 0.08 - (time.monotonic() - now)))
        # The grace, a five-hundredth for each of some thirty bytes, and what acting may take.
        assert cut_after is not None and 1.0 <= cut_after < 1.32 + widest
        served.wait_event(event="error", errno=errno.ECONNRESET, peer=trickler.getsockname()[1])
        assert not is_cut(honest, 0) and not is_cut(idle, 0) and talks(idle)
        (rule,) = in_force(engine)
        assert (rule.hits, rule.reason, rule.value0, rule.value1) == (1, "too slow", 500, 1)
        assert engine.undo(rule.id) == rule.id
        assert engine.get(Feature.MIN_RATE_IN) == MinRate(0, 0)
        with served.connect() as later:
            later.sendall(b"x")
            assert not is_cut(later, 1.5)
        for peer in (trickler, honest, idle):
            peer.close()


def test_a_minimum_rate_counts_what_the_peer_takes(served) -> None:
    with served.engine() as engine:
        stuck, steady = [peer_from(served, "127.0.0.1", SO_RCVBUF=4096) for _ in range(2)]
        for peer in (stuck, steady):
            assert talks(peer)
            peer.setblocking(False)
        for peer in (stuck, steady):
            assert engine.set(Feature.MIN_RATE_OUT, MinRate(4000, 1), number_of(engine, peer)) == MinRate(4000, 1)
        begun = time.monotonic()
        cut_after = None
        while time.monotonic() - begun < 3.5:
            for peer in (stuck, steady):
                with contextlib.suppress(BlockingIOError, ConnectionResetError, BrokenPipeError):
                    peer.send(b"z" * 65536)
            with contextlib.suppress(BlockingIOError):
                steady.recv(4096)
            if cut_after is None and is_cut(stuck, 0):
                cut_after = time.monotonic() - begun
            select.select([], [], [], 0.02)
        assert cut_after is not None and cut_after > 0.9
        assert not is_cut(steady, 0)
        for peer in (stuck, steady):
            peer.close()


def test_a_paused_connection_moves_nothing_and_then_everything(served) -> None:
    with served.engine() as engine, served.connect() as peer:
        assert talks(peer)
        number = number_of(engine, peer)
        rule = engine.change(Feature.PAUSE, 1, number)
        assert rule.value == 1 and engine.get(Feature.PAUSE, number) == 1
        # More than a minimum rate lets pass: a clock stands still while its direction does.
        engine.set(Feature.MIN_RATE_IN, MinRate(1000, 0), number)
        blob = os.urandom(200_000)
        peer.setblocking(False)
        sent = peer.send(blob)
        assert not select.select([peer], [], [], 0.4)[0] and not is_cut(peer, 0)
        assert not [o for o in observed(engine, number) if o.bytes_in > 5]
        engine.set(Feature.MIN_RATE_IN, MinRate(0), number)
        assert engine.undo(rule.rule) == rule.rule and engine.get(Feature.PAUSE, number) == 0
        peer.settimeout(SECONDS)
        assert receive(peer, sent) == blob[:sent]
        # And the other direction: what the application writes waits.
        assert engine.set(Feature.PAUSE, 2, number) == 2
        peer.sendall(b"abc")
        until_bytes_in(engine, number, 5 + sent + 3)
        assert not select.select([peer], [], [], 0.2)[0]
        assert engine.set(Feature.PAUSE, 0, number) == 0
        assert receive(peer, 3) == b"abc"
        assert in_force(engine) == []


def test_an_end_behind_a_pause_waits_for_the_bytes_before_it(serve) -> None:
    served = serve(ECHO.replace("c.sendall(data)", "c.sendall(data); data != b'bye' or c.shutdown(1)"),
                   "--net", "host")
    with served.engine() as engine, served.connect() as peer:
        assert talks(peer)
        number = number_of(engine, peer)
        assert engine.set(Feature.PAUSE, 2, number) == 2
        peer.sendall(b"bye")
        until_bytes_in(engine, number, 5 + 3)
        assert not select.select([peer], [], [], 0.2)[0]
        assert engine.set(Feature.PAUSE, 0, number) == 0
        assert receive(peer, 4) == b"bye"  # and then the end
        peer.sendall(b"ping")
        until_bytes_in(engine, number, 5 + 3 + 4)


def observed(engine: Client, number: int) -> list:
    """What came until now."""
    engine.monitor(False)
    seen = []
    engine.settimeout(0.05)
    with contextlib.suppress(TimeoutError):
        while True:
            o = engine.next()
            if o.socket == number:
                seen.append(o)
    engine.settimeout(SECONDS)
    engine.monitor(True)
    return seen


def until_bytes_in(engine: Client, number: int, count: int) -> None:
    for o in engine.observations():
        if o.socket == number and o.bytes_in >= count:
            return


def test_a_paced_connection_takes_its_time(served) -> None:
    with served.engine() as engine, served.connect() as peer:
        assert all(talks(peer) for _ in range(12))  # the kernel does not pace the first ten segments
        number = number_of(engine, peer)
        with refused(errno.EINVAL):
            engine.set(Feature.PACING, 99, number)
        paced = engine.change(Feature.PACING, 200_000, number, ttl=60)
        assert paced.value == 200_000 == engine.get(Feature.PACING, number)

        def seconds_of_an_echo() -> float:
            begun = time.monotonic()
            peer.sendall(b"p" * 400_000)
            assert len(receive(peer, 400_000)) == 400_000
            return time.monotonic() - begun

        assert seconds_of_an_echo() > 0.8
        engine.undo(paced.rule)
        assert engine.get(Feature.PACING, number) == 0
        # However busy the machine is, one of them gets through faster than any could if it were paced.
        assert any(seconds_of_an_echo() < 0.8 for _ in range(10))


def test_a_capped_peers_further_connections_are_reset(served) -> None:
    with served.engine() as engine:
        # One is there before, whichever worker has it.
        first = peer_from(served, "127.0.0.2")
        assert talks(first)
        cap = engine.change(Feature.PEER_CAP, 2, peer="127.0.0.2")
        assert cap.value == 2 == engine.get(Feature.PEER_CAP, peer="127.0.0.2")
        second = peer_from(served, "127.0.0.2")
        assert talks(second)
        assert not any(is_served(served, "127.0.0.2") for _ in range(3))
        assert talks(first) and talks(second)
        others = [peer_from(served, "127.0.0.3") for _ in range(4)]
        assert all(talks(other) for other in others)
        first.close()
        proc.wait_for(lambda: first not in numbers_of(engine), SECONDS, "it is closed")

        proc.wait_for(lambda: is_served(served, "127.0.0.2"), SECONDS, "there is room for one more")
        engine.undo(cap.rule)
        more = [peer_from(served, "127.0.0.2") for _ in range(3)]
        assert all(talks(one) for one in more)
        # Of everybody, and those that are there stay.
        assert engine.set(Feature.PEER_CAP, 4) == 4
        assert not is_served(served, "127.0.0.3")
        assert all(talks(one) for one in [second, *more, *others])
        for one in [second, *more, *others]:
            one.close()


def test_the_allow_list_beats_block_cap_and_rate(served) -> None:
    with served.engine() as engine:
        held = peer_from(served, "127.0.0.2")
        assert talks(held)
        number = number_of(engine, held)
        engine.change(Feature.PAUSE, 3, number)
        engine.change(Feature.MIN_RATE_IN, MinRate(1, 1))
        block = engine.change(Feature.ADDRESS_BLOCK, 1, peer="127.0.0.4", reason="before")
        assert engine.allow("127.0.0.2") == 1 == engine.get(Feature.ALLOW, peer="127.0.0.2")
        assert engine.allow("127.0.0.4") == 1
        assert {r.id: r.state for r in engine.rules()}[block.rule] is RuleState.UNDONE
        assert talks(held)  # the pause ended
        for feature, value in ((Feature.PAUSE, 1), (Feature.PACING, 1000), (Feature.MIN_RATE_IN, MinRate(9, 9))):
            with refused(errno.EACCES):
                engine.set(feature, value, number)
        for change in (dict(feature=Feature.IS_OPEN, value=0, socket=number),
                       dict(feature=Feature.ADDRESS_BLOCK, value=1, peer="127.0.0.2"),
                       dict(feature=Feature.ADDRESS_BLOCK, value=1, peer="::ffff:127.0.0.2"),
                       dict(feature=Feature.PEER_CAP, value=1, peer="127.0.0.2")):
            with refused(errno.EACCES):
                engine.change(**change)
        with refused(errno.EACCES):
            engine.block("127.0.0.2")
        assert engine.set(Feature.PEER_CAP, 1) == 1
        with peer_from(served, "127.0.0.2") as other, peer_from(served, "127.0.0.4") as late:
            assert talks(other) and talks(late) and talks(held)
            assert not is_cut(other, 1.3)
        engine.close_socket(number)  # a person's word
        assert is_cut(held)
        held.close()
        assert engine.allow("127.0.0.2", False) == 0
        assert engine.block("127.0.0.2") == 1
        assert not is_served(served, "127.0.0.2")


def test_a_block_counts_what_it_cut_in_every_worker(serve) -> None:
    served = serve(LINES, "--net", "host", "--workers", "2")
    held = [peer_from(served, "127.0.0.2") for _ in range(6)]
    other = peer_from(served, "127.0.0.3")
    assert all(talks(one) for one in (*held, other))
    with served.engine() as engine:
        engine.change(Feature.ADDRESS_BLOCK, 1, peer="127.0.0.2", reason="many")
        (rule,) = in_force(engine)
        assert (rule.hits, rule.reason) == (len(held), "many")
        assert all(is_cut(one) for one in held) and talks(other)
    for one in (*held, other):
        one.close()


def test_rules_expire(served) -> None:
    with served.engine() as engine:
        with served.connect() as peer:
            assert talks(peer)
            number = number_of(engine, peer)
            rules = [engine.change(Feature.ADDRESS_BLOCK, 1, peer="127.0.0.5", ttl=1, reason="flood"),
                     engine.change(Feature.PEER_CAP, 3, peer="127.0.0.6", ttl=1),
                     engine.change(Feature.PAUSE, 1, number, ttl=1),
                     engine.change(Feature.SNDBUF, 20_000, number, ttl=1),
                     engine.change(Feature.ALLOW, 1, peer="127.0.0.7", ttl=1)]
            engine.change(Feature.MIN_RATE_IN, MinRate(100, 9), ttl=1)
            assert len(in_force(engine)) == 6
            blocked = next(r for r in in_force(engine) if r.id == rules[0].rule)
            assert (blocked.reason, str(blocked.peer.address), round(blocked.until - blocked.since)) == \
                ("flood", "127.0.0.5", 1)
            buffer = engine.get(Feature.SNDBUF, number)
            peer.sendall(b"later")
            assert not is_served(served, "127.0.0.5")
            assert receive(peer, 5) == b"later"  # once the pause is over
            proc.wait_for(lambda: in_force(engine) == [], SECONDS, "all have expired")
            assert {r.state for r in engine.rules()} == {RuleState.EXPIRED}
            assert engine.get(Feature.MIN_RATE_IN) == MinRate(0, 0)
            assert engine.get(Feature.PEER_CAP, peer="127.0.0.6") == 0 == engine.get(Feature.ALLOW, peer="127.0.0.7")
            assert engine.get(Feature.SNDBUF, number) != buffer == 40_000
        assert is_served(served, "127.0.0.5")


def test_a_dry_run_changes_nothing(served) -> None:
    with served.engine() as engine, served.connect() as peer:
        assert talks(peer)
        number = number_of(engine, peer)
        dry = dict(dry_run=True)
        assert engine.change(Feature.IS_OPEN, 0, number, **dry).value == 0
        assert engine.change(Feature.ADDRESS_BLOCK, 1, peer="127.0.0.1", **dry) == (1, 0)
        assert engine.change(Feature.PAUSE, 3, number, **dry).value == 3
        assert engine.change(Feature.MIN_RATE_IN, MinRate(9, 1), number, **dry).value == MinRate(9, 1)
        assert engine.change(Feature.PEER_CAP, 1, **dry).value == 1
        assert engine.change(Feature.NODELAY, 1, number, **dry).value == 1
        with refused(errno.EINVAL):
            engine.change(Feature.PAUSE, 4, number, **dry)
        with refused(errno.EBADF):
            engine.change(Feature.IS_OPEN, 0, number + 1000, **dry)
        assert engine.rules() == []
        assert talks(peer) and engine.get(Feature.PAUSE, number) == 0 == engine.get(Feature.NODELAY, number)
        with served.connect() as second:
            assert talks(second)


def test_rules_end_with_their_engine_and_others_stay(served) -> None:
    program = ("import sys; sys.path.insert(0, sys.argv[1])\n"
               "from mwnetflow import Client, Feature\n"
               "c = Client(session=sys.argv[2])\n"
               "c.change(Feature.ADDRESS_BLOCK, 1, peer='127.0.0.5', ends_with_connection=True)\n"
               "c.change(Feature.PAUSE, 1, int(sys.argv[3]), ends_with_connection=True)\n"
               "c.change(Feature.PEER_CAP, 9, peer='127.0.0.5')\n"
               "print('done', flush=True)\n"
               "c.next()\n")
    with served.engine() as engine, served.connect() as peer:
        assert talks(peer)
        with subprocess.Popen([sys.executable, "-c", program, str(Path(sys.modules["mwnetflow"].__file__).parents[1]),
                               served.session.name, str(number_of(engine, peer))], stdout=subprocess.PIPE,
                              text=True) as other:
            assert other.stdout.readline() == "done\n"
            assert len(in_force(engine)) == 3
            peer.sendall(b"ping")
            assert not select.select([peer], [], [], 0.2)[0]
            other.kill()
        assert receive(peer, 4) == b"ping"
        proc.wait_for(lambda: len(in_force(engine)) == 1, SECONDS, "its rules are gone")
        assert in_force(engine)[0].name == Feature.PEER_CAP
        assert is_served(served, "127.0.0.5")


def test_two_engines_fight_over_one_socket(served) -> None:
    with served.engine() as one, served.engine() as two, served.connect() as peer:
        assert talks(peer)
        number = number_of(one, peer)
        first = one.change(Feature.PACING, 1000, number, reason="one")
        second = two.change(Feature.PACING, 2000, number, reason="two")
        assert one.get(Feature.PACING, number) == 2000
        assert {(r.reason, r.state) for r in two.rules()} == {("one", RuleState.IN_FORCE), ("two", RuleState.IN_FORCE)}
        one.undo(first.rule)
        assert two.get(Feature.PACING, number) == 2000
        with refused(errno.ENOENT):
            two.undo(first.rule)
        two.undo(second.rule)
        assert one.get(Feature.PACING, number) == 0

        async def play() -> None:
            async with AsyncClient(session=served.session.name) as a, AsyncClient(session=served.session.name) as b:
                made = await asyncio.gather(*[engine.change(Feature.PAUSE, 1 + k % 3, number)
                                              for k in range(3) for engine in (a, b)])
                await asyncio.gather(*[a.undo(change.rule) for change in reversed(made)])
                assert [r for r in await b.rules() if r.state is RuleState.IN_FORCE] == []
                await asyncio.gather(a.close_socket(number), b.change(Feature.PAUSE, 1, number),
                                     return_exceptions=True)
        asyncio.run(asyncio.wait_for(play(), SECONDS))
        assert is_cut(peer)
        with refused(errno.EBADF):
            one.change(Feature.PACING, 1000, number)
        assert in_force(one) == []
        with served.connect() as other:
            assert talks(other)


def test_what_cannot_be_changed_is_said(served) -> None:
    with served.engine() as engine, served.connect() as peer:
        assert talks(peer)
        number = number_of(engine, peer)
        listener = next(f.socket for f in engine.list() if f.listener)
        cut = engine.change(Feature.IS_OPEN, 0, number, reason="enough")
        assert is_cut(peer)
        with refused(errno.EOPNOTSUPP):
            engine.undo(cut.rule)  # a connection that was cut stays cut
        assert [(r.state, r.reason, r.socket) for r in engine.rules()] == [(RuleState.DONE, "enough", number)]
        for error, change in ((errno.EBADF, dict(feature=Feature.PAUSE, value=1, socket=number)),
                              (errno.EOPNOTSUPP, dict(feature=Feature.PAUSE, value=1, socket=listener)),
                              (errno.EOPNOTSUPP, dict(feature=Feature.MIN_RATE_IN, value=MinRate(1, 1),
                                                      socket=listener)),
                              (errno.EINVAL, dict(feature=Feature.ALLOW, value=1)),
                              (errno.EINVAL, dict(feature=Feature.PEER_CAP, value=1 << 40)),
                              (errno.EINVAL, dict(feature=Feature.PEER_CAP, value=1, socket=number)),
                              (errno.EINVAL, dict(feature=Feature.MIN_RATE_IN, value=MinRate(1 << 60, 1))),
                              (errno.EINVAL, dict(feature=Feature.ADDRESS_BLOCK, value=1)),
                              (errno.EINVAL, dict(feature=Feature.ADDRESS_BLOCK, value=1, peer="127.0.0.9",
                                                  reason="\x1b[2J")),
                              (errno.EINVAL, dict(feature=0x7777, value=1))):
            with refused(error):
                engine.change(**change)
        with refused(errno.ENOENT):
            engine.undo(12345)
        assert in_force(engine) == []


def test_rules_outlive_the_ins_and_those_of_sockets_do_not(served) -> None:
    with served.engine() as engine:
        with served.connect() as peer:
            assert talks(peer)
            number = number_of(engine, peer)
            paced = engine.change(Feature.PACING, 10_000, number)
            engine.block("127.0.0.5")
            engine.change(Feature.PEER_CAP, 1, peer="127.0.0.6", ttl=600)
            engine.change(Feature.MIN_RATE_IN, MinRate(1000, 1))
            before = served.session.pid("ins")
            os.kill(before, 9)
            proc.wait_for(lambda: served.session.pid("ins") not in (before, 0), SECONDS, "another INS")

        def serves():
            with contextlib.suppress(ConnectionRefusedError):
                return is_served(served, "127.0.0.6")
        proc.wait_for(serves, SECONDS, "the server is reached again")
        ended(engine, paced.rule, RuleState.SOCKET_GONE)
        assert len(in_force(engine)) == 3
        assert not is_served(served, "127.0.0.5")
        proc.wait_for(lambda: not numbers_of(engine), SECONDS, "no connection is left")
        with peer_from(served, "127.0.0.6") as one:
            assert talks(one) and not is_served(served, "127.0.0.6")
        with served.connect() as slow:
            assert is_cut(slow, 2)
        engine.unblock("127.0.0.5")
        assert is_served(served, "127.0.0.5")


def test_ten_thousand_half_open_engines(served) -> None:
    def resident() -> int:
        status = Path(f"/proc/{served.session.pid('driver')}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    whole = Request(1, 1, Feature.MONITOR_OFF).pack()
    with served.engine() as engine:
        before = resident()
        kept: list = []
        for number in range(10_000):
            half = socket.socket(socket.AF_UNIX)
            half.connect(str(served.folder / "netflow.sock"))
            with contextlib.suppress(BrokenPipeError):
                half.send(whole[:1 + number % 45])
            if len(kept) < 300:
                kept.append(half)
            else:
                half.close()
            if number % 1000 == 0:
                assert engine.get(Feature.ALLOW, peer="127.0.0.1") == 0
        assert resident() - before < 30_000
        for half in kept:
            half.close()

        def another():
            with contextlib.suppress(OSError), Client(session=served.session.name, timeout=SECONDS) as late:
                return late.get(Feature.ALLOW, peer="127.0.0.1") == 0
        proc.wait_for(another, SECONDS, "there is room again")
        with served.connect() as peer:
            assert talks(peer)


def test_a_block_in_a_namespace_of_its_own_expires(serve, free_port) -> None:
    one = serve(ECHO, "-p", f"{free_port}:{free_port}")
    inside = ["ip", "netns", "exec", f"mw-{one.session.name}", "nft", "list", "set", "inet", "mw_blocks", "peers4"]
    with one.engine() as engine, one.pair(engine) as (peer, _):
        host = one.session.record["host4"]
        block = engine.change(Feature.ADDRESS_BLOCK, 1, peer=host, ttl=1)
        assert is_cut(peer)
        assert host in subprocess.run(inside, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
        ended(engine, block.rule, RuleState.EXPIRED)
        proc.wait_for(lambda: is_served(one, "127.0.0.1"), SECONDS, "the peer is let in again")
        assert host not in subprocess.run(inside, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
        # A driver that is started anew knows no rules, and leaves none behind that nobody could end.
        engine.block(host)
        before = one.session.pid("driver")
        os.kill(before, 9)
        proc.wait_for(lambda: one.session.pid("driver") not in (before, 0), SECONDS, "another driver")
        proc.wait_for(lambda: is_served(one, "127.0.0.1"), SECONDS, "the peer is let in again")
        assert "are forgotten: 1 blocked peers are let in again" in one.session.background.log.read_text()


def test_who_may_only_look_is_told_so_by_the_commands(serve, mw) -> None:
    one = serve(ECHO, "--net", "host", "--netflow-role", "read")
    name = one.session.name
    with one.connect() as peer:
        assert talks(peer)
        socket_name = json.loads(mw_says(mw, "flows", "-s", name, "-j", "listen"))[0]["socket"]
        for words in (["set", socket_name, "keepalive", "1"], ["close", socket_name], ["block", "127.0.0.1"]):
            assert mw_says(mw, words[0], "-s", name, *words[1:], status=4) == ""
        refused = json.loads(mw_says(mw, "set", "-s", name, "-j", socket_name, "keepalive", "1", status=4))
        assert refused["status"] == 4
        assert mw_says(mw, "get", "-s", name, socket_name, "keepalive") == "0\n"
        mw_says(mw, "guard", "-s", name, "--act", status=4)
        assert talks(peer)


def test_what_a_stack_did_not_take_is_not_in_force(served) -> None:
    asked = [(Feature.ALLOW, 1, {"peer": "127.0.0.9"}), (Feature.PEER_CAP, 7, {"peer": "127.0.0.8"}),
             (Feature.PEER_CAP, 8, {}), (Feature.MIN_RATE_IN, MinRate(900, 5), {})]
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(served.engine()) for _ in asked]
        looker = stack.enter_context(served.engine())
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(len(asked)))
        before = [looker.get(feature, **about) for feature, _, about in asked]
        ins = served.session.pid("ins")
        os.kill(ins, signal.SIGSTOP)
        try:
            answers = [pool.submit(engine.change, feature, value, **about)
                       for engine, (feature, value, about) in zip(engines, asked)]
            for feature, value, about in asked:
                proc.wait_for(lambda: looker.get(feature, **about) == value, SECONDS, f"the driver has {feature.name}")
        finally:
            os.kill(ins, signal.SIGKILL)
        for answer in answers:
            with pytest.raises(RequestError):
                answer.result(SECONDS)
        assert [looker.get(feature, **about) for feature, _, about in asked] == before


@pytest.mark.parametrize("example", ["python/example.py", "cpp/example.cc"])
def test_the_example_closes_a_connection_that_is_silent(served, example) -> None:
    source = build.ROOT / "clients" / example
    assert len(source.read_text().splitlines()) < 30
    command = [sys.executable, str(source), served.session.name, "1"] if example.endswith(".py") else \
        [str(build.program("mw_client_example")), str(served.folder / "netflow.sock"), "1"]
    with served.connect() as busy, served.connect() as silent:
        busy.sendall(b"x" * 2000)
        assert receive(busy, 2000) == b"x" * 2000
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as engine:
            try:
                assert is_cut(silent)
                assert engine.stdout.readline().startswith("closed ")
                assert talks(busy)
            finally:
                engine.kill()


def test_the_commands_about_rules(served, mw) -> None:
    def says(*words: str, status: int = 0) -> str:
        return mw_says(mw, words[0], "-s", served.session.name, *words[1:], status=status)

    with served.engine() as engine, served.connect() as peer:
        assert talks(peer)
        number = number_of(engine, peer)
        socket_name = next(f["socket"] for f in json.loads(says("flows", "-j")) if f["id"] == number)
        assert says("block", "127.0.0.5", "--ttl", "600", "--reason", "flood", "--dry-run") == ""
        assert json.loads(says("rules", "-j")) == []
        rule = json.loads(says("block", "127.0.0.5", "--ttl", "600", "--reason", "flood", "-j"))["rule"]
        (listed,) = json.loads(says("rules", "-j"))
        assert [listed[key] for key in ("rule", "state", "feature", "value", "of", "reason")] == \
            [rule, "in force", "block", 1, "127.0.0.5", "flood"]
        assert listed["by"].startswith("mw[") and 500 < listed["until"] - listed["since"] <= 600
        assert "flood" in says("rules") and not is_served(served, "127.0.0.5")
        says("undo", str(rule))
        assert is_served(served, "127.0.0.5")
        says("undo", str(rule), status=1)
        assert says("pause", socket_name).startswith("rule ")
        peer.sendall(b"ping\n")
        assert not select.select([peer], [], [], 0.2)[0] and says("get", socket_name, "pause") == "3\n"
        says("resume", socket_name)
        assert receive(peer, 5) == b"ping\n"
        told = json.loads(says("allow", "192.0.2.1", "--reason", 'Prüfung "日本"', "-j"))["rule"]
        assert [r["reason"] for r in json.loads(says("rules", "-j")) if r["rule"] == told] == ['Prüfung "日本"']
        assert says("set", socket_name, "sndtimeo", "2.25") == "2.250000\n"
        assert says("set", socket_name, "min-rate-in", "500/20") == "500/20\n"
        assert says("get", socket_name, "min-rate-in") == "500/20\n"
        assert json.loads(says("set", "all", "min-rate-out", "700", "-j")) == {"value": "700/0"}
        assert says("set", "all", "peer-cap", "9") == "9\n" and says("set", "127.0.0.5", "peer-cap", "2") == "2\n"
        says("allow", "127.0.0.1")
        says("set", socket_name, "pacing", "1000", status=1)
        says("close", socket_name, "--reason", "a rule's", status=1)
        assert talks(peer) and says("get", "127.0.0.1", "allow") == "1\n"
        says("allow", "127.0.0.1", "--off")
        for words in (["set", socket_name, "min-rate-in", "500/x"], ["set", "all", "pause", "1"], ["allow", "nowhere"],
                      ["block", "127.0.0.5", "--reason", "\x1b[2J"], ["undo", "x"], ["pause", "all"]):
            says(*words, status=2)
        says("close", socket_name)
        assert is_cut(peer)


def test_samples_say_what_holds_for_a_socket(served) -> None:
    with served.engine() as engine, served.connect() as peer:
        assert talks(peer)
        number = number_of(engine, peer)

        def flags() -> SampleFlag:
            for sampled in engine.rounds():
                for sample in sampled.samples:
                    if sample.socket == number:
                        return sample.flags & (SampleFlag.PAUSED | SampleFlag.PACED | SampleFlag.MIN_RATE |
                                               SampleFlag.ALLOWED)
            raise AssertionError("rounds have no end")
        engine.monitor(False)
        engine.sample(0.05)
        assert flags() == SampleFlag(0)
        engine.set(Feature.PAUSE, 2, number)
        engine.set(Feature.PACING, 1_000_000, number)
        engine.set(Feature.MIN_RATE_OUT, MinRate(1, 60), number)
        held = SampleFlag.PAUSED | SampleFlag.PACED | SampleFlag.MIN_RATE
        proc.wait_for(lambda: flags() == held, SECONDS, "the samples say so")
        engine.allow("127.0.0.1")
        proc.wait_for(lambda: flags() == SampleFlag.ALLOWED, SECONDS, "and that nothing holds any more")
