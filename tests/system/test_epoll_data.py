"""What a program has registered in an epoll instance is not for other users' processes of its session to change."""

import json

import pytest

from mwtest import proc

# The parent, root, waits with pointers as its data; a child that has become another user looks for them in all memory
# that it shares with anybody, and for the descriptors beside them, and changes what it finds.
PROGRAM = """
import ctypes, json, os, select, socket, struct, sys

made_first, oneshot = sys.argv[1] == "before", sys.argv[2] == "oneshot"
libc = ctypes.CDLL(None, use_errno=True)
CTL_ADD, CTL_MOD = 1, 3
SECRET, OTHER = 0x7F12345678900000, 0x0000DEADBEEFCAFE
MOST = 64 << 20

class Event(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("events", ctypes.c_uint32), ("data", ctypes.c_uint64)]

def control(instance, op, fd, data):
    events = select.EPOLLIN | (select.EPOLLONESHOT if oneshot else 0)
    assert libc.epoll_ctl(instance, op, fd, ctypes.byref(Event(events, data))) == 0, ctypes.get_errno()

def wait(instance):
    room = (Event * 16)()
    n = libc.epoll_wait(instance, room, 16, 1000)
    return sorted(hex(one.data) for one in room[:n])

def rewrite():
    changed = 0
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "r+b", buffering=0) as memory:
        for line in maps.read().splitlines():
            place, rights = line.split()[:2]
            if rights != "rw-s":
                continue
            at, end = (int(part, 16) for part in place.split("-"))
            memory.seek(at)
            text = memory.read(min(end - at, MOST))
            for k in range(4):
                found = text.find(struct.pack("<Q", SECRET + k))
                while found >= 0:
                    memory.seek(at + found)
                    memory.write(struct.pack("<Q", OTHER))
                    changed += 1
                    found = text.find(struct.pack("<Q", SECRET + k), found + 8)
    return changed

listener = socket.create_server(("127.0.0.1", 0))
ends = []
for _ in range(4):
    near = socket.create_connection(listener.getsockname())
    far = listener.accept()[0]
    far.sendall(b"x")
    ends += [near, far]

def register():
    instance = select.epoll()
    for k, near in enumerate(ends[::2]):
        control(instance.fileno(), CTL_ADD, near.fileno(), SECRET + k)
    return instance

instance = register() if made_first else None
told, tell = os.pipe()
go, gone = os.pipe()
child = os.fork()
if child == 0:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: its own memory is its own again
    socket.socket().close()
    os.read(go, 1)
    os.write(tell, json.dumps(rewrite()).encode())
    os._exit(0)
if instance is None:
    instance = register()
os.write(gone, b"x")
changed = json.loads(os.read(told, 100))
os.waitpid(child, 0)
first = wait(instance.fileno())
if oneshot:
    assert wait(instance.fileno()) == []
for k, near in enumerate(ends[::2]):
    control(instance.fileno(), CTL_MOD, near.fileno(), SECRET + 16 + k)
print(json.dumps([changed, first, wait(instance.fileno())]))
"""


@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize("style", ["level", "oneshot"])
def test_another_user_cannot_change_the_data(mw, unchanged, made, style):
    done = proc.run([mw, "run", "--net", "host", "--", "/usr/bin/python3", "-c", PROGRAM, made, style], 120)
    changed, first, second = json.loads(done.stdout)
    secret = 0x7F12345678900000
    assert first == [hex(secret + k) for k in range(4)]
    assert second == [hex(secret + 16 + k) for k in range(4)]
    assert changed == 0, "and there is nothing to be found"
