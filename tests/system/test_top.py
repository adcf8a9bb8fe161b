"""`mw top` in a terminal of 80x24, and what it and `mw why` print without one."""

import contextlib
import json
import os
import re
import socket
import subprocess
import uuid

import pytest

from mwtest import proc

SECONDS = 20
SERVER = """
import socket, sys, threading
s = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=64)
print("ready", flush=True)
while True:
    threading.Thread(target=s.accept()[0].recv, args=(1,), daemon=True).start()
    print("accepted", flush=True)
"""


@pytest.fixture
def served(start, free_port, tmp_path):
    """A server whose threads wait each for one of three peers: (session, port, peers)."""
    program = tmp_path / "server.py"
    # The connections are kept alive by their threads' bound methods.
    program.write_text(SERVER)
    session = start(f"-p{free_port}:{free_port}", "--", "/usr/bin/python3", str(program), str(free_port))
    proc.wait_for(lambda: "ready" in session.background.tail(), SECONDS, "the server", session.background)
    with contextlib.ExitStack() as stack:
        peers = []
        for _ in range(3):
            peers.append(stack.enter_context(socket.create_connection(("127.0.0.1", free_port), SECONDS)))
        proc.wait_for(lambda: session.background.tail().count("accepted") == 3, SECONDS, "the server", session.background)
        yield session, free_port, peers


class Terminal:
    """A command in a tmux of its own, seen as a person sees it."""

    def __init__(self, *command: str) -> None:
        self._tmux = ["tmux", "-f", "/dev/null", "-L", f"mw-{uuid.uuid4()}"]
        subprocess.run([*self._tmux, "new-session", "-d", "-x", "80", "-y", "24",
                        f"{' '.join(command)}; echo ended with $?; cat"], check=True, timeout=SECONDS)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, timeout=SECONDS)

    def lines(self) -> list:
        done = subprocess.run([*self._tmux, "capture-pane", "-p"], check=True, timeout=SECONDS,
                              capture_output=True, text=True)
        return done.stdout.splitlines()

    def type(self, *keys: str) -> None:
        subprocess.run([*self._tmux, "send-keys", *keys], check=True, timeout=SECONDS)

    def until(self, pattern: str) -> list:
        """The screen once a line of it matches."""
        def find():
            lines = self.lines()
            return lines if any(re.search(pattern, line) for line in lines) else None
        return proc.wait_for(find, SECONDS, f"{pattern} on the screen")


def connections(lines: list) -> list:
    return [line for line in lines if " ESTAB " in line]


def test_the_screen(mw, served) -> None:
    session, port, peers = served
    with Terminal(mw, "top", "-s", session.name, "-d", "0.2") as screen:
        lines = screen.until(r" ESTAB ")
        lines = screen.until(r"3 connections, 1 listeners")
        assert lines[0].startswith(f"{session.name}: stack ") and "1 processes" in lines[2]
        assert lines[4].split()[:4] == ["WORKER", "WAIT", "SOCKET", "PEER"] and max(map(len, lines)) <= 80
        assert lines[23].startswith("F6/s sort")
        assert lines[3] == "sorted by worker"

        def costs():
            return [float(line.split()[0]) for line in connections(screen.lines())]
        proc.wait_for(lambda: len(now := costs()) == 3 and min(now) > 0 and now == sorted(now, reverse=True),
                      SECONDS, "what each has cost, in order")

        screen.type("F6")
        screen.until(r"^sort by: < worker >")
        screen.type("Right", "Right", "Enter")
        lines = screen.until(r"^sorted by socket")
        first = [line.split()[2] for line in connections(lines)]
        screen.type("I")
        proc.wait_for(lambda: [line.split()[2] for line in connections(screen.lines())] == first[::-1],
                      SECONDS, "the other order")

        chosen = peers[1].getsockname()[1]
        screen.type("/", f"port {chosen}", "Enter")
        screen.until(rf"sorted by socket, only: port {chosen}")
        proc.wait_for(lambda: len(connections(screen.lines())) == 1, SECONDS, "one line")

        screen.type("p")
        screen.until("PAUSED")
        screen.type("p")
        screen.type("k")
        screen.until(rf"^cut \d+:\d+, peer .*:{chosen}\? y/n")
        screen.type("n")
        screen.until("^F6/s sort")
        screen.type("k", "y")
        screen.until(r"^\d+:\d+ was cut")
        with pytest.raises(ConnectionResetError):
            peers[1].recv(1)
        screen.type("/", "Escape", "q")
        assert "ended with 0" in screen.until("ended with")[0]


def test_one_round_as_text_and_document(mw, served) -> None:
    session, port, peers = served
    done = proc.run([mw, "top", "-b", "-s", session.name, "port", str(peers[0].getsockname()[1])], SECONDS)
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 5 and lines[3].split()[:2] == ["WORKER", "WAIT"] and "PROCESS" in lines[3]
    assert "127.0.0.1" in lines[4] or str(peers[0].getsockname()[1]) in lines[4]
    assert f"python3[{session.pid('application')}]" in lines[4]

    document = json.loads(proc.run([mw, "top", "--json", "-s", session.name, "--sort", "age"], SECONDS).stdout)
    assert document["session"] == session.name and document["round"]["ins_pid"] == session.pid("ins")
    ages = [s["age"] for s in document["sockets"]]
    assert len(ages) == document["round"]["sockets"] >= 4 and ages == sorted(ages, reverse=True)
    assert [p["pid"] for p in document["processes"]] == [session.pid("application")]
    for wrong, status in ((["top", "-b", "--sort", "beauty"], 2), (["top", "-b", "-d", "0"], 2), (["top"], 2),
                          (["top", "-b", "-s", "nobody-7"], 3), (["why", "what"], 2),
                          (["why", "-s", session.name, "1:999999"], 1)):
        assert proc.run([mw, *wrong], SECONDS, check=False).returncode == status, wrong


def test_why(mw, served) -> None:
    session, port, peers = served
    def waited_for():
        document = json.loads(proc.run([mw, "top", "--json", "-s", session.name], SECONDS).stdout)
        return next((s for s in document["sockets"] if s["peer"].endswith(f":{peers[2].getsockname()[1]}")
                     and s["worker_seconds"] > 0), None)
    mine = proc.wait_for(waited_for, SECONDS, "a thread waits for the third")
    text = proc.run([mw, "why", "-s", session.name, mine["socket"]], SECONDS).stdout.decode()
    assert text.splitlines()[1] == "the peer has said nothing yet"
    assert "in: nothing yet" in text and "1 thread(s) wait for it" in text and "tcp: ESTAB" in text
    assert f"python3[{session.pid('application')}]" in text
    answer = json.loads(proc.run([mw, "why", "-j", "-s", session.name, mine["socket"]], SECONDS).stdout)
    assert answer["id"] == mine["id"] and answer["state"] == "the peer has said nothing yet"
    assert answer["worker_seconds"] >= mine["worker_seconds"] > 0
    assert answer["first_in"] is None and answer["uid"] == os.getuid() and answer["rules"] == []

    proc.run([mw, "pause", "-s", session.name, mine["socket"], "--ttl", "60", "--reason", "it is slow"], SECONDS)
    text = proc.run([mw, "why", "-s", session.name, mine["socket"]], SECONDS).stdout.decode()
    assert re.search(r"^rule \d+: pause .* in force for \d+ s more, made by .*: it is slow$", text, re.MULTILINE)
    assert "in force: paused" in text
    proc.run([mw, "close", "-s", session.name, mine["socket"], "--reason", "too slow"], SECONDS)
    text = proc.run([mw, "why", "-s", session.name, mine["socket"]], SECONDS).stdout.decode()
    assert text.startswith(f"{mine['socket']} is closed\n") and "too slow" in text
    answer = json.loads(proc.run([mw, "why", "-j", "-s", session.name, mine["socket"]], SECONDS).stdout)
    assert answer["state"] == "it is closed"
    assert {r["feature"]: r["reason"] for r in answer["rules"]} == {"pause": "it is slow", "open": "too slow"}
