"""File servers: Samba and the rsync daemon, up and down."""

import pytest

import transfer

SIZES = (0, 1, 1024, 70_000, transfer.LARGE)
SAMBA = """
[global]
    server role = standalone
    disable netbios = yes
    smb ports = 445
    map to guest = bad user
    guest account = root
    log file = {directory}/log
    private dir = {directory}/state
    lock directory = {directory}/state
    state directory = {directory}/state
    cache directory = {directory}/state
    pid directory = {directory}/state
    ncalrpc dir = {directory}/state/ncalrpc
    load printers = no
    printing = bsd
    printcap name = /dev/null
[share]
    path = {directory}/share
    guest ok = yes
    read only = no
"""


def _files(folder) -> dict:
    return {path.relative_to(folder): transfer.digest(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def _tree(folder) -> None:
    for number, size in enumerate(SIZES):
        path = folder / f"{number}" / f"file{number}"
        path.parent.mkdir(parents=True)
        path.write_bytes(transfer.body(size))


@pytest.mark.slow
@pytest.mark.isolated
def test_samba(box):
    for folder in ("state", "share", "got"):
        (box.directory / folder).mkdir()
    _tree(box.directory / "sent")
    (box.directory / "smb.conf").write_text(SAMBA.format(directory=box.directory))
    server = box.start("smbd", ["smbd", "--foreground", "--no-process-group", "--debug-stdout", "-s", box.directory / "smb.conf"],
                       ports=[445])
    box.wait_port(445, server)
    for command in (f"recurse; prompt; lcd {box.directory}/sent; mput *", f"recurse; prompt; lcd {box.directory}/got; mget *"):
        box.run(["smbclient", "//127.0.0.1/share", "-N", "-s", box.directory / "smb.conf", "-c", command])
    wanted = _files(box.directory / "sent")
    assert len(wanted) == len(SIZES)
    assert _files(box.directory / "share") == wanted
    assert _files(box.directory / "got") == wanted


@pytest.mark.isolated
def test_rsync_daemon(box):
    (box.directory / "share").mkdir()
    _tree(box.directory / "sent")
    (box.directory / "rsyncd.conf").write_text(
        f"pid file = {box.directory}/pid\nlog file = /dev/stderr\nreverse lookup = no\n[share]\npath = {box.directory}/share\n"
        "read only = no\nuid = root\ngid = root\n")
    server = box.start("rsyncd", ["rsync", "--daemon", "--no-detach", "--port=8730", f"--config={box.directory}/rsyncd.conf"],
                       ports=[8730])
    box.wait_port(8730, server)
    url = "rsync://127.0.0.1:8730/share/"
    wanted = _files(box.directory / "sent")
    box.run(["rsync", "-a", f"{box.directory}/sent/", url])
    assert _files(box.directory / "share") == wanted
    box.run(["rsync", "-a", url, f"{box.directory}/got/"])
    assert _files(box.directory / "got") == wanted
    assert len(wanted) == len(SIZES)
