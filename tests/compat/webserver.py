"""What every web server must serve right, whichever it is."""

import concurrent.futures
import http.client
import re
from pathlib import Path

PAGE = Path("/var/www/html/index.html")
# Answers with as many bytes as its path says: behind proxies, and for clients.
BACKEND = Path(__file__).parent / "programs" / "backend.py"


def check_document(box, port: int, path: str, file: Path) -> None:
    """The same bytes as the file's, over IPv4 and IPv6."""
    wanted = file.read_bytes()
    for host in ("127.0.0.1", "::1"):
        status, body = box.get(path, port, host)
        assert status == 200, f"{host}: status {status}"
        assert body == wanted, f"{host}: {len(body)} bytes differ from the file's {len(wanted)}"


def check_missing(box, port: int) -> None:
    assert box.get("/no-such-page", port)[0] == 404


def check_keep_alive(box, port: int, path: str, wanted: bytes, requests: int = 50) -> None:
    """Many requests on one connection."""
    with box.namespace.entered():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(requests):
            connection.request("GET", path)
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, wanted)
        connection.close()


def check_parallel(box, port: int, path: str, wanted: bytes, clients: int = 16) -> None:
    """Many connections at once."""
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda _: box.get(path, port), range(clients * 8)))
    assert all(answer == (200, wanted) for answer in answers)


def load(box, port: int, requests: int, clients: int, path: str = "/", keep_alive: bool = False):
    """ApacheBench without protection; returns (complete, failed)."""
    flags = ["-k"] if keep_alive else []
    text = box.run(["ab", "-q", *flags, "-n", requests, "-c", clients,
                    f"http://127.0.0.1:{port}{path}"], seconds=180).stdout.decode()
    complete = int(re.search(r"Complete requests:\s+(\d+)", text)[1])
    failed = int(re.search(r"Failed requests:\s+(\d+)", text)[1])
    assert "Non-2xx" not in text, text
    return complete, failed
