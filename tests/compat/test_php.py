"""PHP-FPM behind Apache, both with Debian's configuration, in one session; they talk TCP with each other."""

import re
import shutil
from pathlib import Path

import pytest

import transfer
import webserver
from mwtest.proc import wait_for

PROGRAM = """<?php
$size = intval($_GET['size'] ?? 0);
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    echo md5(file_get_contents('php://input'));
} else {
    for ($at = 0; $at < $size; $at += 8) { printf('%08d', $at); }
}
"""
# The session ends when both have ended.
BOTH = 'php-fpm8.2 -F -y "$0/fpm.conf" & a=$!; apache2 -d "$0/apache2" -f apache2.conf -DFOREGROUND & b=$!;' \
       ' trap "kill $a $b" TERM; wait; wait'


@pytest.mark.rotating
@pytest.mark.isolated
def test_php_fpm(box):
    for folder in ("run", "lock", "logs", "pages"):
        (box.directory / folder).mkdir()
        (box.directory / folder).chmod(0o777)
    (box.directory / "pages/page.php").write_text(PROGRAM)
    pool = Path("/etc/php/8.2/fpm/pool.d/www.conf").read_text()
    pool = re.sub(r"^listen = .*$", "listen = 127.0.0.1:9100", pool, flags=re.M)
    (box.directory / "fpm.conf").write_text(
        f"[global]\npid = {box.directory}/run/fpm.pid\nerror_log = /dev/stderr\n{pool}")
    root = box.directory / "apache2"
    shutil.copytree("/etc/apache2", root, symlinks=True)
    for module in ("proxy.load", "proxy.conf", "proxy_fcgi.load"):
        (root / "mods-enabled" / module).unlink(missing_ok=True)
        (root / "mods-enabled" / module).symlink_to(f"../mods-available/{module}")
    for site in (root / "sites-enabled").iterdir():
        site.unlink()
    (root / "sites-enabled/php.conf").write_text(
        f"<VirtualHost *:80>\nDocumentRoot {box.directory}/pages\n<Directory {box.directory}/pages>\n"
        "Require all granted\n</Directory>\n<FilesMatch \\.php$>\n"
        'SetHandler "proxy:fcgi://127.0.0.1:9100"\n</FilesMatch>\n</VirtualHost>\n')
    env = {"APACHE_RUN_USER": "www-data", "APACHE_RUN_GROUP": "www-data", "LANG": "C",
           "APACHE_PID_FILE": f"{box.directory}/run/pid", "APACHE_RUN_DIR": f"{box.directory}/run",
           "APACHE_LOCK_DIR": f"{box.directory}/lock", "APACHE_LOG_DIR": f"{box.directory}/logs"}
    server = box.start("servers", ["bash", "-c", BOTH, box.directory], env=env, ports=[80])
    box.wait_port(80, server)
    wait_for(lambda: box.get("/page.php?size=0", 80)[0] == 200, 60, "PHP answers", server)
    for size in (8, 8000, 2_400_000):
        wanted = b"".join(b"%08d" % at for at in range(0, size, 8))
        webserver.check_parallel(box, 80, f"/page.php?size={size}", wanted, 4)
    assert webserver.load(box, 80, 1000, 10, "/page.php?size=8000", keep_alive=True) == (1000, 0)
    sent = transfer.body(transfer.LARGE)
    (box.directory / "sent").write_bytes(sent)
    answer = box.run(["curl", "-sS", "-m", 60, "--data-binary", f"@{box.directory}/sent", "http://127.0.0.1/page.php"])
    assert answer.stdout.decode() == transfer.digest(sent)[1]
