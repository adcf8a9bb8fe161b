"""A process maps what it uses of the session's memory, so that a limit of its address space (RLIMIT_AS) is as far away as
natively, and what it cannot map is an error and no harm."""

import json

import pytest

from mwtest import build, netns, proc

MODES = ["native", "mw"]
MIB = 1024  # /proc counts in KiB

PRELUDE = """
import array, ctypes, errno, json, os, resource, select, socket, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.malloc.restype = ctypes.c_void_p

def size():
    "KiB of address space."
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])

def limit(mib):
    resource.setrlimit(resource.RLIMIT_AS, (mib << 20, resource.RLIM_INFINITY))

def limit_to_what_is_there(more=0):
    resource.setrlimit(resource.RLIMIT_AS, ((size() + more) << 10, resource.RLIM_INFINITY))

def unlimited():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def outcome(call, *words):
    try:
        return call(*words)
    except OSError as error:
        return errno.errorcode[error.errno]

def server():
    return socket.create_server(("127.0.0.1", 0), backlog=128)

def exchange(client, served):
    "Bytes in both directions."
    for one, other in ((client, served), (served, client)):
        one.sendall(b"0123456789")
        assert other.recv(10, socket.MSG_WAITALL) == b"0123456789"

def pair(listener):
    client = socket.create_connection(listener.getsockname(), 20)
    served = listener.accept()[0]
    exchange(client, served)
    return client, served

def asked(listener):
    "What a client from elsewhere is told."
    with socket.create_connection(listener.getsockname(), 20) as client:
        return client.recv(100).decode()
"""


def run(mode: str, program: str, tmp_path, *words, script: str = "program.py") -> dict:
    path = tmp_path / script
    path.write_text(PRELUDE + program)
    with netns.Namespace() as namespace:
        command = build.wrap(mode, ["/usr/bin/python3", path, *words])
        return json.loads(proc.run(namespace.wrap(command), 120).stdout)


SIZES = """
sizes = {"idle": size()}
with server() as listener:
    sizes["listener"] = size()
    pairs = [pair(listener) for _ in range(60)]
    sizes["sockets"] = 2 * len(pairs)
    sizes["open"] = size()
    for one in pairs:
        for end in one:
            end.close()
sizes["closed"] = size()
print(json.dumps(sizes))
"""


def test_a_process_maps_what_it_uses(tmp_path):
    own = run("native", SIZES, tmp_path)
    here = run("mw", SIZES, tmp_path)
    more = {point: (here[point] - own[point]) / MIB for point in ("idle", "listener", "open", "closed")}
    assert more["idle"] <= 32 and more["listener"] <= 32
    assert more["open"] <= 64 + 2 * here["sockets"]
    assert more["closed"] <= 64


GROWTH = """
# 256 MiB of stacks and heaps of threads are no growth: one thread serves.
listener = server()
def serve():
    while True:
        with listener.accept()[0] as c:
            c.sendall(c.recv(100))
threading.Thread(target=serve, daemon=True).start()
def clients(n):
    for _ in range(n):
        with socket.create_connection(listener.getsockname(), 20) as c:
            c.sendall(b"x")
            assert c.recv(1) == b"x"
def many(n):
    "As many at once."
    held = [socket.create_connection(listener.getsockname(), 20) for _ in range(n)]
    for c in held:
        c.sendall(b"y")
    for c in held:
        assert c.recv(1) == b"y"
        c.close()
clients(20)
many(50)
few = size()
for _ in range(5):
    clients(200)
    many(100)
print(json.dumps([few, size()]))
"""


def test_connections_that_come_and_go_leave_nothing_mapped(tmp_path):
    few, many = run("mw", GROWTH, tmp_path)
    assert many - few <= 32 * MIB


# What a server does that limits each of its workers: the listener is the parent's, the worker sets the limit and becomes
# another program (Dovecot), or serves as it is (vsftpd).
LIMITED = """
WORKER = "import socket; l = socket.socket(fileno=%d); c = l.accept()[0]; c.recv(2); c.sendall(b'served')"
answers = {}
with server() as listener:
    listener.set_inheritable(True)
    for mib in json.loads(sys.argv[1]):
        for how in ("exec", "fork"):
            child = os.fork()
            if child == 0:
                limit(mib)
                if how == "exec":
                    os.execv(sys.executable, [sys.executable, "-c", WORKER % listener.fileno()])
                with listener.accept()[0] as c:
                    c.recv(2)
                    c.sendall(b"served")
                os._exit(0)
            with socket.create_connection(listener.getsockname(), 20) as client:
                client.settimeout(20)
                client.sendall(b"go")
                answers[f"{how} {mib}"] = client.recv(100).decode()
            os.waitpid(child, 0)
print(json.dumps(answers))
"""


@pytest.mark.parametrize("mode", MODES)
def test_a_limited_process_serves(mode, tmp_path):
    limits = [64, 96, 128, 200, 256, 512, 1024, 4096, 16384]
    answers = run(mode, LIMITED, tmp_path, json.dumps(limits))
    assert answers == {f"{how} {mib}": "served" for mib in limits for how in ("exec", "fork")}


LATER = """
listener = server()
first = pair(listener)
limit(256)
answers = [bool(libc.malloc(1 << 20)), bool(libc.malloc(1 << 29))]
exchange(*first)
exchange(*pair(listener))
print(json.dumps(answers))
"""


@pytest.mark.parametrize("mode", MODES)
def test_a_limit_set_after_the_start_leaves_room(mode, tmp_path):
    assert run(mode, LATER, tmp_path) == [True, False]


# There is no room for one more mapping. What failed is done once there is, and nothing is lost.
EXHAUSTED = """
listener = server()
gate, opened = os.pipe()
child = os.fork()
if child == 0:
    client = socket.create_connection(listener.getsockname(), 20)
    client.sendall(b"hello")
    os.close(opened)
    os.read(gate, 1)  # until the parent has seen it
    got = client.recv(100)
    os._exit(0 if got == b"welcome" else 1)
served = listener.accept()[0]
select.select([served], [], [], 20)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
room = bytearray(100)
answers = []
limit_to_what_is_there()
answers.append(outcome(served.recv_into, room))
answers.append(outcome(served.send, b"welcome"))
answers.append(outcome(datagrams.sendto, b"x", datagrams.getsockname()))
unlimited()
answers.append(outcome(served.recv_into, room))
answers.append(bytes(room[:5]).decode())
answers.append(outcome(served.send, b"welcome"))
answers.append(outcome(datagrams.sendto, b"x", datagrams.getsockname()))
answers.append(outcome(datagrams.recv_into, room))
os.close(opened)
answers.append(os.waitpid(child, 0)[1])
print(json.dumps(answers))
"""


def test_what_cannot_be_mapped_is_an_error_and_no_loss(tmp_path):
    assert run("mw", EXHAUSTED, tmp_path) == ["ENOMEM", "ENOMEM", "ENOBUFS", 5, "hello", 7, 1, 1, 0]


# Rings that are kept for the next connection make room for one that is needed now.
SPARE = """
listener = server()
fresh = [socket.create_connection(listener.getsockname(), 20) for _ in range(10)]
taken = [listener.accept()[0] for _ in fresh]
for one in [pair(listener) for _ in range(20)]:
    for end in one:
        end.close()
limit_to_what_is_there()
exchange(fresh[0], taken[0])
exchange(fresh[-1], taken[-1])
print(json.dumps("served"))
"""


def test_spare_rings_make_room(tmp_path):
    assert run("mw", SPARE, tmp_path) == "served"


# A connection is passed to a process that has room for little; another one inherits it by exec.
PASSED = """
CHILD = '''
import array, socket, sys
if sys.argv[1] == "passed":
    way = socket.socket(fileno=int(sys.argv[2]))
    data, control, flags, address = way.recvmsg(1, socket.CMSG_SPACE(4))
    fd = array.array("i", control[0][2])[0]
else:
    fd = int(sys.argv[2])
with socket.socket(fileno=fd) as c:
    c.sendall(c.recv(100).upper())
'''
answers = []
with server() as listener:
    for how in ("passed", "inherited"):
        client = socket.create_connection(listener.getsockname(), 20)
        served = listener.accept()[0]
        here, there = socket.socketpair()
        fd = there.fileno() if how == "passed" else served.fileno()
        child = subprocess.Popen([sys.executable, "-c", CHILD, how, str(fd)], pass_fds=[fd],
                                 preexec_fn=lambda: limit(64))
        socket.send_fds(here, [b"x"], [served.fileno()])
        served.close()
        client.sendall(b"to the other")
        answers.append(client.recv(100).decode())
        client.close()
        child.wait()
print(json.dumps(answers))
"""


@pytest.mark.parametrize("mode", MODES)
def test_a_limited_process_serves_what_it_is_given(mode, tmp_path):
    assert run(mode, PASSED, tmp_path) == ["TO THE OTHER", "TO THE OTHER"]


# Threads in the middle of their copies while others close, in a process that keeps unmapping; children are forked
# meanwhile and serve.
THREADS = """
listener = server()
limit(1 << 14)  # few rings are kept
def serve(c):
    with c:
        while data := c.recv(65536):
            c.sendall(data)
def accept():
    while True:
        threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
payload = os.urandom(300000)
wrong = []
def client():
    for k in range(30):
        with socket.create_connection(listener.getsockname(), 20) as c:
            n = 1 + k * 9973 % len(payload)
            sender = threading.Thread(target=c.sendall, args=(payload[:n],))
            sender.start()
            got = bytearray()
            while len(got) < n:
                got += c.recv(65536)
            sender.join()
            if got != payload[:n]:
                wrong.append(n)
def fork():
    for _ in range(10):
        child = os.fork()
        if child == 0:
            c = socket.socket()  # not by name: a lock of another thread may never be given back here
            c.connect(listener.getsockname())
            c.sendall(b"from a child")
            os._exit(0 if c.recv(12, socket.MSG_WAITALL) == b"from a child" else 1)
        if os.waitpid(child, 0)[1] != 0:
            wrong.append("child")
threads = [threading.Thread(target=client) for _ in range(4)] + [threading.Thread(target=fork)]
for t in threads: t.start()
for t in threads: t.join()
print(json.dumps(wrong))
"""


@pytest.mark.parametrize("mode", MODES)
def test_threads_and_children_while_rings_come_and_go(mode, tmp_path):
    assert run(mode, THREADS, tmp_path) == []


# A filter that ends the program if it maps shared memory: connections that come later are served all the same.
CONFINED = """
def filtered():
    NR, ARG3 = 0, 40
    MMAP, SHARED, KILL, ALLOW = 9, 1, 0x80000000, 0x7fff0000
    program = [(0x20, 0, 0, NR), (0x15, 0, 3, MMAP), (0x20, 0, 0, ARG3), (0x45, 0, 1, SHARED), (0x06, 0, 0, KILL),
               (0x06, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    class Filter(ctypes.Structure):
        _fields_ = [("n", ctypes.c_ushort), ("code", ctypes.c_void_p)]
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Filter(len(program), ctypes.addressof(code))), 0, 0) == 0
listener = server()
first = pair(listener)
filtered()
exchange(*first)
for _ in range(50):
    exchange(*pair(listener))
print(json.dumps("served"))
"""


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_may_forbid_shared_mappings(mode, tmp_path):
    assert run(mode, CONFINED, tmp_path) == "served"


# The child's session has no driver. It fails in every call and takes nothing; the parent goes on.
LOST = """
CHILD = '''
import errno, json, os, select, socket, sys, time
listener, served = (socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, int(fd)) for fd in sys.argv[1:])
def outcome(call, *words):
    try:
        return call(*words)
    except OSError as error:
        return errno.errorcode[error.errno]
def poll(sock):
    p = select.poll()
    p.register(sock, select.POLLIN)
    return [revents for _, revents in p.poll(100)]
epoll = select.epoll()
with open("/dev/null") as null:
    calls = {
        "accept": outcome(listener.accept), "recv": outcome(served.recv, 9), "send": outcome(served.send, b"x"),
        "read": outcome(os.read, served.fileno(), 9), "write": outcome(os.write, served.fileno(), b"x"),
        "read listener": outcome(os.read, listener.fileno(), 9), "name": outcome(served.getsockname),
        "peek": outcome(served.recv, 9, socket.MSG_PEEK), "shutdown": outcome(served.shutdown, socket.SHUT_RDWR),
        "epoll": outcome(epoll.register, listener), "sendfile": outcome(os.sendfile, served.fileno(), null.fileno(), 0, 9),
        "dup": outcome(os.read, os.dup(served.fileno()), 9), "new": outcome(socket.socket),
    }
cpu = time.process_time()
ready = [poll(listener), poll(served), select.select([listener], [], [], 0.1)[0]]
print(json.dumps({"calls": calls, "ready": ready, "spins": time.process_time() - cpu > 0.05}))
'''
with server() as listener:
    client, served = pair(listener)
    client.sendall(b"for the parent")
    waiting = socket.create_connection(listener.getsockname(), 20)
    waiting.sendall(b"waits")
    env = dict(os.environ, MWCOMMS_SESSION="mwcomms/nobody/0:" + "0" * 32)
    fds = [listener.fileno(), served.fileno()]
    child = subprocess.run([sys.executable, "-c", CHILD, *map(str, fds)], pass_fds=fds, env=env, text=True,
                           capture_output=True)
    later = [served.recv(100).decode(), listener.accept()[0].recv(100).decode()]
print(json.dumps({"child": json.loads(child.stdout), "said": child.stderr.count("mwshim:"), "later": later}))
"""


def test_a_process_that_cannot_join_takes_nothing(tmp_path):
    answer = run("mw", LOST, tmp_path)
    assert set(answer["child"]["calls"].values()) == {"ENETDOWN"}, answer["child"]["calls"]
    pollin, pollerr, pollhup = 1, 8, 16
    assert answer["child"]["ready"] == [[], [pollin | pollerr | pollhup], []]
    assert not answer["child"]["spins"]
    assert answer["said"] == 1
    assert answer["later"] == ["for the parent", "waits"]


def test_mw_run_under_a_limit_limits_the_application_alone(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PRELUDE + """
with server() as listener:
    exchange(*pair(listener))
print(json.dumps(resource.getrlimit(resource.RLIMIT_AS)[0]))
""")
    with netns.Namespace() as namespace:
        command = build.wrap("mw", ["/usr/bin/python3", script])
        limited = ["sh", "-c", 'ulimit -S -v 200000; exec "$@"', "sh", *command]
        assert json.loads(proc.run(namespace.wrap(limited), 60).stdout) == 200000 * 1024
