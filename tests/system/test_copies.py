"""Programs that are started in every way that copies descriptors: what they inherit stays theirs when the server goes on
to other connections."""

import json

import pytest

from mwtest import build, netns, proc

# Serves one connection after the other, so that what is kept of one is used for the next; in between starts a program
# that has inherited the connection and speaks later. Its clients are in the same process.
PROGRAM = """
import ctypes, json, os, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.popen.restype = ctypes.c_void_p
how = sys.argv[1]
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(16)
def connect():
    client = socket.create_connection(listener.getsockname(), 20)
    return client, listener.accept()[0]
def once():
    client, served = connect()
    served.sendall(b"short")
    served.close()
    assert read(client) == b"short"
def read(client):
    text = b""
    while data := client.recv(100):
        text += data
    return text
def start(fd):
    gate, hold = os.pipe()
    os.set_inheritable(gate, True)
    os.set_inheritable(fd, True)
    line = f"read line <&{gate}; echo late >&{fd}"
    if how == "popen":
        libc.popen(line.encode(), b"w")
    elif how == "system":
        libc.system(f"({line}) &".encode())
    elif how == "posix_spawn":
        os.posix_spawn("/bin/sh", ["sh", "-c", line], os.environ)
    elif how == "_Fork":
        if libc._Fork() == 0:
            os.execv("/bin/sh", ["sh", "-c", line])
    elif how == "syscall":
        SYS_fork = 57
        if libc.syscall(SYS_fork) == 0:
            os.execv("/bin/sh", ["sh", "-c", line])
    elif how == "fork":
        if os.fork() == 0:
            os.execv("/bin/sh", ["sh", "-c", line])
    os.close(gate)
    return hold
for _ in range(3):
    once()
first, served = connect()
hold = start(served.fileno())
served.close()
others = []
for _ in range(3):
    client, served = connect()
    others.append((client, served))
os.write(hold, b"go\\n")
answers = [read(first).decode()]
for number, (client, served) in enumerate(others):
    served.sendall(f"other {number}".encode())
    served.close()
    answers.append(read(client).decode())
print(json.dumps(answers))
"""

WAYS = ["fork", "posix_spawn", "popen", "system", "_Fork", "syscall"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("path", ["native", "mw"])
def test_an_inherited_connection_stays_the_childs(path, how, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    prefix = [] if path == "native" else [build.program("mw"), "run", "--net", "host", "--"]
    with netns.Namespace() as namespace:
        text = proc.run(namespace.wrap([*prefix, "/usr/bin/python3", script, how]), 60).stdout
    assert json.loads(text.splitlines()[-1]) == ["late\n", "other 0", "other 1", "other 2"]
