"""A part is missing or broken, or a command is called wrongly: one sentence, and nothing runs unprotected."""

import os
import re
import shutil
import socket
import stat
import struct
from pathlib import Path

import pytest

from mwtest import build, proc

SECONDS = 120
PARTS = ("bin/mwins", "bin/mwcommsd", "lib/libmwshim.so")
PRINT_ERRNO = ("import socket\n"
               "for kind in ('SOCK_STREAM', 'SOCK_DGRAM'):\n"
               "    for family in ('AF_INET', 'AF_INET6'):\n"
               "        try: socket.socket(getattr(socket, family), getattr(socket, kind))\n"
               "        except OSError as error: print(error.errno)\n"
               "socket.socketpair()[0].close()\n")
ENETDOWN = b"100\n"


def network_namespace() -> int:
    with socket.socketpair()[0] as one:
        so_netns_cookie = 71
        return struct.unpack("=Q", one.getsockopt(socket.SOL_SOCKET, so_netns_cookie, 8))[0]


@pytest.fixture
def tree(mw, tmp_path) -> Path:
    """A copy of what is installed, to be damaged; `mw` looks for its parts beside itself."""
    source = Path(mw).parent.parent
    for part in ("bin/mw", *PARTS):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        shutil.copy(source / part, tmp_path / part)
    return tmp_path


def run(tree: Path, *words, **options):
    return proc.run([tree / "bin/mw", "run", "--", *words], SECONDS, check=False, **options)


def says_one_sentence(done) -> str:
    """Beside what says that other parts do run."""
    lines = [line for line in done.stderr.decode().splitlines()
             if not line.startswith(("mw: session ", "mwins: INS 1 up: "))]
    assert len(lines) == 1, lines
    assert lines[0].startswith("mw: cannot ")
    return lines[0]


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part(tree, unchanged, part):
    (tree / part).unlink()
    done = run(tree, "touch", tree / "has-run")
    assert done.returncode == 125
    assert re.search(r"No such file or directory; build or install MwComms completely$", says_one_sentence(done))
    assert not (tree / "has-run").exists()


@pytest.mark.parametrize("part", ["bin/mwins", "bin/mwcommsd"])
@pytest.mark.parametrize(("content", "reason"), [
    (b"#!/bin/sh\nexit 0\n", "ended with exit status 0 before it was ready"),
    (b"#!/bin/sh\nkill -SEGV $$\n", "before it was ready")], ids=["ends", "crashes"])
def test_a_broken_part(tree, unchanged, part, content, reason):
    (tree / part).write_bytes(content)
    done = run(tree, "touch", tree / "has-run")
    assert done.returncode == 125
    assert reason in says_one_sentence(done)
    assert not (tree / "has-run").exists()


@pytest.mark.parametrize("content", [b"", b"junk" * 100], ids=["empty", "junk"])
def test_a_shim_that_cannot_be_loaded(tree, unchanged, content):
    """The dynamic linker would start the program without it."""
    (tree / "lib/libmwshim.so").write_bytes(content)
    done = run(tree, "touch", tree / "has-run")
    assert done.returncode == 125
    assert "cannot load" in says_one_sentence(done)
    assert not (tree / "has-run").exists()


@pytest.mark.parametrize("name", ["with space", "with:colon"])
def test_a_path_that_ld_preload_cannot_name(tree, unchanged, name):
    other = tree / name
    other.mkdir()
    for folder in ("bin", "lib"):
        (tree / folder).rename(other / folder)
    done = run(other, "touch", tree / "has-run")
    assert done.returncode == 125
    assert "LD_PRELOAD is cut" in says_one_sentence(done)
    assert not (tree / "has-run").exists()


@pytest.mark.parametrize(("session", "sentence"), [
    (None, "no session: MWCOMMS_SESSION is not set. Start the program with `mw run -- PROGRAM`"),
    ("mwcomms/none-0/0011223344556677:00112233445566778899aabbccddeeff", "the session's driver does not answer"),
    ("mwcomms/none-0/0011223344556677-HERE:00112233445566778899aabbccddeeff",
     "the session's driver does not answer"),
    ("nonsense", "no session: MWCOMMS_SESSION"),
])
def test_no_driver(mw, unchanged, session, sentence):
    """ENETDOWN for every network socket and one line; what is no network goes on."""
    environment = {**os.environ, "LD_PRELOAD": str(build.directory() / "lib/libmwshim.so")}
    if session is not None:
        environment["MWCOMMS_SESSION"] = session.replace("HERE", f"{network_namespace():x}")
    done = proc.run(["/usr/bin/python3", "-c", PRINT_ERRNO], SECONDS, env=environment)
    assert done.stdout == ENETDOWN * 4
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("mwshim: ") and sentence in lines[0]


def test_a_wrong_token_is_refused(mw, unchanged):
    """Somebody who knows the session's address but not its secret gets no socket."""
    script = ('export MWCOMMS_SESSION="${MWCOMMS_SESSION%:*}:00112233445566778899aabbccddeeff"; '
              'exec /usr/bin/python3 -c "$0"')
    done = proc.run([mw, "run", "--", "bash", "-c", script, PRINT_ERRNO], SECONDS)
    assert done.stdout == ENETDOWN * 4
    assert b"mwshim: the driver refused this process" in done.stderr


def test_a_registry_of_somebody_else_is_refused(tree, unchanged):
    """Without root the registry may be in a folder that everybody can write to."""
    for folder in (tree, *tree.parents):
        if folder == Path("/tmp"):
            break
        folder.chmod(folder.stat().st_mode | stat.S_IROTH | stat.S_IXOTH)
    (tree / "mwcomms").mkdir(mode=0o755)  # root's
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = proc.run([*user, tree / "bin/mw", "run", "--", "touch", tree / "has-run"], SECONDS, check=False,
                    env={**os.environ, "XDG_RUNTIME_DIR": str(tree)})
    assert done.returncode == 125
    assert "belongs to, or can be written by, somebody else" in says_one_sentence(done)


# -- wrong arguments


USAGE = {
    "mw": [[], ["bogus"], ["run"], ["run", "--"], ["run", "--bogus", "--", "true"], ["run", "-p"],
           ["run", "-p", "0", "--", "true"], ["run", "-p", "80:x", "--", "true"],
           ["run", "-p", "1:2:3:4", "--", "true"], ["run", "-p", "65536", "--", "true"],
           ["run", "--net", "x", "--", "true"], ["run", "--net", "host", "-p", "80", "--", "true"],
           ["run", "--ins", "2", "--", "true"], ["run", "--workers", "0", "--", "true"],
           ["run", "--workers", "many", "--", "true"], ["ps", "--", "x"], ["clean", "x", "y"], ["adopt"], ["version", "x"]],
    "mwins": [[], ["--registry"], ["--registry", "/x"], ["--registry", "/x", "--id", "y"],
              ["--registry", "/x", "--id", "1", "--workers", "0"], ["--bogus", "1"],
              ["--registry", "/x", "--id", "1", "--uid", "0"], ["--registry", "/x", "--id", "1", "--to-host", "x"]],
    "mwcommsd": [[], ["--registry"], ["--bogus", "1"], ["--channel-fd", "999"], ["--token", "zz"],
                 ["--bell-fds", "x"]],
}
SCRIPTS = {
    "dev": [["bogus"], ["help", "x"], ["build", "bogus"], ["build", ""], ["build", "a", "b"], ["demo", "--bogus"],
            ["demo", "--"], ["demo", "-p"], ["demo", "-p", "x"], ["demo", "-p", "0"], ["demo", "-p", "80:65536"],
            ["demo", "-p", "1:2:3"], ["test", "bogus"], ["test", "a", "b"], ["bench", "--bogus"],
            ["bench", "--only"], ["bench", "--only", "bogus"], ["attack", "--bogus"], ["attack", "--only", "bogus"],
            ["attack", "--defence", "bogus"], ["attack", "--server", "bogus"], ["attack", "--connections", "15001"],
            ["attack", "--seconds", "4"], ["fuzz", "bogus"], ["fuzz", "--seconds", "0"], ["kills", "0"],
            ["kills", "x"], ["kills", "1", "2"], ["soak", "0"], ["soak", "x"], ["soak", "1", "2"],
            *([verb, "x"] for verb in ("format", "lint", "clean", "install-deps"))],
    "bench/bench.py": [["--bogus"], ["--only", "bogus"]],
    "bench/attack/attack.py": [["--bogus"], ["--seconds", "4"]],
    "tests/differential/native.py": [[]],
    "tests/system/soak.py": [["0"], ["x"], ["1", "2"]],
}


def check_usage(words: list) -> None:
    done = proc.run(words, SECONDS, check=False)
    assert done.returncode == 2, done.stderr.decode()
    assert re.search(rb"^usage: ", done.stderr, re.I | re.M), done.stderr.decode()
    assert done.stdout == b""


@pytest.mark.parametrize(("program", "arguments"), [
    pytest.param(program, arguments, id=" ".join([program, *arguments]))
    for program, lists in USAGE.items() for arguments in lists])
def test_wrong_arguments(mw, unchanged, program, arguments):
    check_usage([build.program(program), *arguments])


@pytest.mark.parametrize(("script", "arguments"), [
    pytest.param(script, arguments, id=" ".join([script, *arguments]))
    for script, lists in SCRIPTS.items() for arguments in lists])
def test_wrong_arguments_of_a_script(script, arguments):
    words = [build.ROOT / script, *arguments]
    check_usage(["/usr/bin/python3", *words] if script.endswith(".py") else words)


@pytest.fixture
def clone(tmp_path) -> Path:
    """./dev and what it asks about arguments, where it can break nothing, with a build/ to lose."""
    shutil.copy(build.ROOT / "dev", tmp_path / "dev")
    for part in ("bench", "tests/mwtest"):
        shutil.copytree(build.ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests/fuzz").mkdir()
    shutil.copy(build.ROOT / "tests/fuzz/CMakeLists.txt", tmp_path / "tests/fuzz")
    (tmp_path / "build").mkdir()
    before = sorted(tmp_path.rglob("*"))
    yield tmp_path
    assert sorted(tmp_path.rglob("*")) == before, "nothing was done"


@pytest.mark.parametrize("arguments", SCRIPTS["dev"], ids=" ".join)
def test_wrong_arguments_are_found_before_anything_is_done(clone, arguments):
    """Also by a user who may not do it, on a machine that has python3 and none of the other packages."""
    tools = clone.parent / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("bash", "awk", "cat", "dirname", "readlink", "sed"):
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to(shutil.which(name))
    done = proc.run([tools / "bash", clone / "dev", *arguments], SECONDS, check=False, env={"PATH": str(tools)})
    assert done.returncode == 2, done.stderr.decode()
    assert done.stdout == b"" and re.search(rb"^usage: \./dev", done.stderr, re.M)


DEV_COMMANDS = re.findall(r"^  ([a-z-]+)", proc.run([build.ROOT / "dev"], SECONDS).stdout.decode(), re.M)


@pytest.mark.parametrize("verb", DEV_COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_of_a_command_of_dev(clone, verb, option):
    done = proc.run([clone / "dev", verb, option], SECONDS)
    assert done.stdout.startswith(f"usage: ./dev {verb} ".encode()) and done.stderr == b""
