"""Socket options that take a capability: the driver sets them for who has it, and for nobody else."""

import json
import os
import signal

import pytest

from mwtest import proc

PROGRAM = """
import json, os, socket, sys
gate, out = sys.argv[1:]
def mark(s, value):
    try:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, value)
    except OSError as e:
        return e.errno
    return s.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
listener = socket.create_server(("127.0.0.1", 0))
told = [mark(listener, 5), mark(socket.socket(), 6), mark(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 7)]
for name in (32, 33):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
    s = socket.socket()
    try:
        s.setsockopt(socket.SOL_SOCKET, name, 4 << 20)
        told.append(s.getsockopt(socket.SOL_SOCKET, {32: socket.SO_SNDBUF, 33: socket.SO_RCVBUF}[name]))
    except OSError as e:
        told.append(e.errno)
def tell():
    with open(out + "+", "w") as f:
        json.dump(told, f)
    os.rename(out + "+", out)
tell()
open(gate).read()
told = [listener.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)]
tell()
open(gate).read()
"""
EPERM = 1


def begin(start, tmp_path, *before: str) -> tuple:
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.name.startswith("pytest-"):
            folder.chmod(0o755)
    gate, out, program = tmp_path / "gate", tmp_path / "out", tmp_path / "program.py"
    os.mkfifo(gate, 0o666)
    gate.chmod(0o666)
    program.write_text(PROGRAM)
    session = start("--", *before, "/usr/bin/python3", str(program), str(gate), str(out))
    proc.wait_for(out.exists, 20, "the program's first answers")
    told = json.loads(out.read_text())
    out.unlink()
    return session, told, gate, out


def test_a_program_with_the_capability_has_them_and_its_listener_keeps_them(start, tmp_path) -> None:
    session, told, gate, out = begin(start, tmp_path)
    assert told == [5, 6, 7, 8 << 20, 8 << 20]
    victim = session.pid("ins")
    os.kill(victim, signal.SIGKILL)
    proc.wait_for(lambda: session.pid("ins") not in (0, victim), 20, "another INS")

    def kept() -> bool:
        gate.write_text("")
        proc.wait_for(out.exists, 20, "the program's answer")
        answer = json.loads(out.read_text())
        return answer == [5]

    assert kept()
    gate.write_text("")


@pytest.mark.parametrize("without", [
    ("setpriv", "--reuid", "65534", "--clear-groups"),
    ("setpriv", "--bounding-set", "-net_admin,-net_raw", "--inh-caps", "-net_admin,-net_raw"),
    ("unshare", "--user", "--map-root-user"),
], ids=["another user", "root without the capability", "root of its own namespace"])
def test_nobody_else_has_them(start, tmp_path, without) -> None:
    session, told, gate, out = begin(start, tmp_path, *without)
    assert told == [EPERM] * 5
    gate.write_text("")
    proc.wait_for(out.exists, 20, "the program's second answer")
    gate.write_text("")
