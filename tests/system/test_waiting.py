"""Several threads and processes wait for one socket: each gets its due, whoever of them goes away, and nobody looks
again and again."""

import json

import pytest

from mwtest import build, netns, proc

MODES = ["native", "mw"]

PRELUDE = """
import ctypes, json, os, signal, socket, threading, time

def asleep(tid, seconds=20):
    "Waits until a thread sleeps."
    limit = time.monotonic() + seconds
    while open(f"/proc/{tid}/stat").read().rsplit(")", 1)[1].split()[0] != "S":
        assert time.monotonic() < limit
        os.sched_yield()

def connected():
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname(), 20)
    return client, listener.accept()[0]

def reader(sock, got):
    thread = threading.Thread(target=lambda: got.append(sock.recv(1).decode()), daemon=True)
    thread.start()
    asleep(thread.native_id)
    return thread
"""

# The C library's fgetc() is a thread's whole life here: it reads from the socket, and can be cancelled.
CANCELLED = PRELUDE + """
libc = ctypes.CDLL(None, use_errno=True)
libc.fdopen.restype = ctypes.c_void_p
libc.pthread_create.argtypes = [ctypes.c_void_p] * 4
libc.pthread_cancel.argtypes = [ctypes.c_ulong]
libc.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]

def blocked_in_c(sock):
    before = set(os.listdir("/proc/self/task"))
    thread = ctypes.c_ulong()
    stream = libc.fdopen(sock.fileno(), b"r")
    start = ctypes.cast(libc.fgetc, ctypes.c_void_p)
    assert libc.pthread_create(ctypes.byref(thread), None, start, stream) == 0
    asleep((set(os.listdir("/proc/self/task")) - before).pop())
    return thread

def cancel(thread):
    result = ctypes.c_void_p()
    assert libc.pthread_cancel(thread) == 0
    assert libc.pthread_join(thread, ctypes.byref(result)) == 0
    return ctypes.c_long(result.value).value

answers = []
for followers in range(3):
    client, served = connected()
    first = blocked_in_c(served)
    others = [reader(served, answers) for _ in range(followers)]
    answers.append(cancel(first))
    others.append(reader(served, answers))
    client.sendall(b"x" * len(others))
    for thread in others:
        thread.join(20)
        assert not thread.is_alive()
# One that is not the first.
client, served = connected()
waiting = reader(served, answers)
answers.append(cancel(blocked_in_c(served)))
client.sendall(b"y")
waiting.join(20)
print(json.dumps(answers))
"""

KILLED = PRELUDE + """
client, served = connected()
child = os.fork()
if child == 0:
    served.recv(1)
    os._exit(1)
asleep(child)
got = []
waiting = reader(served, got)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
client.sendall(b"z")
waiting.join(20)
print(json.dumps(got))
"""

# How often each of the threads woke while nothing came.
IDLE = PRELUDE + """
def switches(thread):
    for line in open(f"/proc/self/task/{thread.native_id}/status"):
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])

served = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
served.bind(("127.0.0.1", 0))
got = []
threads = [reader(served, got) for _ in range(4)]
before = [switches(thread) for thread in threads]
time.sleep(1)  # the measured interval itself
woken = [switches(thread) - was for thread, was in zip(threads, before)]
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for letter in b"abcd":
    client.sendto(bytes([letter]), served.getsockname())
for thread in threads:
    thread.join(20)
print(json.dumps({"most": max(woken), "got": sorted(got)}))
"""


def run(mode: str, *command: object) -> str:
    with netns.Namespace() as namespace:
        return proc.run(namespace.wrap(build.wrap(mode, list(command))), 60).stdout


def run_python(mode: str, program: str, tmp_path) -> object:
    script = tmp_path / "program.py"
    script.write_text(program)
    return json.loads(run(mode, "/usr/bin/python3", script).splitlines()[-1])


@pytest.mark.parametrize("mode", MODES)
def test_a_cancelled_reader_leaves_the_socket_to_the_others(mode, tmp_path):
    cancelled = -1  # PTHREAD_CANCELED
    assert run_python(mode, CANCELLED, tmp_path) == [
        cancelled, "x", cancelled, "x", "x", cancelled, "x", "x", "x", cancelled, "y"]


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_reader_leaves_the_socket_to_another_process(mode, tmp_path):
    assert run_python(mode, KILLED, tmp_path) == ["z"]


@pytest.mark.parametrize("mode", MODES)
def test_readers_of_one_socket_sleep(mode, tmp_path):
    answer = run_python(mode, IDLE, tmp_path)
    assert answer["got"] == ["a", "b", "c", "d"]
    assert answer["most"] <= 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["jump", "handler"])
def test_a_wait_that_is_left_or_interrupted_costs_nobody_his_bytes(mode, way):
    run(mode, build.program("waits"), way)
