"""What hangs is replaced as what has died: a driver, a worker thread of a stack; and calls to it end."""

import ctypes
import os
import signal
import subprocess
import threading
from pathlib import Path

from mwtest import proc
from mwtest.session import serves

SECONDS = 120
_libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000
# Calls of so many threads that there are not cells enough for all; prints how they ended. Through ctypes,
# because socket.getsockopt() keeps Python's lock: one thread would call, and the others wait for it.
CALLERS = """
import ctypes, errno, resource, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
sys.setswitchinterval(10)  # who waits for Python's lock sleeps: the time used is the calls'
threading.stack_size(1 << 18)
sockets = [socket.socket() for _ in range(100)]
results, go = {}, threading.Event()
def call(k):
    go.wait()
    value, length = ctypes.c_int(), ctypes.c_uint(4)
    rc = libc.getsockopt(sockets[k % 100].fileno(), socket.IPPROTO_TCP, socket.TCP_MAXSEG, ctypes.byref(value),
                         ctypes.byref(length))
    results[k] = "answered" if rc == 0 else errno.errorcode[ctypes.get_errno()]
threads = [threading.Thread(target=call, args=(k,), daemon=True) for k in range(1500)]
for one in threads: one.start()
print("ready", flush=True)
sys.stdin.readline()
go.set()
for one in threads: one.join(100)
used = resource.getrusage(resource.RUSAGE_SELF)
print(sorted(set(results.values())), len(results), used.ru_utime + used.ru_stime < 20, flush=True)
s = socket.socket()
print(s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), flush=True)
"""


def stop_thread(tid: int) -> None:
    """One thread and no other, as a deadlock would."""
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if _libc.ptrace(request, tid, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(tid, WALL)
    # Its end is told to us first; until we have taken it, nobody else is told.
    threading.Thread(target=os.waitpid, args=(tid, WALL), daemon=True).start()


def workers(pid: int) -> list:
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir() if int(task.name) != pid]


def replaced(session, who: str, old: int) -> bool:
    return session.pid(who) not in (0, old) and session.alive(who)


def test_a_driver_that_hangs_is_replaced(mw, unchanged, start, server, free_port):
    session = start("-p", f"{free_port}:80", "--", *server, "80", "x")
    old = session.pid("driver")
    os.kill(old, signal.SIGSTOP)  # perhaps before the server has attached: it waits
    proc.wait_for(lambda: replaced(session, "driver", old), SECONDS, "another driver", session.background)
    assert "mwcommsd (pid" in session.background.tail(100) and "stopped beating" in session.background.tail(100)
    proc.wait_for(lambda: serves(free_port), SECONDS, "an answer", session.background)


def test_a_worker_that_hangs_is_replaced(mw, unchanged, start, server, free_port):
    session = start("--workers", "2", "-p", f"{free_port}:80", "--", *server, "80", "x")
    old = session.pid("ins")
    stop_thread(workers(old)[-1])
    proc.wait_for(lambda: replaced(session, "ins", old), SECONDS, "another stack", session.background)
    proc.wait_for(lambda: serves(free_port), SECONDS, "an answer", session.background)


def test_more_calls_than_cells_end_without_a_spin(mw, unchanged, tmp_path):
    words = [mw, "run", "--net", "host", "--", "/usr/bin/python3", "-c", CALLERS]
    with open(tmp_path / "log", "wb") as log, subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                                               stderr=log, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            ins = int(subprocess.run(["pgrep", "-P", str(process.pid), "-x", "mwins"], capture_output=True, text=True,
                                     check=True).stdout)
            for tid in workers(ins):
                stop_thread(tid)
            process.stdin.write("\n")
            process.stdin.flush()
            said = process.stdout.readline().strip()
            assert said.endswith(" 1500 True"), said
            assert "'ECONNRESET'" in said or "'ENETDOWN'" in said, said
            assert process.stdout.readline() == "1\n", "and the next one is served"
        finally:
            process.terminate()
            process.wait(SECONDS)


def test_a_heartbeat_needs_no_traffic(mw, unchanged, start, server):
    """Nobody is replaced because nothing happens."""
    session = start("--workers", "2", "--", *server, "80", "x")
    pids = session.pid("ins"), session.pid("driver")
    beat = Path(f"/run/mwcomms/{session.name}/mw/pvm/heartbeat")
    first = int(beat.read_text())
    proc.wait_for(lambda: int(beat.read_text() or 0) >= first + 9, SECONDS, "nine beats", session.background)
    assert (session.pid("ins"), session.pid("driver")) == pids
