"""memcached with Debian's options, four threads."""

import concurrent.futures


def _store(box, number: int) -> bool:
    """One client: stores, reads back, deletes."""
    with box.connect(11211) as connection, connection.makefile("rb") as answers:
        for i in range(50):
            value = f"{number}/{i} ".encode() * (i * 37 + 1)
            connection.sendall(b"set k%d-%d 7 0 %d\r\n%s\r\n" % (number, i, len(value), value))
            if answers.readline() != b"STORED\r\n":
                return False
        for i in range(50):
            value = f"{number}/{i} ".encode() * (i * 37 + 1)
            connection.sendall(b"get k%d-%d\r\n" % (number, i))
            head = b"VALUE k%d-%d 7 %d\r\n" % (number, i, len(value))
            wanted = head + value + b"\r\nEND\r\n"
            if answers.read(len(wanted)) != wanted:
                return False
        connection.sendall(b"delete k%d-0\r\nget k%d-0\r\n" % (number, number))
        return answers.read(len(b"DELETED\r\nEND\r\n")) == b"DELETED\r\nEND\r\n"


def test_memcached(box):
    server = box.start("memcached", ["memcached", "-m", 64, "-p", 11211, "-u", "memcache",
                                     "-l", "127.0.0.1"])
    box.wait_port(11211, server)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert all(pool.map(lambda number: _store(box, number), range(24)))
    version = box.exchange(11211, b"version\r\n", b"\r\n")
    assert version.startswith(b"VERSION 1.")
    stats = box.exchange(11211, b"stats\r\n", b"END\r\n").decode()
    assert "STAT curr_items 1176\r" in stats and "STAT cmd_set 1200\r" in stats
