"""kill -9 of mwcommsd and of the front end together, of the INS too: the INS ends, and nobody waits for ever."""

import contextlib
import os
import signal
import socket
import time

import pytest

from mwtest import proc
from mwtest.session import copy_of_the_build, gone, host_state, sessions

PORT = 80
# With neither of them an INS ends within ten seconds; the machine may be busy.
ENDS_WITHIN = 10
PATIENCE = 60

PROGRAM = """
import errno, os, select, socket, sys, threading, time

log = open(sys.argv[1], "a", buffering=1)
def say(*words):
    log.write(" ".join(str(word) for word in words) + "\\n")

listener = socket.create_server(("0.0.0.0", 80), backlog=16)
say("ready")
accepted = {}
for _ in range(7):
    connection, _ = listener.accept()
    accepted[connection.recv(20).decode()] = connection
    connection.sendall(b"in")

def wait_in(name, wait):
    say("waits", name)
    try:
        say("done", name, wait())
    except OSError as error:
        say("done", name, errno.errorcode.get(error.errno, error.errno))

def in_recv():
    return len(accepted["recv"].recv(1))

def in_recv_with_limit():
    accepted["timed"].settimeout(300)
    return len(accepted["timed"].recv(1))

def in_send():
    while True:
        accepted["send"].send(bytes(65536))

def in_poll():
    poller = select.poll()
    poller.register(accepted["poll"], select.POLLIN)
    poller.poll()
    return len(accepted["poll"].recv(1))

def in_select():
    select.select([accepted["select"]], [], [])
    return len(accepted["select"].recv(1))

def in_epoll():
    instance = select.epoll()
    instance.register(accepted["epoll"], select.EPOLLIN)
    instance.poll()
    return len(accepted["epoll"].recv(1))

def in_epoll_too():
    instance = select.epoll()
    instance.register(accepted["epoll2"], select.EPOLLIN | select.EPOLLET)
    while not instance.poll(100):
        pass
    return len(accepted["epoll2"].recv(1))

def in_accept():
    return listener.accept()

def in_datagrams():
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("0.0.0.0", 0))
    return len(one.recv(10))

waits = dict(recv=in_recv, timed=in_recv_with_limit, send=in_send, poll=in_poll, select=in_select, epoll=in_epoll,
             epoll2=in_epoll_too, accept=in_accept, datagrams=in_datagrams)
threads = [threading.Thread(target=wait_in, args=one) for one in waits.items()]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for name, call in (("socket", lambda: socket.socket()), ("name", lambda: socket.getaddrinfo("name.test", 80)),
                   ("old", lambda: accepted["recv"].send(b"x")), ("close", lambda: accepted["poll"].close())):
    began = time.monotonic()
    wait_in(name, call)
    say("took", name, time.monotonic() - began)
say("over")
time.sleep(3600)
"""
NAMES = ("recv", "timed", "send", "poll", "select", "epoll", "epoll2")
WAITS = (*NAMES, "accept", "datagrams")


@pytest.fixture
def waiting(mw, unchanged, start, free_port, tmp_path):
    """A session whose program waits in every way; gives it, its clients and what the program says."""
    script, log = tmp_path / "program.py", tmp_path / "said"
    script.write_text(PROGRAM)
    session = start("-p", f"{free_port}:{PORT}", "--", "/usr/bin/python3", str(script), str(log))
    said = lambda: log.read_text().splitlines() if log.exists() else []  # noqa: E731
    proc.wait_for(lambda: "ready" in said(), 60, "the program listens", session.background)
    with contextlib.ExitStack() as stack:
        clients = {}
        for name in NAMES:
            clients[name] = stack.enter_context(socket.create_connection(("127.0.0.1", free_port), 60))
            clients[name].sendall(name.encode())
            assert clients[name].recv(2) == b"in"
        proc.wait_for(lambda: all(f"waits {name}" in said() for name in WAITS), 60, "it waits everywhere", session.background)
        yield session, clients, said


def kill(session, *parts: str) -> dict:
    """At once: nobody is there to replace anybody."""
    pids = {who: session.pid(who) for who in parts}
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    session.background.process.wait(60)
    for who, pid in pids.items():
        proc.wait_for(lambda: gone(pid), 20, f"the end of the {who}")
    return pids


def ended(lines: list) -> dict:
    return {line.split()[1]: line.split()[2] for line in lines if line.startswith("done ")}


def sees_errors(said) -> dict:
    proc.wait_for(lambda: "over" in said(), PATIENCE, "every wait ends, and every later call")
    found = ended(said())
    for name in WAITS:
        expected = ("EINVAL", "ENETDOWN") if name == "accept" else ("ECONNRESET", "EPIPE") if name == "send" else ("ECONNRESET",)
        assert found[name] in expected, (name, found)
    assert found["socket"] == "ENETDOWN" and found["old"] in ("ECONNRESET", "EPIPE"), found
    for line in said():
        if line.startswith("took "):
            assert float(line.split()[2]) < 10, line
    return found


def test_the_ins_ends_by_itself(waiting, fair_clock, mw, unchanged):
    session, clients, said = waiting
    ins, application = session.pid("ins"), session.pid("application")
    kill(session, "driver", "owner")
    began = fair_clock.now()
    assert not gone(ins), "not at once"
    proc.wait_for(lambda: gone(ins), PATIENCE, "the end of the INS")
    assert fair_clock.now() - began < ENDS_WITHIN + 2
    for name in ("recv", "poll", "epoll"):
        with pytest.raises(ConnectionResetError):
            clients[name].recv(1)
    sees_errors(said)
    # What it leaves is found.
    assert session.name in sessions() and not gone(application)
    assert proc.run([mw, "clean", session.name], 60, check=False).returncode == 0
    assert gone(application)
    assert host_state() == unchanged


def test_a_start_finds_what_is_left(waiting, mw, unchanged):
    session, _, said = waiting
    application, ins = session.pid("application"), session.pid("ins")
    kill(session, "driver", "owner")
    os.kill(application, signal.SIGKILL)
    proc.wait_for(lambda: gone(ins), PATIENCE, "the end of the INS")
    assert session.name in sessions()
    proc.run([mw, "run", "--", "true"], 60)
    assert session.name not in sessions()
    assert host_state() == unchanged


def test_an_application_that_is_alone_does_not_hang(waiting, mw):
    session, _, said = waiting
    kill(session, "ins", "driver", "owner")
    sees_errors(said)
    assert proc.run([mw, "clean", session.name], 60, check=False).returncode == 0


def lives_on(ins: int) -> None:
    end = time.monotonic() + ENDS_WITHIN + 3
    proc.wait_for(lambda: time.monotonic() > end or gone(ins), PATIENCE, "longer than an INS lives alone")
    assert not gone(ins)


def fetch(port: int) -> bytes:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: client.recv(4096), b""))
    return b""


def test_with_a_front_end_it_goes_on(mw, unchanged, start, server, free_port):
    session = start("-p", f"{free_port}:{PORT}", "--", *server, str(PORT), "hello")
    proc.wait_for(lambda: b"hello" in fetch(free_port), 60, "the first answer", session.background)
    ins, driver = session.pid("ins"), session.pid("driver")
    os.kill(session.pid("owner"), signal.SIGSTOP)  # it lives, and replaces nobody
    os.kill(driver, signal.SIGKILL)
    lives_on(ins)
    assert b"hello" in fetch(free_port)
    os.kill(session.pid("owner"), signal.SIGCONT)
    proc.wait_for(lambda: session.pid("driver") not in (0, driver) and session.alive("driver"), 60, "another driver")
    assert session.pid("ins") == ins and b"hello" in fetch(free_port)


def test_with_a_driver_it_goes_on(mw, unchanged, start, server, free_port, tmp_path):
    program = copy_of_the_build(mw, tmp_path / "tree")
    session = start("-p", f"{free_port}:{PORT}", "--", *server, str(PORT), "hello", program=str(program))
    proc.wait_for(lambda: b"hello" in fetch(free_port), 60, "the first answer", session.background)
    ins = session.pid("ins")
    program.unlink()  # so the driver finds no front end to start
    session.lose_front_end()
    lives_on(ins)
    assert b"hello" in fetch(free_port)
    with proc.Background([mw, "adopt", session.name], tmp_path / "adopt.log") as adopter:
        proc.wait_for(lambda: session.pid("owner") == adopter.pid, 20, "the session is adopted", adopter)
        assert session.pid("ins") == ins and b"hello" in fetch(free_port)
        adopter.process.terminate()
        adopter.process.wait(60)


def test_a_successor_counts_as_well(mw, unchanged, start, server, free_port):
    """The front end that the INS knew is gone for long; the one that adopted the session is enough."""
    session = start("-p", f"{free_port}:{PORT}", "--", *server, str(PORT), "hello")
    adopter = session.adopted(session.lose_front_end())
    ins, driver = session.pid("ins"), session.pid("driver")
    os.kill(adopter, signal.SIGSTOP)
    os.kill(driver, signal.SIGKILL)
    lives_on(ins)
    os.kill(adopter, signal.SIGCONT)
    proc.wait_for(lambda: session.pid("driver") not in (0, driver) and session.alive("driver"), 60, "another driver")
    assert session.pid("ins") == ins
