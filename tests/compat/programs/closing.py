"""closing.py ADDRESS PORT - an HTTP/1.0 server whose answers end with the connection: /N has N bytes, no length."""

import hashlib
import socket
import sys
import threading


def body(count: int) -> bytes:
    """Bytes in which a missing or repeated part shows."""
    blocks = (hashlib.sha256(b"%d" % i).digest() for i in range(count // 32 + 1))
    return b"".join(blocks)[:count]


BODIES = {}


def serve(connection: socket.socket) -> None:
    with connection, connection.makefile("rb") as request:
        words = request.readline().split()
        if not words:
            return  # only a look whether the port accepts
        count = int(words[1].strip(b"/"))
        while request.readline().strip():
            pass
        if count not in BODIES:
            BODIES[count] = body(count)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n" + BODIES[count])


def main() -> None:
    with socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
