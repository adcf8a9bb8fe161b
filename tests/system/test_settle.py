"""A program that talks to itself: what it sent has arrived when send() returns, as over the kernel's loopback."""

import json

import pytest

from mwtest import build, netns, proc

PROGRAM = """
import json, select, socket
listener = socket.create_server(("127.0.0.1", 0))
a = socket.create_connection(listener.getsockname(), 20)
b, _ = listener.accept()
watch = select.poll()
watch.register(a, select.POLLIN)
watch.register(b, select.POLLIN)
missed = 0
for _ in range(5000):
    a.send(b"x")
    missed += len(watch.poll(0)) != 1
    b.send(b"y")
    missed += len(watch.poll(0)) != 2
    a.recv(1)
    b.recv(1)
print(json.dumps(missed))
"""


@pytest.mark.parametrize("path", [
    pytest.param([], id="native"),
    pytest.param(["--workers", "1"], id="mw"),
    pytest.param(["--workers", "2"], id="mw-2-workers"),
])
def test_what_was_sent_is_there(path, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    prefix = [build.program("mw"), "run", "--net", "host", *path, "--"] if path else []
    with netns.Namespace() as namespace:
        text = proc.run(namespace.wrap([*prefix, "/usr/bin/python3", script]), 60).stdout
    assert json.loads(text.splitlines()[-1]) == 0
