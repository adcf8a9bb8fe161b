"""A listener whose program does not accept looks to its clients as it does without MwComms: how many get in, and what
happens to them when it is closed."""

import socket
import subprocess

import pytest

from mwtest import build, netns, proc

PORT = 8000
CLIENTS = 12

SERVER = """
import socket, sys
listener = socket.socket()
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(int(sys.argv[2]))
print("listening", flush=True)
word = sys.stdin.readline().strip()
if word == "accept":
    held = []
    listener.settimeout(5)
    for _ in range(int(sys.stdin.readline())):
        held.append(listener.accept()[0])
    print("accepted", flush=True)
    sys.stdin.readline()
else:
    listener.close()
    print("closed", flush=True)
    sys.stdin.readline()
"""


def dial() -> list:
    """Clients that connect one after the other, until the first that does not get in, which is left out.

    One that has to wait may have met a queue that is about to be moved on: it tries again after a second.
    """
    clients = []
    while len(clients) < CLIENTS:
        one = socket.socket()
        one.settimeout(2.5)
        try:
            one.connect(("127.0.0.1", PORT))
        except TimeoutError:
            one.close()
            break
        clients.append(one)
    return clients


@pytest.fixture(params=["native", "mw"])
def serve(request, tmp_path):
    """serve(backlog) -> the server's process, in a namespace that this test has entered too."""
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    started = []
    with netns.Namespace() as namespace, namespace.entered():
        def begin(backlog: int):
            prefix = [] if request.param == "native" else [str(build.program("mw")), "run", "--net", "host", "--"]
            process = subprocess.Popen([*prefix, "/usr/bin/python3", str(script), str(PORT), str(backlog)],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
                                       start_new_session=True)
            started.append(process)
            assert process.stdout.readline() == "listening\n"
            return process
        yield begin
        for process in started:
            proc.end_group(process)
            process.stdin.close()
            process.stdout.close()


def say(process, *words) -> str:
    for word in words:
        process.stdin.write(f"{word}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@pytest.mark.parametrize("backlog", [0, 1, 2, 5])
def test_as_many_get_in_as_the_kernel_lets_in(serve, backlog):
    server = serve(backlog)
    clients = dial()
    assert len(clients) == backlog + 1
    # None of them is lost.
    assert say(server, "accept", backlog + 1) == "accepted"


def test_closing_the_listener_resets_those_that_were_not_accepted(serve):
    server = serve(4)
    clients = dial()
    assert len(clients) == 5
    assert say(server, "close") == "closed"
    for one in clients:
        one.settimeout(10)
        with pytest.raises(ConnectionResetError):
            one.recv(1)
