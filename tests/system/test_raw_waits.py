"""syscall(SYS_ppoll) and its kin: the kernel's own conventions, whether protected sockets are in the set or not."""

import json

from mwtest import build, netns, proc

PROGRAM = """
import ctypes, errno, json, os, signal, socket, struct, time

libc = ctypes.CDLL(None, use_errno=True)
POLL, SELECT, PSELECT6, PPOLL, EPOLL_PWAIT, EPOLL_PWAIT2, RECVMMSG, SENDMMSG = 7, 23, 270, 271, 281, 441, 299, 307
BAD, HUGE = 16, 1 << 60
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname(), 20)
served = listener.accept()[0]
pipe = os.pipe()
answers = []
libc.mmap.restype = ctypes.c_void_p
read_only = libc.mmap(None, ctypes.c_size_t(4096), 3, 0x22, -1, ctypes.c_long(0))
ctypes.memmove(read_only, struct.pack("ll", 100, 0), 16)
libc.mprotect(ctypes.c_void_p(read_only), 4096, 1)

def raw(number, *words):
    ctypes.set_errno(0)
    words = [ctypes.c_long(w) if isinstance(w, int) else w for w in words]
    result = libc.syscall(ctypes.c_long(number), *words)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]

class Limit:
    def __init__(self, seconds, part=0):
        self.given = (seconds, part)
        self.room = ctypes.create_string_buffer(struct.pack("ll", seconds, part))
    def left(self):
        left = struct.unpack("ll", self.room.raw[:16])
        if left == self.given:
            return "untouched"
        return "nothing" if left == (0, 0) else "more" if left > self.given else self.given[0] - left[0] < 15

mask = ctypes.create_string_buffer(struct.pack("Q", 1 << signal.SIGUSR1 - 1), 128)
def pair(address, size):
    return ctypes.create_string_buffer(struct.pack("PN", address, size))

def ppoll(fds, limit, mask=None, size=8):
    array = ctypes.create_string_buffer(b"".join(struct.pack("ihh", fd, 1, 0) for fd in fds))
    return raw(PPOLL, array, len(fds), limit, mask, size)

def bits(fds):
    words = bytearray(128)
    for fd in fds:
        words[fd // 8] |= 1 << fd % 8
    return ctypes.create_string_buffer(bytes(words), 128)

def select(fds, limit):
    return raw(SELECT, max(fds) + 1, bits(fds), None, None, limit)

def pselect6(fds, limit, given=None):
    return raw(PSELECT6, max(fds) + 1, bits(fds), None, None, limit, given)

def told(call, fds, seconds, part=0, *more):
    limit = Limit(seconds, part)
    answers.append([call.__name__, call(fds, limit.room, *more), limit.left()])

for fds in ([pipe[0]], [served.fileno()], [pipe[0], served.fileno()]):
    for call, unit in ((ppoll, 1000000), (select, 1000), (pselect6, 1000000)):
        told(call, fds, 0, 20 * unit)      # the time goes by
        told(call, fds, 0)
        told(call, fds, 0, -1)
        told(call, fds, -1, 5)
        told(call, fds, -1, 1000 * unit * 2)
        told(call, fds, 5, 1000 * unit * 2 if call is not select else -unit)
        answers.append(call(fds, BAD))
        client.sendall(b"x")
        os.write(pipe[1], b"x")
        served.recv(1, socket.MSG_PEEK)
        told(call, fds, 100)
        told(call, fds, HUGE)
        told(call, fds, 0)
        answers.append(call(fds, read_only))
        answers.append(call(fds, None))
        answers.append([served.recv(10).decode(), os.read(pipe[0], 10).decode()])
    told(select, fds, 0, 20000)
    for address, size in ((mask, 8), (mask, 128), (mask, 0), (BAD, 8), (None, 128), (BAD, 4)):
        told(ppoll, fds, 0, 1000, address, size)
        told(pselect6, fds, 0, 1000, pair(ctypes.addressof(mask) if address is mask else address or 0, size))
    told(pselect6, fds, 0, 1000, BAD)
    told(ppoll, fds, 0, -1, BAD, 5)
    answers.append(raw(POLL, BAD, 1, 0))
    answers.append(raw(PPOLL, BAD, 1, None, None, 0))
    answers.append(raw(SELECT, 5, BAD, None, None, None))
    answers.append(raw(PSELECT6, 5, None, BAD, None, None, None))
    answers.append(raw(PSELECT6, -1, None, None, None, None, None))

    epfd = libc.epoll_create1(0)
    for fd in fds:
        libc.epoll_ctl(epfd, 1, fd, struct.pack("=IQ", 1, fd))
    room = ctypes.create_string_buffer(120)
    for address, size in ((None, 0), (None, 77), (mask, 8), (mask, 128), (mask, 0), (BAD, 8), (BAD, 4)):
        answers.append(raw(EPOLL_PWAIT, epfd, room, 10, 1, address, size))
        answers.append(raw(EPOLL_PWAIT2, epfd, room, 10, Limit(0, 1000).room, address, size))
    limit = Limit(0, 1000000)
    answers.append([raw(EPOLL_PWAIT2, epfd, room, 10, limit.room, None, 0), limit.left()])
    for bad in (BAD, Limit(0, -1).room, Limit(-1, 0).room, Limit(1, 1000000000).room):
        answers.append(raw(EPOLL_PWAIT2, epfd, room, 10, bad, BAD, 4))
    answers.append(raw(EPOLL_PWAIT, epfd, room, 0, 1, None, 0))
    os.close(epfd)

# Many messages at once.
datagrams = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
datagrams[1].bind(("127.0.0.1", 0))
datagrams[0].connect(datagrams[1].getsockname())
byte = ctypes.create_string_buffer(1)
vector = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(byte), 1))
messages = ctypes.create_string_buffer(
    struct.pack("PIPNPNi4xI4x", 0, 0, ctypes.addressof(vector), 1, 0, 0, 0, 0) * 2000)
for number in (1024, 1025, 2000, 0xffffffff):
    for one in (datagrams[0], client):
        answers.append(raw(SENDMMSG, one.fileno(), messages, number, 0))
        answers.append(libc.sendmmsg(one.fileno(), messages, ctypes.c_uint(number), 0))
limit = Limit(100)
answers.append([raw(RECVMMSG, datagrams[1].fileno(), messages, 2, 0, limit.room), limit.left()])
limit = Limit(0)
answers.append([raw(RECVMMSG, datagrams[1].fileno(), messages, 2, 0, limit.room), limit.left()])
for bad in (BAD, Limit(0, -1).room, Limit(0, 1000000000).room):
    answers.append(raw(RECVMMSG, datagrams[1].fileno(), messages, 2, 0, bad))
# What was received before a failure is told first, and the failure by the next call.
served.close()
client.settimeout(20)
gone, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
gone.bind(("127.0.0.1", 0))
other.bind(("127.0.0.1", 0))
other.connect(gone.getsockname())
gone.connect(other.getsockname())
gone.send(b"x")
gone.close()
other.send(b"x")
deadline = time.monotonic() + 20
while libc.poll(struct.pack("ihh", other.fileno(), 8, 0), 1, 100) == 0 and time.monotonic() < deadline:
    pass
answers.append(raw(RECVMMSG, other.fileno(), messages, 2, socket.MSG_DONTWAIT, None))
answers.append(raw(RECVMMSG, other.fileno(), messages, 2, socket.MSG_DONTWAIT, None))
print(json.dumps(answers))
"""


def test_they_are_the_kernels(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    answers = {}
    with netns.Namespace() as namespace:
        for mode in ("native", "mw"):
            text = proc.run(namespace.wrap(build.wrap(mode, ["/usr/bin/python3", script])), 60).stdout
            answers[mode] = json.loads(text)
    assert answers["mw"] == answers["native"]
    assert answers["native"][:2] == [["ppoll", 0, "nothing"], ["ppoll", 0, "untouched"]]
    assert answers["native"][6] == "EFAULT"
    assert 1024 in answers["native"]
    assert 1025 not in answers["native"]
