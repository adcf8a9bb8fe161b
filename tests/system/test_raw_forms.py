"""Calls that few programs make on sockets: what they answer natively, they answer here."""

import json

from mwtest import build, netns, proc

PROGRAM = """
import ctypes, errno, json, os, socket, struct, threading

libc = ctypes.CDLL(None, use_errno=True)
SYS_pselect6, SYS_preadv2 = 270, 327
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname(), 20)
served = listener.accept()[0]
answers = []

def attempt(call, *arguments):
    try:
        answers.append(call(*arguments))
    except OSError as error:
        answers.append(errno.errorcode[error.errno])

def raw(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    answers.append(result if result >= 0 else errno.errorcode[ctypes.get_errno()])

buffers = [bytearray(2), bytearray(8)]
attempt(os.preadv, served.fileno(), buffers, -1, os.RWF_NOWAIT)
attempt(os.preadv, served.fileno(), buffers, 0, 0)
attempt(os.preadv, served.fileno(), buffers, -2, 0)
attempt(os.preadv, served.fileno(), buffers, -1, 1 << 20)
attempt(os.pwritev, client.fileno(), [b"one", b"two"], 5)
attempt(os.pwritev, client.fileno(), [b"one", b"two"], -1, os.RWF_DSYNC)
attempt(os.preadv, served.fileno(), buffers, -1)
answers.append([bytes(b).decode("latin1") for b in buffers])

attempt(os.pwritev, client.fileno(), [b"three"], -1)
room = ctypes.create_string_buffer(16)
vector = struct.pack("PN", ctypes.addressof(room), 16)
raw(SYS_preadv2, served.fileno(), vector, 1, ctypes.c_long(-1), ctypes.c_long(-1), 0)
answers.append(room.value.decode())

def pselect(seconds):
    readable = bytearray(128)
    readable[served.fileno() // 8] |= 1 << served.fileno() % 8
    bits = (ctypes.c_char * 128).from_buffer(readable)
    limit = ctypes.create_string_buffer(struct.pack("ll", seconds, 0))
    mask = ctypes.create_string_buffer(8)
    pair = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(mask), 8))
    raw(SYS_pselect6, served.fileno() + 1, bits, None, None, limit, pair)
    answers.append(any(readable))

pselect(0)
later = threading.Timer(0.1, client.sendall, [b"four"])
later.start()
pselect(20)
later.join()
raw(SYS_pselect6, 1, None, None, None, None, ctypes.c_long(1))

answers.append(served.recv(10).decode())

epfd = libc.epoll_create1(0)
for bad in (0, 1, 4096, -4096):
    answers.append([libc.epoll_ctl(epfd, 1, served.fileno(), ctypes.c_void_p(bad)), errno.errorcode[ctypes.get_errno()]])

# closefrom() ends what it names, and takes nothing from what comes later; a child says what it saw of the first.
report, told = os.pipe()
if os.fork() == 0:
    served.close()
    answers = []
    attempt(client.recv, 10)
    os.write(told, repr(answers).encode())
    os._exit(0)
os.dup2(report, 0)
numbers = [one.detach() for one in (listener, client, served)]
libc.closefrom(3)
answers.append(os.read(0, 100).decode())
for number in numbers:
    attempt(os.fstat, number)
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname(), 20)
served = listener.accept()[0]
libc.closefrom(400)
client.sendall(b"five")
answers.append([one.fileno() for one in (listener, client, served)] + [served.recv(10).decode()])

datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagram.bind(("127.0.0.1", 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(2):
    sender.sendto(b"%d" % number, datagram.getsockname())
data = [ctypes.create_string_buffer(4) for _ in range(2)]
vectors = [ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(d), 4)) for d in data]
messages = ctypes.create_string_buffer(b"".join(
    struct.pack("PIPNPNi4xI4x", 0, 0, ctypes.addressof(v), 1, 0, 0, 0, 0) for v in vectors))
limit = ctypes.create_string_buffer(struct.pack("ll", 100, 0))
answers.append(libc.recvmmsg(datagram.fileno(), messages, 2, 0, limit))
answers.append([d.value.decode() for d in data])
seconds, _ = struct.unpack("ll", limit.raw[:16])
answers.append(seconds)
print(json.dumps(answers))
"""


def test_they_answer_as_natively(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    answers = {}
    with netns.Namespace() as namespace:
        for mode in ("native", "mw"):
            text = proc.run(namespace.wrap(build.wrap(mode, ["/usr/bin/python3", script])), 60).stdout
            answers[mode] = json.loads(text)
    assert answers["mw"] == answers["native"]
    assert answers["native"][-8:-3] == ["[b'']", "EBADF", "EBADF", "EBADF", [3, 4, 5, "five"]]
    assert answers["native"][-3:] == [2, ["0", "1"], 99]
