"""The most used servers in their default form: an isolated INS, published ports, asked from elsewhere.

tests/compat says more about each of them, on its caller's network.
"""

import os
import pwd
import re
from pathlib import Path

import pytest

from mwtest import build, proc

PUBLISHED = 18081
PAGE = Path("/var/www/html/index.html")
NODE_PROGRAM = build.ROOT / "tests/compat/programs/server.js"
HAPROXY = """
frontend web
    bind :::8080 v4v6
    http-request return status 200 content-type text/plain string "haproxy says hello"
"""
MEMCACHED_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 60) as connection, connection.makefile("rb") as answers:
    connection.sendall(b"set key 7 0 5\\r\\nvalue\\r\\nget key\\r\\nquit\\r\\n")
    sys.stdout.buffer.write(answers.read())
"""


@pytest.fixture
def folder(tmp_path):
    """Servers give up root and must still come in here."""
    for one in (tmp_path, *tmp_path.parents):
        if one == Path("/tmp"):
            break
        one.chmod(one.stat().st_mode | 0o755)
    return tmp_path


def serve(start, visitor, port: int, *command):
    """Starts it and waits until it accepts what comes from elsewhere."""
    session = start("-p", f"{PUBLISHED}:{port}", "--", *command)
    # Without data, so that the server does not count it as a client that misbehaves.
    probe = ("import socket, sys\n"
             "try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()\n"
             "except OSError: sys.exit(1)")
    words = ["/usr/bin/python3", "-c", probe, visitor.HOST4, PUBLISHED]
    proc.wait_for(lambda: visitor.run(*words, check=False).returncode == 0, 120, "it serves",
                  session.background)
    return session


def fetches_pages(visitor, page: bytes) -> None:
    for host in (visitor.HOST4, f"[{visitor.HOST6}]"):
        assert visitor.curl(f"http://{host}:{PUBLISHED}/").stdout == page
    text = visitor.run("ab", "-q", "-n", 500, "-c", 20,
                       f"http://{visitor.HOST4}:{PUBLISHED}/").stdout.decode()
    assert re.search(r"Complete requests:\s+500\n", text) and re.search(r"Failed requests:\s+0\n", text), text


def test_apache(unchanged, visitor, start, folder):
    for name in ("run", "lock", "log"):
        (folder / name).mkdir(mode=0o777)
    serve(start, visitor, 80, "env", "APACHE_RUN_USER=www-data", "APACHE_RUN_GROUP=www-data",
          f"APACHE_PID_FILE={folder}/run/pid", f"APACHE_RUN_DIR={folder}/run", "LANG=C",
          f"APACHE_LOCK_DIR={folder}/lock", f"APACHE_LOG_DIR={folder}/log", "apache2", "-DFOREGROUND")
    fetches_pages(visitor, PAGE.read_bytes())
    log = (folder / "log/access.log").read_text()
    assert f"{visitor.OWN4} - - " in log and f"{visitor.OWN6} - - " in log, "the true addresses are logged"


def test_nginx(unchanged, visitor, start, folder):
    text = Path("/etc/nginx/nginx.conf").read_text()
    text = text.replace("/run/nginx.pid", f"{folder}/pid").replace("/var/log/nginx/", f"{folder}/")
    (folder / "nginx.conf").write_text(text)
    serve(start, visitor, 80, "nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"),
          "-g", "daemon off;")
    index = re.search(r"^\s*index ([^;]*);", Path("/etc/nginx/sites-enabled/default").read_text(), re.M)
    names = [Path("/var/www/html") / name for name in index[1].split()]
    fetches_pages(visitor, next(name for name in names if name.exists()).read_bytes())
    assert f"{visitor.OWN4} - - " in (folder / "access.log").read_text()


def test_redis(unchanged, visitor, start, folder):
    os.chmod(folder, 0o777)
    serve(start, visitor, 6379, "redis-server", "--bind", "0.0.0.0 -::", "--protected-mode", "no",
          "--save", "", "--dir", str(folder))
    client = ["redis-cli", "-h", visitor.HOST4, "-p", PUBLISHED]
    assert visitor.run(*client, "set", "key", "value").stdout == b"OK\n"
    assert visitor.run(*client, "get", "key").stdout == b"value\n"
    assert f"addr={visitor.OWN4}:".encode() in visitor.run(*client, "client", "list").stdout
    text = visitor.run("redis-benchmark", "-h", visitor.HOST4, "-p", PUBLISHED, "--csv", "-t", "set,get",
                       "-n", 2000, "-c", 20).stdout.decode()
    assert [line.split(",")[0] for line in text.splitlines()[1:]] == ['"SET"', '"GET"']
    assert b"cmdstat_get:calls=2001" in visitor.run(*client, "info", "commandstats").stdout


def test_sshd(unchanged, visitor, start, folder):
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # what Debian's service unit makes
    for key in ("host", "user"):
        proc.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], 60)
    (folder / "user.pub").rename(folder / "authorized")
    serve(start, visitor, 22, "/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/sshd_config",
          "-o", f"PidFile={folder}/pid", "-o", f"HostKey={folder}/host", "-o", "StrictModes=no",
          "-o", f"AuthorizedKeysFile={folder}/authorized")
    (folder / "known").write_text(f"[{visitor.HOST4}]:{PUBLISHED} {(folder / 'host.pub').read_text()}")
    ssh = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o",
           f"UserKnownHostsFile={folder}/known", "-o", "IdentitiesOnly=yes", "-i", folder / "user", "-p", PUBLISHED,
           f"root@{visitor.HOST4}"]
    assert visitor.run(*ssh, "echo $SSH_CONNECTION").stdout.split()[0] == visitor.OWN4.encode()
    assert visitor.run(*ssh, "exit 7", check=False).returncode == 7
    numbers = "".join(f"{n}\n" for n in range(1, 20001)).encode()
    assert visitor.run(*ssh, "seq 1 20000").stdout == numbers


# Each prepares a folder and gives the port, the command, and what a visitor asks and hears.

def _haproxy(folder: Path) -> tuple:
    text = Path("/etc/haproxy/haproxy.cfg").read_text().replace("/run/haproxy/admin.sock", f"{folder}/admin.sock")
    (folder / "haproxy.cfg").write_text(text + HAPROXY)
    return 8080, ["haproxy", "-W", "-db", "-f", folder / "haproxy.cfg"], ["curl", "-sS", "URL/"], b"haproxy says hello"


def _lighttpd(folder: Path) -> tuple:
    text = Path("/etc/lighttpd/lighttpd.conf").read_text()
    text = re.sub(r'(server\.pid-file\s*=) .*', rf'\1 "{folder}/pid"', text)
    text = re.sub(r'(server\.errorlog\s*=) .*', rf'\1 "{folder}/error.log"', text)
    (folder / "lighttpd.conf").write_text(text)
    (folder / "error.log").touch()
    (folder / "error.log").chmod(0o666)
    return 80, ["lighttpd", "-D", "-f", folder / "lighttpd.conf"], ["curl", "-sS", "URL/"], PAGE.read_bytes()


def _memcached(_: Path) -> tuple:
    asks = ["/usr/bin/python3", "-c", MEMCACHED_CLIENT, "HOST", "PORT"]
    return (11211, ["memcached", "-m", "64", "-p", "11211", "-u", "memcache", "-l", "0.0.0.0"], asks,
            b"STORED\r\nVALUE key 7 5\r\nvalue\r\nEND\r\n")


def _postgresql(folder: Path) -> tuple:
    user = pwd.getpwnam("postgres")
    for name in ("data", "socket"):
        (folder / name).mkdir()
        os.chown(folder / name, user.pw_uid, user.pw_gid)
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    proc.run([*as_postgres, programs / "initdb", "-D", folder / "data", "-A", "trust", "--no-sync"], 120)
    with open(folder / "data/pg_hba.conf", "a") as file:
        file.write("host all all 198.18.254.0/24 trust\n")
    return (5432, [*as_postgres, programs / "postgres", "-D", folder / "data", "-c", "listen_addresses=*",
                   "-c", f"unix_socket_directories={folder}/socket"],
            ["psql", "-h", "HOST", "-p", "PORT", "-U", "postgres", "-d", "postgres", "-qAtX", "-c",
             "select 6 * 7, inet_client_addr()"], b"42|198.18.254.2\n")


def _node(_: Path) -> tuple:
    return 8000, ["/usr/bin/node", NODE_PROGRAM, "8000"], ["curl", "-sS", "URL/page"], b"node says hello"


@pytest.mark.parametrize("prepare", [_haproxy, _lighttpd, _memcached, _postgresql, _node],
                         ids=lambda prepare: prepare.__name__[1:])
def test_others(unchanged, visitor, start, folder, prepare):
    port, command, asks, hears = prepare(folder)
    serve(start, visitor, port, *map(str, command))
    known = {"HOST": visitor.HOST4, "PORT": str(PUBLISHED)}
    words = [known.get(word, word.replace("URL", f"http://{visitor.HOST4}:{PUBLISHED}")) for word in asks]

    def answers() -> bool:
        done = visitor.run(*words, check=False)  # postgresql refuses while it starts
        return done.returncode == 0 and done.stdout == hears
    proc.wait_for(answers, 60, f"it answers {hears[:40]}")
