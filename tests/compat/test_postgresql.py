"""PostgreSQL: a new cluster of user postgres, queries over TCP, pgbench, a clean restart."""

import os
import pwd
from pathlib import Path

from mwtest.proc import wait_for


def _programs() -> Path:
    return max(Path("/usr/lib/postgresql").glob("*/bin"))


def _as_postgres(*words) -> list:
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *words]


def _start(box, data: Path):
    server = box.start("postgres", _as_postgres(_programs() / "postgres", "-D", data,
                                                "-c", f"unix_socket_directories={box.directory}/socket",
                                                "-c", "listen_addresses=127.0.0.1,::1"))
    box.wait_port(5432, server)
    wait_for(lambda: _query(box, "select 1", check=False).returncode == 0, 120, "queries work", server)
    return server


def _query(box, sql: str, check: bool = True, host: str = "127.0.0.1"):
    return box.run(["psql", "-h", host, "-U", "postgres", "-d", "postgres", "-qAtX", "-c", sql],
                   check=check)


def _result(box, sql: str, **options) -> str:
    return _query(box, sql, **options).stdout.decode().strip()


def test_postgresql(box):
    user = pwd.getpwnam("postgres")
    for folder in ("data", "socket"):
        (box.directory / folder).mkdir()
        os.chown(box.directory / folder, user.pw_uid, user.pw_gid)
    data = box.directory / "data"
    box.run(
            _as_postgres(_programs() / "initdb", "-D", data, "-A", "trust", "--no-sync"))
    server = _start(box, data)
    assert _result(box, "select 6 * 7") == "42"
    assert _result(box, "select 6 * 7", host="::1") == "42"
    assert _result(box, "select inet_server_addr(), inet_server_port(), inet_client_addr()") == (
        "127.0.0.1|5432|127.0.0.1")
    _query(box, "create table t as select i, md5(i::text) as m from generate_series(1, 100000) i")
    assert _result(box, "select count(*), md5(string_agg(m, '' order by i)) from t") == (
        _result(box, "select 100000, md5(string_agg(md5(i::text), '' order by i)) "
                     "from generate_series(1, 100000) i"))
    rows = _result(box, "select i, m from t order by i").splitlines()
    assert len(rows) == 100000 and rows[4].startswith("5|e4da3b7fbbce2345d7772b0674a318d5")
    box.run(["pgbench", "-h", "127.0.0.1", "-U", "postgres", "-i", "-q", "-s", 1, "postgres"])
    load = box.run(["pgbench", "-h", "127.0.0.1", "-U", "postgres", "-n", "-c", 8, "-j", 2,
                    "-t", 100, "postgres"])
    assert b"number of failed transactions: 0" in load.stdout
    assert b"actually processed: 800/800" in load.stdout
    assert _result(box, "select sum(tbalance) = (select sum(delta) from pgbench_history) "
                        "from pgbench_tellers") == "t"
    server.stop()
    _start(box, data)
    assert _result(box, "select count(*) from t") == "100000"
