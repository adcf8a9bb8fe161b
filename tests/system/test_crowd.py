"""A crowd at the driver's door: connections that say nothing, or come and go, keep no program of the session out."""

import pytest

from mwtest import proc

SECONDS = 120
# Of the session's own processes: they know the address. `crowd` are ten children that play the strangers; the program
# that attaches behind them is another process, and says how much longer that took than without them.
SCRIPT = """
import os, socket, subprocess, sys, time
name = "\\0" + os.environ["MWCOMMS_SESSION"].rsplit(":", 1)[0]
def one():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect(name)
    return s
def silent(ready):
    kept = [one() for _ in range(500)]
    os.write(ready, b"x")
    time.sleep(600)
def restless(ready):
    os.write(ready, b"x")
    while True:
        one().close()
def attach():
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import socket; socket.socket().listen()"], check=True)
    return time.monotonic() - start
alone = min(attach() for _ in range(3))
read, write = os.pipe()
crowd = []
for _ in range(int(sys.argv[2])):
    pid = os.fork()
    if pid == 0:
        {"silent": silent, "restless": restless}[sys.argv[1]](write)
    crowd.append(pid)
behind = [attach() for _ in range(3)]
said = 0
while said < len(crowd):
    said += len(os.read(read, 64))
behind += [attach() for _ in range(3)]
for pid in crowd:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
print(max(behind) - alone)
"""


@pytest.mark.parametrize("kind, children", [("silent", 10), ("restless", 4)])
def test_a_crowd_keeps_no_program_out(mw, unchanged, kind, children):
    done = proc.run([mw, "run", "--net", "host", "--", "/usr/bin/python3", "-c", SCRIPT, kind, str(children)], SECONDS)
    assert float(done.stdout.split()[-1]) < 1
