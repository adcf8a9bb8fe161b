"""MariaDB with Debian's configuration; only folders and the address change."""

import concurrent.futures
import shutil

import pytest

from mwtest.proc import wait_for

ROWS = 50000
CLIENTS = 8


def _query(box, sql: str, host: str = "127.0.0.1", check: bool = True):
    return box.run(["mariadb", "--no-defaults", "--protocol=tcp", "-h", host, "-u", "tester", "-NB", "test", "-e", sql],
                   check=check)


def _result(box, sql: str, **options) -> str:
    return _query(box, sql, **options).stdout.decode().strip()


@pytest.mark.slow
@pytest.mark.isolated
def test_mariadb(box):
    data = box.directory / "data"
    box.run(["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=mysql", "--skip-test-db",
             "--auth-root-authentication-method=normal"])
    (box.directory / "init.sql").write_text(
        "DELETE FROM mysql.global_priv WHERE User = '';\nFLUSH PRIVILEGES;\nCREATE DATABASE test;\n"
        "CREATE USER tester@'%';\nGRANT ALL ON test.* TO tester@'%';\n")
    run = box.directory / "run"
    run.mkdir()
    shutil.chown(run, "mysql")
    server = box.start("mariadbd", ["mariadbd", f"--datadir={data}", "--user=mysql", f"--socket={run}/socket",
                                    f"--pid-file={run}/pid", "--bind-address=*", f"--init-file={box.directory}/init.sql",
                                    "--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0"], ports=[3306])
    box.wait_port(3306, server)
    wait_for(lambda: _query(box, "select 1", check=False).returncode == 0, 120, "queries work", server)
    for address in box.addresses:
        assert _result(box, "select 6 * 7", host=address) == "42"
    _query(box, "create table t (n int primary key, text varchar(200)); "
                f"insert into t select seq, repeat(md5(seq), 4) from seq_1_to_{ROWS}")
    wanted = _result(box, "select md5(group_concat(m order by seq separator '')) from "
                          "(select seq, md5(repeat(md5(seq), 4)) m from seq_1_to_1000) s")
    assert _result(box, "select md5(group_concat(md5(text) order by n separator '')) from t where n <= 1000") == wanted
    rows = _result(box, "select n, text from t order by n").splitlines()
    assert len(rows) == ROWS and all(int(row.split("\t")[0]) == i for i, row in enumerate(rows, 1))
    assert {len(row.split("\t")[1]) for row in rows} == {128}
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda _: _result(box, "select n, text from t order by n").splitlines(), range(CLIENTS)))
    assert answers == [rows] * CLIENTS
