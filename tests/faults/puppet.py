"""An ordinary program that a test moves: it evaluates what comes over a Unix socket.

usage: puppet.py PATH
"""

import errno
import json
import os
import resource
import socket
import sys
import threading

held = []


def take(count: int, family: str = "AF_INET", kind: str = "SOCK_STREAM") -> list:
    """Makes sockets and keeps them; [how many, errno's name or None]."""
    for made in range(count):
        try:
            held.append(socket.socket(getattr(socket, family), getattr(socket, kind)))
        except OSError as error:
            return [made, errno.errorcode[error.errno]]
    return [count, None]


def drop() -> int:
    """Closes what take() made."""
    count = len(held)
    while held:
        held.pop().close()
    return count


def echo(port: int) -> int:
    """Serves an echo on a thread."""
    listener = socket.create_server(("0.0.0.0", port), backlog=64)

    def serve_one(connection) -> None:
        with connection:
            while data := connection.recv(1000):
                connection.sendall(data)

    def serve() -> None:
        while True:
            threading.Thread(target=serve_one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def in_child(function, *arguments) -> object:
    """Calls it in a forked process and returns its result."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, json.dumps(function(*arguments)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def limit_files(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def main() -> None:
    control = socket.socket(socket.AF_UNIX)
    control.bind(sys.argv[1])
    control.listen()
    while True:
        connection = control.accept()[0]
        with connection, connection.makefile("rw") as stream:
            expression = stream.readline()
            stream.write(json.dumps(eval(expression)))  # the test's own words
            stream.flush()


if __name__ == "__main__":
    main()
