"""A program that goes into another network namespace has the kernel's own sockets there, as it asked for."""

import json

from mwtest import build, netns, proc

PROGRAM = """
import ctypes, errno, json, os, select, signal, socket, subprocess, sys, threading

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
SYS_clone, SYS_unshare, SYS_setns = 56, 272, 308
home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
listener = socket.create_server(("127.0.0.1", 0))
address = listener.getsockname()
answers, protected = [], []

def is_protected(one):
    with open("/proc/thread-self/net/unix") as file:
        return any(line.split()[6] == str(os.fstat(one.fileno()).st_ino) for line in file)

def attempt(kind=socket.SOCK_STREAM):
    \"\"\"Whether a new socket reaches the listener, and whose it is.\"\"\"
    with socket.socket(socket.AF_INET, kind) as one:
        protected.append(is_protected(one))
        try:
            one.connect(address)
            answers.append("connected")
        except OSError as error:
            answers.append(errno.errorcode[error.errno])

def in_child(go):
    report, told = os.pipe()
    child = go()
    if child == 0:
        try:
            del answers[:], protected[:]
            yield
        finally:
            os.write(told, json.dumps([answers, protected]).encode())
            os._exit(0)
    os.close(told)
    os.waitpid(child, 0)
    with os.fdopen(report) as file:
        theirs = json.loads(file.read())
    answers.append(theirs[0])
    protected.append(theirs[1])

# Of the thread that went there only, until it comes back.
def another_thread():
    answers.append(libc.unshare(CLONE_NEWNET))
    attempt()
    attempt(socket.SOCK_DGRAM)
    gone.set()
    go_on.wait()
    answers.append(libc.setns(home, CLONE_NEWNET))
    attempt()
gone, go_on = threading.Event(), threading.Event()
thread = threading.Thread(target=another_thread)
thread.start()
gone.wait()
attempt()
go_on.set()
thread.join()

for _ in in_child(os.fork):
    answers.append(libc.syscall(ctypes.c_long(SYS_unshare), CLONE_NEWNET))
    attempt()
    answers.append(libc.syscall(ctypes.c_long(SYS_setns), home, 0))
    attempt()

# What was there before goes on, also in a new epoll instance, and in processes that are made over there.
client = socket.create_connection(address)
served = listener.accept()[0]
def clone():
    return libc.syscall(ctypes.c_long(SYS_clone), CLONE_NEWNET | signal.SIGCHLD, None, None, None, None)
def use(name):
    client.sendall(name)
    waits = select.epoll()
    waits.register(served, select.EPOLLIN)
    answers.append([waits.poll(20) == [(served.fileno(), select.EPOLLIN)], served.recv(10).decode()])
for _ in in_child(clone):
    attempt()
    use(b"clone")
    for _ in in_child(os.fork):
        use(b"fork")
        attempt()

# Programs that are started there.
AGAIN = "import socket, sys; sys.argv.pop(0)" + '''
try:
    with socket.socket() as one:
        print(one.connect_ex((sys.argv[0], int(sys.argv[1]))))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        print("talks to itself")
except OSError as error:
    print(error)
'''
for wrap in (["unshare", "-n"], ["unshare", "-rn"], ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "-"]):
    done = subprocess.run([*wrap, sys.executable, "-c", AGAIN, *map(str, address)], capture_output=True, text=True)
    answers.append([done.stdout, done.stderr])
print(json.dumps([answers, protected]))
"""


def test_its_sockets_are_the_kernels_over_there(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    answers, protected = {}, {}
    with netns.Namespace() as namespace:
        for mode in ("native", "mw"):
            text = proc.run(namespace.wrap(build.wrap(mode, ["/usr/bin/python3", script])), 60).stdout
            answers[mode], protected[mode] = json.loads(text)
    assert answers["mw"] == answers["native"]
    assert answers["native"][:4] == [0, "ENETUNREACH", "ENETUNREACH", "connected"]
    assert answers["native"][-1] == ["111\ntalks to itself\n", ""]
    assert protected["mw"] == [False, False, True, True, [False, True], [False, [False]]]
    assert "true" not in json.dumps(protected["native"])
