"""Postfix with Debian's master.cf takes messages by SMTP and delivers them into a mailbox."""

import pwd
import shutil
import smtplib
from pathlib import Path

import pytest

from mwtest.proc import wait_for

MAIN = """
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = {directory}/maillog
maillog_file_prefixes = {directory}
myhostname = mail.example.test
mydestination =
inet_interfaces = all
inet_protocols = all
mynetworks_style = class
smtpd_relay_restrictions = reject_unauth_destination
virtual_mailbox_domains = example.test
virtual_mailbox_base = {directory}/mail
virtual_mailbox_maps = static:box/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
message_size_limit = 20000000
smtpd_peername_lookup = no
virtual_minimum_uid = 1
"""
MESSAGES = 5


def _text(number: int, size: int) -> str:
    lines = "\n".join(f"line {i} of message {number}" for i in range(size // 25))
    return f"From: a@example.test\nTo: b@example.test\nSubject: {number}\n\n{lines}\n"


@pytest.mark.slow
@pytest.mark.isolated
def test_postfix(box):
    mailbox = pwd.getpwnam("www-data")
    configuration = box.directory / "postfix"
    shutil.copytree("/etc/postfix", configuration, symlinks=True)
    (configuration / "main.cf").write_text(
        MAIN.format(directory=box.directory, uid=mailbox.pw_uid, gid=mailbox.pw_gid))
    for folder, owner in (("queue", "root"), ("data", "postfix"), ("mail", "www-data")):
        (box.directory / folder).mkdir(mode=0o755)
        shutil.chown(box.directory / folder, owner)
    # What Debian's start script puts into the queue directory for services that are confined to it.
    (box.directory / "queue/etc").mkdir()
    for name in ("services", "hosts", "resolv.conf", "nsswitch.conf", "localtime"):
        if (Path("/etc") / name).exists():
            shutil.copy(Path("/etc") / name, box.directory / "queue/etc")
    server = box.start("postfix", ["postfix", "-c", configuration, "start-fg"], ports=[25])
    box.wait_port(25, server)
    sent = {}
    for number in range(MESSAGES):
        for address in box.addresses:
            text = _text(number, 10 ** (number + 2))
            with box.namespace.entered(), smtplib.SMTP(address, 25, timeout=60) as session:
                assert session.sendmail("a@example.test", ["b@example.test"], text) == {}
            sent.setdefault(text.partition("\n\n")[2], []).append(address)
    inbox = box.directory / "mail/box/new"
    wait_for(lambda: inbox.exists() and len(list(inbox.iterdir())) == MESSAGES * len(box.addresses), 60,
             "all are delivered", server)
    bodies = [path.read_text().partition("\n\n")[2] for path in inbox.iterdir()]
    assert sorted(bodies) == sorted(text for text, addresses in sent.items() for _ in addresses)
    # The script that was started does not pass a signal on to the server.
    box.run(["postfix", "-c", configuration, "stop"])
