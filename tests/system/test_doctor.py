"""`mw doctor` where everything is there, and where one thing after the other is missing; `mw ps --json`."""

import ctypes
import errno
import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from mwtest.session import host_state
from mwtest import build, proc


def doctor(command: list, *arguments: str, seconds=60):
    """Runs mw doctor --json by `command`; returns its status and its document."""
    done = proc.run([*command, "doctor", "--json", *arguments], seconds, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr.decode()


def check(document: dict, group: str, name: str) -> dict:
    found = [one for one in document["checks"] if (one["group"], one["name"]) == (group, name)]
    assert len(found) == 1, (group, name, document)
    return found[0]


def failed(document: dict) -> set:
    return {(one["group"], one["name"]) for one in document["checks"] if one["result"] == "failed"}


def test_all_is_well_and_nothing_changes(mw, unchanged):
    status, document, errors = doctor([mw], "--", "/bin/sh", "-c", "--json")
    assert (status, failed(document), errors) == (0, set(), "")
    assert document["schema"] == 1 and document["ok"] is True
    assert document["program"] == ["/bin/sh", "-c", "--json"]
    assert document["choice"].startswith("--net isolated: the INS of sh")
    for name in ("namespaces", "veth", "dead end", "nftables"):
        assert check(document, "network", name)["result"] == "ok"
    assert host_state() == unchanged


def test_text_says_the_same(mw):
    done = proc.run([mw, "doctor", "true"], 60)
    lines = done.stdout.decode().splitlines()
    assert "installation" in lines and "program" in lines
    assert any(line.startswith("  ok       libmwshim.so: ") for line in lines)
    assert lines[-1].startswith("mw run would choose --net isolated")


@pytest.mark.parametrize(("arguments", "status"), [(["--bogus"], 2), (["--json=x"], 2), (["--help"], 0)])
def test_usage(mw, arguments, status):
    assert proc.run([mw, "doctor", *arguments], 20, check=False).returncode == status


def test_program_that_is_not_covered(mw, tmp_path):
    status, document, _ = doctor([mw], "/sbin/ldconfig")
    assert (status, failed(document)) == (1, {("program", "coverage")})
    assert "statically linked" in check(document, "program", "coverage")["detail"]
    setuid = tmp_path / "true"
    shutil.copy("/bin/true", setuid)
    os.chown(setuid, 65534, 65534)
    setuid.chmod(0o4755)
    status, document, _ = doctor([mw], str(setuid))
    assert status == 1 and "setuid" in check(document, "program", "coverage")["detail"]
    status, document, _ = doctor([mw], "no-such-command-anywhere")
    assert status == 1 and "not found" in check(document, "program", "coverage")["detail"]


def test_incomplete_installation(mw, tmp_path):
    alone = tmp_path / "bin" / "mw"
    alone.parent.mkdir()
    shutil.copy(mw, alone)
    status, document, _ = doctor([str(alone)])
    parts = {"mwcommsd", "mwins", "libmwshim.so"}
    assert (status, failed(document)) == (1, {("installation", name) for name in parts})
    # A library that is none is found out, although it is there.
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libmwshim.so").write_text("no library")
    for name in ("mwcommsd", "mwins"):
        shutil.copy(build.program(name), alone.parent)
    status, document, _ = doctor([str(alone)])
    assert (status, failed(document)) == (1, {("installation", "libmwshim.so")})
    assert "preloaded" in check(document, "installation", "libmwshim.so")["detail"]


def test_without_rights_it_is_not_permitted(mw):
    status, document, _ = doctor(["setpriv", "--bounding-set", "-net_admin,-sys_admin", "--inh-caps",
                                  "-net_admin,-sys_admin", mw])
    assert status == 4
    assert ("rights", "capabilities") in failed(document)
    assert ("network", "namespaces") in failed(document)
    assert "SYS_ADMIN" in check(document, "rights", "capabilities")["detail"]


def test_as_a_user(mw, tmp_path):
    # The build tree may stand where a user cannot go.
    for name in ("mw", "mwins", "mwcommsd"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        shutil.copy(build.program(name), tmp_path / "bin")
    (tmp_path / "lib").mkdir()
    shutil.copy(build.directory() / "lib" / "libmwshim.so", tmp_path / "lib")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder != Path("/") and folder != Path("/tmp"):
            folder.chmod(0o755)
    status, document, _ = doctor(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "env",
                                  "-u", "XDG_RUNTIME_DIR", str(tmp_path / "bin" / "mw")])
    assert (status, failed(document)) == (0, set())
    assert check(document, "rights", "user")["result"] == "warning"
    assert document["choice"].startswith("--net host")


def test_missing_tools_and_small_limits(mw):
    hide = 'mount --bind /dev/null "$1" && shift && exec "$@"'  # tools are not looked for in PATH
    status, document, _ = doctor(["unshare", "-m", "sh", "-c", hide, "sh", shutil.which("nft"), mw])
    assert status == 1
    assert check(document, "network", "veth")["result"] == "ok"
    assert "nftables" in check(document, "network", "nftables")["remedy"]
    status, document, _ = doctor(["prlimit", "--nofile=1024:1024", mw])
    assert status == 0
    assert check(document, "limits", "RLIMIT_NOFILE")["result"] == "warning"
    status, document, _ = doctor(["prlimit", f"--as={1 << 31}", mw])
    assert (status, failed(document)) == (1, {("memory", "shared region")})


def without_close_range() -> None:
    """In a child: its kernel is one from before Linux 5.11, as far as it can see."""
    steps = [(0x20, 0, 0, 4), (0x15, 0, 3, 0xC000003E), (0x20, 0, 0, 0), (0x15, 0, 1, 436), (0x06, 0, 0, 0x00050000 | errno.ENOSYS),
             (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    whole = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, whole, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp filter")


def test_a_kernel_without_close_range(mw):
    assert check(doctor([mw])[1], "kernel", "open descriptors")["result"] == "ok"
    done = proc.run([mw, "doctor", "--json"], 60, check=False, preexec_fn=without_close_range)
    one = check(json.loads(done.stdout), "kernel", "open descriptors")
    assert done.returncode == 1
    assert one["result"] == "failed" and "5.11" in one["remedy"]


def test_ps_is_one_document(mw, start, server, free_port):
    assert json.loads(proc.run([mw, "ps", "--json"], 20).stdout)["schema"] == 1
    session = start("-p", f"127.0.0.1:{free_port}:80", "--", *server, "80", "hello")
    document = json.loads(proc.run([mw, "ps", "--json", session.name], 20).stdout)
    assert [one["name"] for one in document["sessions"]] == [session.name]
    one = document["sessions"][0]
    record = session.refresh()
    assert one["state"] == "running" and one["net"] == "isolated"
    assert one["pids"]["mw_run"] == session.background.pid
    assert one["pids"]["mwins"] == int(record["ins"].split()[0])
    assert one["network"]["ins_ipv4"] == record["ins4"]
    assert one["published"] == [{"host": "127.0.0.1", "port": free_port, "ins_port": 80, "protocol": "tcp"}]


def test_ps_of_an_unknown_session(mw):
    done = proc.run([mw, "ps", "--json", "no-such-session"], 20, check=False)
    assert done.returncode == 3
    assert json.loads(done.stdout) == {"schema": 1, "sessions": []}
    assert b"no-such-session" in done.stderr
    assert proc.run([mw, "ps", "no-such-session"], 20, check=False).returncode == 3
