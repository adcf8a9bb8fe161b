"""`./dev demo`, as a newcomer runs it."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from mwtest import build, proc
from mwtest.session import output

DEV = build.ROOT / "dev"
SECONDS = 300

_SERVER = "import socket\ns = socket.create_server(('', 80))\nkept = []\n"
CLOSES_AT_ONCE = [sys.executable, "-c", _SERVER + "while True: s.accept()[0].close()"]
SAYS_NOTHING = [sys.executable, "-c", _SERVER + "while True: kept.append(s.accept())"]
ENDS_AFTER_ONE = [sys.executable, "-c", _SERVER + "s.accept()"]
PAGES = [sys.executable, "-m", "http.server"]
ONLY_LOOPBACK = [sys.executable, "-m", "http.server", "-b", "127.0.0.1", "80"]


def leftovers() -> tuple:
    return (re.findall(r"mwdemo\S*", output("ip", "netns", "list") + output("ip", "-o", "link")),
            sorted(str(one) for one in Path("/tmp").glob("mwdemo.*")))


@pytest.fixture(autouse=True)
def nothing_left(unchanged):
    before = leftovers()
    yield
    assert leftovers() == before


def demo(*words) -> tuple:
    done = proc.run([DEV, "demo", "--once", *words], SECONDS, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_a_page_a_live_connection_and_its_end():
    status, said, errors = demo()
    assert status == 0, said + errors
    assert "HTTP/1.1 200 OK" in said
    # Half a request was seen, and what the visitor saw of its end.
    assert "apache2[" in said.partition("half a request")[2].partition("cutting it")[0]
    assert "the visitor says: Connection reset by peer" in said


@pytest.mark.parametrize(("words", "shown"), [
    (["--", *CLOSES_AT_ONCE], "the server ends such connections by itself"),
    (["--", *SAYS_NOTHING], "the visitor says: Connection reset by peer"),
    (["-p", "8090:8000", "--", *PAGES], "the visitor says: Connection reset by peer"),
    (["-p", "8090:6379", "--", "redis-server", "--save", ""], "the server ends such connections by itself"),
    (["-p", "8090:22", "--", "/usr/sbin/sshd", "-D"], "the visitor says: Connection reset by peer"),
], ids=["closes-at-once", "says-nothing", "http.server", "redis", "sshd"])
def test_any_server(words, shown):
    if "/usr/sbin/sshd" in words:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # what Debian's service unit makes
    status, said, errors = demo(*words)
    assert status == 0, said + errors
    assert shown in said and "everything that was made is removed" in said


@pytest.mark.parametrize(("words", "cause", "remedy"), [
    (["--", *ENDS_AFTER_ONE], "the server ended before the demo did", "its own messages stand above"),
    (["--", "false"], "the server ended before it answered", "its own messages stand above"),
    (["--", *ONLY_LOOPBACK], "CMD listens on: 127.0.0.1:80", "let it listen on 0.0.0.0"),
], ids=["ends", "fails", "loopback"])
def test_a_failure_names_cause_and_remedy(words, cause, remedy):
    status, said, errors = demo(*words)
    assert status == 1, said
    assert re.search(rf"^dev: .*{re.escape(cause)}.*\n     .*{re.escape(remedy)}", errors, re.M), errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(tmp_path, visitor, number):
    with proc.Background([DEV, "demo", "-p", "8090:8000", "--", *PAGES], tmp_path / "demo.log") as demo:
        proc.wait_for(lambda: "== serving until Ctrl-C" in demo.tail(), SECONDS, "it serves", demo)
        assert b"Directory listing" in visitor.curl(f"http://{visitor.HOST4}:8090/").stdout
        # A terminal's Ctrl-C reaches the whole group.
        (os.killpg if number == signal.SIGINT else os.kill)(demo.pid, number)
        assert demo.process.wait(SECONDS) == 128 + number, demo.tail()
