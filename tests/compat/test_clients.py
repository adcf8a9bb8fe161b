"""Client programs under protection against plain servers."""

import hashlib
import re

import pytest

import webserver

SIZE = 320000
BODY = hashlib.sha256(str(SIZE).encode()).digest() * (SIZE // 32)
URL = "http://127.0.0.1:9000"


@pytest.fixture
def backend(box):
    server = box.start("backend", ["/usr/bin/python3", webserver.BACKEND, 9000], protected=False)
    box.wait_port(9000, server)
    return box


@pytest.fixture
def web(box):
    (box.directory / "nginx.conf").write_text(
        f"pid {box.directory}/pid; events {{}} http {{ access_log off; server {{ "
        f"listen 127.0.0.1:8080; listen [::1]:8080; root /var/www/html; }} }}")
    server = box.start("nginx", ["nginx", "-c", box.directory / "nginx.conf", "-e", "stderr",
                                 "-g", "daemon off;"], protected=False)
    box.wait_port(8080, server)
    return box


def test_curl(backend):
    box = backend
    assert box.run(["curl", "-sS", f"{URL}/{SIZE}"], protected=True).stdout == BODY
    many = box.run(["curl", "-sS", "-Z", "--parallel-max", 8] + [f"{URL}/3200"] * 20, protected=True)
    assert len(many.stdout) == 20 * 3200
    (box.directory / "body").write_bytes(BODY)
    posted = box.run(["curl", "-sS", "--data-binary", f"@{box.directory}/body", f"{URL}/"],
                     protected=True)
    assert posted.stdout.decode() == hashlib.sha256(BODY).hexdigest()
    refused = box.run(["curl", "-sS", "http://127.0.0.1:9/"], protected=True, check=False)
    assert refused.returncode == 7, "curl: could not connect"


def test_curl_localhost(web):
    """A name with two addresses: both families are tried."""
    answer = web.run(["curl", "-sS", "http://localhost:8080/"], protected=True)
    assert answer.stdout == webserver.PAGE.read_bytes()
    six = web.run(["curl", "-sS", "-6", "http://localhost:8080/"], protected=True)
    assert six.stdout == answer.stdout


def test_wget(backend):
    box = backend
    box.run(["wget", "-q", "-O", box.directory / "got", f"{URL}/{SIZE}"], protected=True)
    assert (box.directory / "got").read_bytes() == BODY


@pytest.mark.parametrize("clients", [1, 10, 100])
def test_ab(web, clients):
    text = web.run(["ab", "-q", "-n", 1000, "-c", clients, "http://127.0.0.1:8080/"],
                   protected=True).stdout.decode()
    assert re.search(r"Complete requests:\s+1000\n", text), text
    assert re.search(r"Failed requests:\s+0\n", text), text
    assert f"Document Length:        {webserver.PAGE.stat().st_size} bytes" in text


def test_wrk(web):
    text = web.run(["wrk", "-t", 2, "-c", 32, "-d", 1, "http://127.0.0.1:8080/"],
                   protected=True).stdout.decode()
    assert int(re.search(r"(\d+) requests in", text)[1]) > 100, text
    assert "Socket errors" not in text and "Non-2xx" not in text, text


def test_redis_benchmark(box):
    server = box.start("redis", ["redis-server", "--save", "", "--port", 6379], protected=False)
    box.wait_port(6379, server)
    text = box.run(["redis-benchmark", "--csv", "-t", "set,get,lpush", "-n", 5000, "-c", 50],
                   protected=True).stdout.decode()
    assert [line.split(",")[0] for line in text.splitlines()[1:]] == ['"SET"', '"GET"', '"LPUSH"']
    stats = box.exchange(6379, b"INFO commandstats\r\n", b"\r\n\r\n").decode()
    assert "cmdstat_get:calls=5000" in stats and "cmdstat_set:calls=5000" in stats


@pytest.mark.parametrize("protect", ["client", "server"])
def test_openssl(box, protect):
    """TLS both ways: s_server answers a request, s_client verifies and prints it."""
    box.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-keyout", box.directory / "key", "-out", box.directory / "cert",
             "-days", 2, "-subj", "/CN=test.invalid"])
    (box.directory / "hello.txt").write_bytes(b"over TLS\n" * 5000)
    server = box.start("s_server", ["openssl", "s_server", "-accept", 4433, "-quiet", "-WWW",
                                    "-key", box.directory / "key", "-cert", box.directory / "cert"],
                       protected=protect == "server")
    box.wait_port(4433, server)
    client = ["openssl", "s_client", "-connect", "127.0.0.1:4433", "-quiet", "-verify_return_error",
              "-CAfile", box.directory / "cert"]
    script = ["sh", "-c", 'printf "GET /hello.txt HTTP/1.0\\r\\n\\r\\n" | "$@"', "sh", *client]
    answer = box.run(script, protected=protect == "client").stdout
    assert answer.partition(b"\r\n\r\n")[2] == b"over TLS\n" * 5000
