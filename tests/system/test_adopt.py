"""kill -9 of `mw run`: its application goes on, and another front end goes on with the session."""

import http.client
import os
import signal
import time

from mwtest import proc
from mwtest.session import copy_of_the_build, gone, host_state, sessions


def run(mw, *arguments, seconds=30):
    return proc.run([mw, *arguments], seconds, check=False)


def fetch(connection: http.client.HTTPConnection) -> bytes:
    connection.request("GET", "/")
    return connection.getresponse().read()


def served(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        return fetch(connection).startswith(b"hello")
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def serve(start, server, port, **options):
    session = start("-p", f"{port}:80", "--", *keep_alive(server), "80", "hello", **options)
    proc.wait_for(lambda: served(port), 20, "the first answer", session.background)
    return session


def keep_alive(server: list) -> list:
    """The server with connections that stay open between requests."""
    path = server[-1]
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(text.replace("    def do_GET", '    protocol_version = "HTTP/1.1"\n    def do_GET'))
    return server


def test_another_front_end_takes_over_by_itself(mw, unchanged, start, server, free_port):
    session = serve(start, server, free_port)
    application = session.pid("application")
    established = http.client.HTTPConnection("127.0.0.1", free_port, timeout=10)
    assert fetch(established).startswith(b"hello")
    first = established.sock.fileno()

    adopter = session.adopted(session.lose_front_end())
    assert fetch(established).startswith(b"hello") and established.sock.fileno() == first, "the same connection"
    assert session.pid("application") == application

    # It replaces what dies, as the one before did.
    for who in ("ins", "driver", "ins"):
        victim = session.pid(who)
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        proc.wait_for(lambda: session.pid(who) not in (0, victim) and served(free_port), 20, f"after the {who}")
        assert who != "ins" or time.monotonic() - began < 4
    # And is replaced itself.
    assert session.adopted(session.lose_front_end()) != adopter
    assert served(free_port)

    # The session ends with its application, and nothing is left: nobody had to clean up.
    os.kill(application, signal.SIGTERM)
    proc.wait_for(lambda: session.name not in sessions(), 20, "the end of the session")
    assert host_state() == unchanged


def test_a_signal_to_the_new_front_end_ends_the_application(mw, unchanged, start, server, free_port):
    session = serve(start, server, free_port)
    application = session.pid("application")
    adopter = session.adopted(session.lose_front_end())
    os.kill(adopter, signal.SIGTERM)
    proc.wait_for(lambda: session.name not in sessions(), 20, "the end of the session")
    assert gone(application)
    assert host_state() == unchanged


def test_a_killed_group_leaves_nothing(mw, unchanged, start, server, free_port):
    session = serve(start, server, free_port)
    os.killpg(session.background.pid, signal.SIGKILL)  # mw run and its application
    session.background.process.wait(10)
    proc.wait_for(lambda: session.name not in sessions(), 20, "the driver sees to it")
    assert host_state() == unchanged


def test_a_title_over_the_environment_does_not_hide_a_process(mw, unchanged, start, free_port, tmp_path):
    # As nginx and others do: the strings of the environment are overwritten by a title. The command
    # has ended and its daemon is all that is left.
    script = tmp_path / "titled.py"
    script.write_text("""
import ctypes, os, socket, sys
if os.fork():
    os._exit(0)
os.setsid()
listener = socket.create_server(("", 80))
start, end = [int(word) for word in open("/proc/self/stat").read().rsplit(")", 1)[1].split()[47:49]]
ctypes.memset(start, 0x20, end - start)
assert b"MWCOMMS" not in open("/proc/self/environ", "rb").read()
while True:
    peer, _ = listener.accept()
    peer.recv(4096)
    peer.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nhello")
    peer.close()
""")
    session = start("-p", f"{free_port}:80", "--", "/usr/bin/python3", str(script))
    proc.wait_for(lambda: served(free_port), 20, "the first answer", session.background)
    session.adopted(session.lose_front_end())
    assert run(mw, "clean").returncode == 0
    assert served(free_port) and session.name in sessions()


def test_adopting_by_hand(mw, unchanged, start, server, free_port, tmp_path):
    program = copy_of_the_build(mw, tmp_path / "tree")
    session = serve(start, server, free_port, program=str(program))
    program.unlink()  # so its driver finds nothing to start
    session.lose_front_end()
    assert served(free_port)
    listing = run(mw, "ps", session.name).stdout.decode()
    assert "without its mw run" in listing and f"mw adopt {session.name}" in listing
    assert run(mw, "clean").returncode == 0
    assert session.name in sessions() and served(free_port), "it runs, so it stays"
    with proc.Background([mw, "adopt", session.name], tmp_path / "adopt.log") as adopter:
        proc.wait_for(lambda: session.pid("owner") == adopter.pid, 10, "the session is adopted", adopter)
        second = run(mw, "adopt", session.name)
        assert second.returncode == 1 and b"has its front end" in second.stderr
        refused = run(mw, "clean", session.name)
        assert refused.returncode == 1 and str(adopter.pid).encode() in refused.stderr
        victim = session.pid("ins")
        os.kill(victim, signal.SIGKILL)
        proc.wait_for(lambda: session.pid("ins") not in (0, victim) and served(free_port), 10, "another INS", adopter)
        adopter.process.terminate()
        assert adopter.process.wait(20) == 0
    assert session.name not in sessions()
    assert host_state() == unchanged


def test_front_end_and_driver_killed_together(mw, unchanged, start, server, free_port):
    session = serve(start, server, free_port)
    application = session.pid("application")
    os.kill(session.pid("driver"), signal.SIGSTOP)  # so that neither can replace the other
    driver = session.pid("driver")
    session.lose_front_end()
    os.kill(driver, signal.SIGKILL)
    assert served(free_port), "application and INS go on for a moment"
    done = run(mw, "adopt", session.name)
    assert done.returncode == 1 and b"without its mwcommsd" in done.stderr
    assert run(mw, "clean").returncode == 0
    assert session.name in sessions(), "its application runs"
    done = run(mw, "clean", session.name)
    assert done.returncode == 0 and session.name.encode() in done.stdout
    assert gone(application)
    assert host_state() == unchanged


def test_an_ins_that_the_record_does_not_know_is_ended(mw, unchanged, start, server, free_port):
    session = serve(start, server, free_port)
    ins = session.pid("ins")
    session.background.process.send_signal(signal.SIGSTOP)
    # What the record would say if the front end had been killed just after it had started this INS.
    path = f"/run/mwcomms/{session.name}/owner"
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write("".join("ins=0 0\n" if line.startswith("ins=") else line for line in text.splitlines(True)))
    session.adopted(session.lose_front_end())
    proc.wait_for(lambda: session.pid("ins") != 0 and served(free_port), 10, "another INS")
    assert gone(ins)


def test_no_such_session(mw):
    for command in ("adopt", "clean"):
        done = run(mw, command, "no-such-session-0")
        assert done.returncode == 3 and b"none of that name" in done.stderr
