"""An application that breaks the channel's protocol has no INS started for it without end."""

import mmap
import socket
import struct

from mwtest import proc

# An application that is hostile to its INS: it opens a socket, claims to have sent more than fits, and asks for
# something, again and again, until it is told that there is no network any more.
HOSTILE = """
import ctypes, errno, socket, struct, time

# A fresh slot of abi/mw_slot.h: both of the PVM's indexes at their start, and 64 bytes on both of the INS's, state open.
INDEXES = struct.pack("<II", 0xfffff000, 0xfffff000)
LINE = 64

def fresh_slots():
    for line in open("/proc/self/maps"):
        if "/memfd:mw-channel " not in line:
            continue
        start, end = [int(word, 16) for word in line.split()[0].split("-")]
        memory = ctypes.string_at(start, end - start)
        at = memory.find(INDEXES)
        while at >= 0:
            if memory[at + LINE:at + LINE + 12] == INDEXES + struct.pack("<I", 1):
                yield start + at
            at = memory.find(INDEXES, at + LINE)

rounds = 0
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    began = time.monotonic()
    try:
        one = socket.socket()
        for slot in fresh_slots():
            ctypes.c_uint32.from_address(slot).value = 0x10000000
        rounds += 1
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except OSError as error:
        # While another INS is awaited a call waits for it, two seconds; when none will come it does not.
        if error.errno == errno.ENETDOWN and time.monotonic() - began < 1:
            break
else:
    raise SystemExit("it was served for ever")
print(rounds)
"""


def test_a_hostile_application_loses_its_network_and_no_more(mw, unchanged, tmp_path):
    script = tmp_path / "hostile.py"
    script.write_text(HOSTILE)
    done = proc.run([mw, "run", "--", "/usr/bin/python3", str(script)], 120, check=False)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert said.count("broke the protocol:") >= 5, said
    assert said.count("no other is started") == 1, said
    assert "INS 5 up" in said and "INS 6 up" not in said, said


# Looks at its connection all the time, and says what it sees.
WATCHFUL = """
import socket, time
listener = socket.create_server(("", 80))
while True:
    peer, _ = listener.accept()
    peer.setblocking(False)
    peer.sendall(b"hello")
    try:
        while True:
            try:
                if not peer.recv(100):
                    break
            except BlockingIOError:
                time.sleep(0.01)
    except ConnectionResetError:
        print("reset", flush=True)
    peer.close()
"""
CONNECTED = 5  # MW_ST_OPEN | MW_ST_CONNECTED


def claim_bytes(driver: int) -> int:
    """Writes into the region what a hostile INS might: more bytes received than a ring holds. Gives the number of slots."""
    with open(f"/proc/{driver}/cmdline", "rb") as file:
        words = file.read().split(b"\0")
    channel = int(words[words.index(b"--channel-fd") + 1])
    with open(f"/proc/{driver}/fd/{channel}", "r+b") as file, mmap.mmap(file.fileno(), 48 << 20) as memory:
        found = 0
        for at in range(0, len(memory), 128):
            if at % 4096 == 0 and at and not any(memory[at:at + 4096]):
                continue
            _, _, state, gen = struct.unpack_from("<IIII", memory, at + 64)
            if state == CONNECTED and gen and struct.unpack_from("<I", memory, at + 4)[0] == 0xfffff000:
                struct.pack_into("<I", memory, at + 64, 0x10000000)
                found += 1
        return found


def hello(port: int):
    """A connection on which the server has said hello, or nothing."""
    connection = socket.socket()
    connection.settimeout(3)
    try:
        connection.connect(("127.0.0.1", port))
        if connection.recv(5) == b"hello":
            return connection
    except OSError:
        pass
    connection.close()
    return None


def test_a_hostile_ins_is_replaced_and_the_application_goes_on(mw, unchanged, start, free_port, tmp_path):
    script = tmp_path / "watchful.py"
    script.write_text(WATCHFUL)
    session = start("-p", f"{free_port}:80", "--", "/usr/bin/python3", str(script))
    connection = proc.wait_for(lambda: hello(free_port), 20, "hello", session.background)
    for _ in range(2):
        ins = session.pid("ins")
        assert claim_bytes(session.pid("driver")) == 1
        proc.wait_for(lambda: session.pid("ins") not in (0, ins), 20, "another INS", session.background)
        connection.close()
        connection = proc.wait_for(lambda: hello(free_port), 20, "hello again", session.background)
    said = session.background.tail(100)
    assert said.count("broke the channel protocol") == 2 and said.count("says python3[") == 2, said
    assert said.count("reset") >= 2
    connection.close()
