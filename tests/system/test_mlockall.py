"""A program that locks all its memory locks its own: the session's regions, which have room for very many connections,
are not filled."""

import json

import pytest

from mwtest import build, netns, proc

PROGRAM = """
import ctypes, json, socket, sys

libc = ctypes.CDLL(None, use_errno=True)
CURRENT, FUTURE, ONFAULT = 1, 2, 4

def status():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {key: int(lines[key].split()[0]) for key in ("VmLck", "RssShmem")}

def echo():
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname(), 20)
    served = listener.accept()[0]
    data = bytes(range(256)) * 100
    client.sendall(data)
    got = b""
    while len(got) < len(data):
        got += served.recv(65536)
    return got == data

def lock(flags):
    return libc.mlockall(flags), ctypes.get_errno()

answers = []
if sys.argv[1] == "late":
    answers.append(echo())
for flags in (8, ONFAULT, FUTURE, CURRENT, CURRENT | FUTURE, CURRENT | FUTURE | ONFAULT):
    answers.append(lock(flags))
    answers.append(echo())
lock(CURRENT | FUTURE)
print(json.dumps({"answers": answers, **status()}))
"""

EINVAL = 22


@pytest.mark.parametrize("mode", ["native", "mw"])
@pytest.mark.parametrize("when", ["early", "late"])
def test_locked_memory_is_the_programs_own(mode, when, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    with netns.Namespace() as namespace:
        text = proc.run(namespace.wrap(build.wrap(mode, ["/usr/bin/python3", script, when])), 60).stdout
    answer = json.loads(text)
    refused, locked, served = [-1, EINVAL], [0, EINVAL], True  # errno stays what it was
    assert answer["answers"][-12:] == [
        refused, served, refused, served, locked, served, locked, served, locked, served, locked, served]
    assert answer["VmLck"] > 4096
    assert answer["RssShmem"] < 65536
