"""redis-server with Debian's configuration in the foreground; persistence while under load."""

import concurrent.futures
import re
import signal
from pathlib import Path

from mwtest.proc import wait_for

PORT = 6379


def encode(*words) -> bytes:
    parts = [f"*{len(words)}\r\n".encode()]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


class Client:
    """Just enough of the Redis protocol."""

    def __init__(self, box) -> None:
        self._socket = box.connect(PORT)
        self._file = self._socket.makefile("rb")

    def __call__(self, *words):
        self._socket.sendall(encode(*words))
        return self.answer()

    def pipeline(self, commands: list) -> list:
        self._socket.sendall(b"".join(encode(*one) for one in commands))
        return [self.answer() for _ in commands]

    def answer(self):
        line = self._file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            length = int(rest)
            return None if length < 0 else self._file.read(length + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        if kind == b":":
            return int(rest)
        if kind == b"-":
            raise AssertionError(rest.decode())
        assert kind == b"+", f"the connection ended: {line!r}"
        return rest

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def _start(box):
    text = Path("/etc/redis/redis.conf").read_text()
    for key, value in (("daemonize", "no"), ("pidfile", f"{box.directory}/pid"),
                       ("logfile", '""'), ("dir", str(box.directory))):
        text = re.sub(rf"^{key} .*$", f"{key} {value}", text, flags=re.M)
    (box.directory / "redis.conf").write_text(text)
    server = box.start("redis", ["redis-server", box.directory / "redis.conf"])
    box.wait_port(PORT, server)
    return server


def test_keys_and_values(box):
    _start(box)
    redis = Client(box)
    assert redis("PING") == b"PONG"
    big = bytes(range(256)) * 20000
    assert redis("SET", "big", big) == b"OK"
    assert redis("GET", "big") == big
    assert redis.pipeline([("INCR", "n")] * 1000) == list(range(1, 1001))
    assert redis("RPUSH", "list", *range(500)) == 500
    assert redis("LRANGE", "list", 0, -1) == [str(i).encode() for i in range(500)]
    other = Client(box)
    assert other("SUBSCRIBE", "news") == [b"subscribe", b"news", 1]
    assert redis("PUBLISH", "news", "hello") == 1
    assert other.answer() == [b"message", b"news", b"hello"]
    assert re.search(rb"addr=127\.0\.0\.1:\d+ laddr=127\.0\.0\.1:6379", redis("CLIENT", "LIST"))
    redis.close()
    other.close()


def test_save_under_load(box):
    server = _start(box)
    redis = Client(box)
    redis.pipeline([("SET", f"key:{i}", f"value {i} " * 20) for i in range(20000)])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        load = pool.submit(box.run, ["redis-benchmark", "-q", "-t", "set,get", "-n", 60000, "-c", 20])
        saves = 0
        while not load.done() or saves == 0:
            assert redis("BGSAVE").startswith(b"Background saving")
            wait_for(lambda: b"rdb_bgsave_in_progress:0" in redis("INFO", "persistence"), 120, "BGSAVE",
                     server)
            assert b"rdb_last_bgsave_status:ok" in redis("INFO", "persistence")
            saves += 1
        load.result()
    count = redis("DBSIZE")
    redis.close()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)
    box.run(["redis-check-rdb", box.directory / "dump.rdb"])

    _start(box)
    redis = Client(box)
    assert redis("DBSIZE") == count
    values = redis.pipeline([("GET", f"key:{i}") for i in range(20000)])
    assert values == [(f"value {i} " * 20).encode() for i in range(20000)]
    redis.close()
