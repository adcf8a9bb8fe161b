"""Servers that limit their address space, as Debian's defaults make them: dovecot, vsftpd, start scripts with ulimit."""

import imaplib
import pwd
import re
import shutil
from pathlib import Path

import pytest

import transfer

MAIL_USER = "www-data"  # any that is no system user to Dovecot, with the first valid number set
DOVECOT = """
base_dir = {directory}/run
state_dir = {directory}/state
log_path = /dev/stderr
ssl = no
disable_plaintext_auth = no
first_valid_uid = 1
passdb {{
  driver = static
  args = password=secret
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={directory}/home
}}
mail_location = maildir:~/Maildir
"""


def _message(size: int) -> bytes:
    lines = (b"line %07d of a message that is long" % i for i in range(size // 40))
    return b"From: a@example.test\r\nSubject: long\r\n\r\n" + b"\r\n".join(lines) + b"\r\n"


@pytest.mark.slow
@pytest.mark.isolated
def test_dovecot(box):
    """default_vsz_limit is 256 MB."""
    user = pwd.getpwnam(MAIL_USER)
    configuration = box.directory / "dovecot"
    shutil.copytree("/etc/dovecot", configuration, symlinks=True)
    authentication = configuration / "conf.d/10-auth.conf"
    authentication.write_text(authentication.read_text().replace("!include auth-system.conf.ext", ""))
    encryption = configuration / "conf.d/10-ssl.conf"  # its certificate comes with another package
    encryption.write_text(re.sub(r"^(ssl_(cert|key) = )", r"#\1", encryption.read_text(), flags=re.M))
    (configuration / "local.conf").write_text(
        DOVECOT.format(directory=box.directory, uid=user.pw_uid, gid=user.pw_gid))
    for folder in ("home", "state"):
        (box.directory / folder).mkdir()
    shutil.chown(box.directory / "home", user.pw_uid, user.pw_gid)
    server = box.start("dovecot", ["dovecot", "-F", "-c", configuration / "dovecot.conf"], ports=[143])
    box.wait_port(143, server)
    message = _message(1_000_000)
    for address in box.addresses:
        with box.namespace.entered():
            session = imaplib.IMAP4(address, 143, timeout=60)
        assert session.login("anybody", "secret")[0] == "OK"
        assert session.append("INBOX", None, None, message)[0] == "OK"
        count = int(session.select()[1][0])
        answer = session.fetch(str(count), "(BODY.PEEK[])")[1]
        assert transfer.digest(answer[0][1]) == transfer.digest(message)
        session.logout()


@pytest.fixture
def vsftpd(box):
    """Debian's configuration with anonymous users, who may write; each session has 200 MB."""
    for folder in ("empty", "root/incoming"):
        (box.directory / folder).mkdir(parents=True)
    shutil.chown(box.directory / "root/incoming", "ftp")
    (box.directory / "root/large").write_bytes(transfer.body(transfer.LARGE))
    text = Path("/etc/vsftpd.conf").read_text()
    for key, value in (("anonymous_enable", "YES"), ("secure_chroot_dir", box.directory / "empty")):
        text = re.sub(rf"^{key}=.*$", f"{key}={value}", text, flags=re.M)
    text += (f"anon_root={box.directory}/root\nwrite_enable=YES\nanon_upload_enable=YES\n"
             f"xferlog_file={box.directory}/xfer.log\nanon_umask=022\n"
             "pasv_min_port=30000\npasv_max_port=30003\n")
    (box.directory / "vsftpd.conf").write_text(text)
    server = box.start("vsftpd", ["vsftpd", box.directory / "vsftpd.conf"], ports=[21, *range(30000, 30004)])
    box.wait_port(21, server)
    return box


@pytest.mark.rotating
@pytest.mark.isolated
@pytest.mark.parametrize("way", ["passive", "active"])
def test_vsftpd(vsftpd, way):
    box = vsftpd
    wanted = transfer.digest(transfer.body(transfer.LARGE))
    options = ["-P", "-"] if way == "active" else []
    url = f"ftp://{box.backend}"
    assert transfer.fetch(box, f"{url}/large", *options) == wanted
    for number in range(4):
        sent = transfer.body(transfer.LARGE - number)
        (box.directory / "sent").write_bytes(sent)
        box.run(["curl", "-sS", "-m", 60, *options, "-T", box.directory / "sent", f"{url}/incoming/{number}"])
        assert transfer.digest((box.directory / f"root/incoming/{number}").read_bytes()) == transfer.digest(sent)
    listed = box.run(["curl", "-sS", "-m", 60, *options, "-l", f"{url}/incoming/"]).stdout.split()
    assert sorted(listed) == [b"0", b"1", b"2", b"3"]


@pytest.mark.isolated
def test_start_script_with_a_limit(box):
    server = box.start("memcached", ["bash", "-c", "ulimit -v 2000000 && exec memcached -u nobody -p 11211 -U 0 -l 0.0.0.0"],
                       ports=[11211])
    box.wait_port(11211, server)
    value = transfer.body(500_000)
    assert box.exchange(11211, b"set key 0 0 %d\r\n%s\r\n" % (len(value), value), b"\r\n") == b"STORED\r\n"
    answer = box.exchange(11211, b"get key\r\n", b"END\r\n")
    assert transfer.digest(answer) == transfer.digest(b"VALUE key 0 %d\r\n%s\r\nEND\r\n" % (len(value), value))
