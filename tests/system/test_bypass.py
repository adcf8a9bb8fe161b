"""What goes around the C library reaches no network, is reported, and ends its socket and no other."""

import socket

from mwtest import proc

# Answers each connection's first byte: 'm' by the machine's own system call, 'u' by io_uring, 'c' as it should.
# What those say that they wrote, and how the connection then ends, goes to the log.
SMUGGLER = """
import ctypes, mmap, socket, struct

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
SYS_io_uring_setup, SYS_io_uring_enter = 425, 426
OP_WRITE, GETEVENTS, SQES = 23, 1, 0x10000000
TEXT = ctypes.create_string_buffer(b"smuggled")

# mov $SYS_write, %eax; syscall; ret
code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b8010000000f05c3"))
by_machine = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)(
    ctypes.addressof(ctypes.c_char.from_buffer(code)))

def by_uring(fd, text, size):
    parameters = ctypes.create_string_buffer(120)
    ring = libc.syscall(SYS_io_uring_setup, 1, parameters)
    if ring < 0:
        return -ctypes.get_errno()
    _, tail, _, _, _, _, array = struct.unpack_from("<7I", parameters, 40)
    head, _, _, _, _, completions = struct.unpack_from("<6I", parameters, 80)
    queue = mmap.mmap(ring, max(array, completions + 32) + 64)
    with mmap.mmap(ring, 64, offset=SQES) as entries:
        struct.pack_into("<BBHiQQIIQ", entries, 0, OP_WRITE, 0, 0, fd, 2**64 - 1, ctypes.addressof(text), size, 0, 1)
        struct.pack_into("<I", queue, array, 0)
        struct.pack_into("<I", queue, tail, 1)
        libc.syscall(SYS_io_uring_enter, ring, 1, 1, GETEVENTS, None, ctypes.c_long(0))
    return struct.unpack_from("<i", queue, completions + 8)[0]

listener = socket.create_server(("", 80))
while True:
    peer, _ = listener.accept()
    peer.settimeout(20)
    how = peer.recv(1)
    if how == b"c":
        peer.sendall(b"honestly")
    else:
        written = (by_machine if how == b"m" else by_uring)(peer.fileno(), TEXT, 8)
        try:
            end = peer.recv(1)
        except OSError as error:
            end = type(error).__name__
        print(f"{how.decode()} {written} {end}\\n", end="", flush=True)  # at once, others write there too
    peer.close()
"""


def test_bytes_around_the_c_library_reach_nobody_and_are_reported(unchanged, start, free_port, tmp_path):
    script = tmp_path / "smuggler.py"
    script.write_text(SMUGGLER)
    session = start("-p", f"{free_port}:80", "--", "/usr/bin/python3", str(script))

    def ask(how: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", free_port), 20) as connection:
            connection.sendall(how)
            said = b""
            try:
                while more := connection.recv(100):
                    said += more
            except ConnectionResetError:
                said += b" reset"
            return said

    def honest() -> bool:
        try:
            return ask(b"c") == b"honestly"
        except ConnectionRefusedError:
            return False

    proc.wait_for(honest, 20, "the server", session.background)
    for how in (b"m", b"u"):
        assert ask(how) == b" reset"
        assert ask(b"c") == b"honestly", "another connection of the same process"
    said = proc.wait_for(lambda: text if (text := session.background.tail(100)).count("bypass: ") == 2 else "", 20,
                         "both reports", session.background)
    for how in "mu":
        assert f"{how} 8 ConnectionResetError" in said, said
    assert said.count("python3[") == 2, said
