"""What tests of large transfers share: bodies, certificates, and clients that compare every byte."""

import concurrent.futures
import hashlib
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
sys.path.insert(0, str(PROGRAMS))

import closing  # noqa: E402  (needs the path above)

body = closing.body
LARGE = 3_000_000


def digest(data: bytes) -> tuple:
    """Short enough for a message, and the length tells how much is missing."""
    return len(data), hashlib.md5(data).hexdigest()


def certificate(box) -> None:
    """box.directory/key and box.directory/cert, as nginx wants them, and box.directory/both, as haproxy and stunnel do."""
    box.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-keyout", box.directory / "key", "-out", box.directory / "cert", "-days", 2, "-subj", "/CN=test.invalid"])
    both = (box.directory / "key").read_bytes() + (box.directory / "cert").read_bytes()
    (box.directory / "both").write_bytes(both)


def closing_backend(box, port: int) -> None:
    """A server outside of the channel whose answers end with the connection."""
    server = box.start("backend", ["/usr/bin/python3", PROGRAMS / "closing.py", "0.0.0.0", port], protected=False)
    box.wait_port(port, server)


def fetch(box, url: str, *options) -> tuple:
    """(length, md5) of what curl gets; a curl that fails fails the test."""
    return digest(box.run(["curl", "-sS", "-k", "-m", 60, *options, url]).stdout)


def fetch_many(box, url: str, times: int, at_once: int, *options) -> list:
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda _: fetch(box, url, *options), range(times)))
