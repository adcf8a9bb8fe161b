"""What an installation brings beside the programs: man pages and completion, compared with what mw says itself."""

import json
import os
import pty
import re
import select
import subprocess

import pytest

from mwtest import build, proc

PAGES = sorted((build.ROOT / "docs" / "man").glob("*.[0-9]"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    place = tmp_path_factory.mktemp("install")
    proc.run(["cmake", "--install", build.directory(), "--prefix", place], 60)
    return place


def commands_and_options() -> dict:
    """Sub-command -> its long options, as `mw --help` has them."""
    mw = build.program("mw")
    text = proc.run([mw, "--help"], 20).stdout.decode()
    names = re.findall(r"^  ([a-z][a-z-]*) ", text.partition("Subcommands:")[2], re.MULTILINE)
    assert "run" in names
    found = {}
    for name in names:
        options = proc.run([mw, name, "--help"], 20).stdout.decode().partition("Options:")[2]
        found[name] = set(re.findall(r"^ +(?:-\w,)?(--[a-z-]+)", options, re.MULTILINE)) - {"--help"}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_well_formed(page):
    done = proc.run(["mandoc", "-T", "lint", "-W", "warning", page], 20, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    done = proc.run(["groff", "-man", "-mdoc", "-Tutf8", "-ww", "-z", page], 20, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_pages_are_installed(installed):
    for page in PAGES:
        assert (installed / "share/man" / f"man{page.suffix[1:]}" / page.name).read_text() == page.read_text()


def test_the_installed_client_libraries_are_whole(installed, tmp_path):
    (found,) = installed.rglob("mwnetflow.pc")
    flags = proc.run(["pkg-config", "--cflags", "--libs", "mwnetflow"], 20,
                     env={**os.environ, "PKG_CONFIG_PATH": str(found.parent)}).stdout.decode().split()
    engine = tmp_path / "engine"
    proc.run(["c++", "-std=c++20", build.ROOT / "clients/cpp/example.cc", *flags, "-o", engine], 120)
    # No session has this name: it got as far as asking for it.
    assert proc.run([engine, tmp_path / "none.sock"], 20, check=False).returncode == 1
    (package,) = installed.rglob("mwnetflow/__init__.py")
    said = proc.run(["python3", "-c", "import mwnetflow; print(mwnetflow.__file__)"], 20, cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": str(package.parents[1])}).stdout.decode()
    assert said.strip() == str(package) and (package.parent / "py.typed").exists()


def test_mw_page_has_every_command_and_option():
    page = proc.run(["mandoc", "-T", "ascii", build.ROOT / "docs/man/mw.1"], 20).stdout.decode()
    page = re.sub(".\b", "", page)
    for command, options in commands_and_options().items():
        assert re.search(rf"^ +mw {command}\b", page, re.MULTILINE), f"mw {command} has no synopsis"
        for option in options:
            assert option in page, f"mw {command} {option} is not described"


@pytest.fixture(scope="module")
def complete(installed):
    """complete(words...) -> what bash offers for the last one."""
    def ask(*words: str) -> set:
        line = " ".join(words)
        script = f"""
            . /usr/share/bash-completion/bash_completion
            . "$1"
            compopt() {{ :; }}  # only while bash itself completes
            COMP_WORDS=({' '.join(f"'{word}'" for word in words)})
            COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)} COMP_TYPE=9
            _mw
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            ["bash", "--norc", "-c", script, "bash", installed / "share/bash-completion/completions/mw"],
            capture_output=True, text=True, timeout=60, check=True,
            env={**os.environ, "PATH": f"{installed / 'bin'}:{os.environ['PATH']}"})
        assert done.stderr == ""
        return {word.strip() for word in done.stdout.splitlines() if word.strip()}
    return ask


def test_completes_commands_and_options(complete):
    known = commands_and_options()
    assert complete("mw", "") == set(known) | {"--help"}
    assert complete("mw", "do") == {"doctor"}
    for command, options in known.items():
        assert complete("mw", command, "--") >= options | {"--help"}
    assert complete("mw", "run", "--wo") == {"--workers"}


def test_completes_values_and_commands(complete):
    assert complete("mw", "run", "--net", "") == {"isolated", "host"}
    assert complete("mw", "run", "--net", "i") == {"isolated"}
    assert complete("mw", "run", "-p", "") == set()
    # A command, wherever it begins; `--net host` is no command.
    for before in (["run"], ["run", "--"], ["run", "-v"], ["run", "--net", "host", "-p", "80"], ["doctor", "--json"]):
        assert "setpriv" in complete("mw", *before, "setpr"), before
    assert "/usr/bin/setpriv" in complete("mw", "doctor", "/usr/bin/setpr")


def test_completes_sessions(complete, mw, start, server, free_port):
    session = start("-p", f"127.0.0.1:{free_port}:80", "--", *server, "80", "hello")
    assert session.name in complete("mw", "ps", "")
    assert session.name in complete("mw", "ps", session.name[:-1])
    assert complete("mw", "ps", "no-such-") == set()


def test_completes_words_of_the_interface(complete, tmp_path):
    assert {"nodelay", "min-rate-in", "block"} <= complete("mw", "get", "1:1", "")
    assert complete("mw", "set", "-s", "x", "1:1", "nod") == {"nodelay"}
    assert complete("mw", "set", "1:1", "nodelay", "") == set()
    assert complete("mw", "flows", "") == {"listen", "tcp", "udp", "port", "peer", "pid"}
    assert complete("mw", "top", "p") == {"port", "peer", "pid"}
    assert complete("mw", "flows", "port", "") == set()
    assert "worker" in complete("mw", "top", "--sort", "")
    (tmp_path / "rules.toml").touch()
    (tmp_path / "other.pem").touch()
    for words in (["run", "--config"], ["run", "--netflow-token-file"], ["run", "--netflow-read-token-file"],
                  ["run", "--netflow-certificate"], ["run", "--netflow-key"], ["guard", "--rules"],
                  ["guard", "--audit"], ["guard", "--check"], ["check-config"]):
        assert complete("mw", *words, f"{tmp_path}/ru") == {f"{tmp_path}/rules.toml"}, words


def test_a_socket_is_completed_once_on_a_terminal(installed, start, server, free_port):
    """A real bash: to readline a colon begins a new word, which must not repeat what stands before it."""
    session = start("-p", f"127.0.0.1:{free_port}:80", "--", *server, "80", "hello")
    mw = installed / "bin/mw"

    def listener():
        return json.loads(proc.run([mw, "flows", "-s", session.name, "-j", "listen"], 20).stdout)

    socket_name = proc.wait_for(listener, 20, "the server listens")[0]["socket"]
    master, slave = pty.openpty()
    shell = subprocess.Popen(["bash", "--norc", "-i"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                             env={**os.environ, "PATH": f"{installed / 'bin'}:{os.environ['PATH']}", "PS1": "READY>",
                                  "TERM": "dumb", "INPUTRC": "/dev/null"})
    os.close(slave)
    try:
        said = b""

        def wait_for(what: bytes) -> None:
            nonlocal said
            while what not in said:
                assert select.select([master], [], [], 30)[0], said
                said += os.read(master, 65536)
            said = said.partition(what)[2]

        wait_for(b"READY>")
        os.write(master, b". /usr/share/bash-completion/bash_completion; bind 'set enable-bracketed-paste off'; "
                         b". %s; echo LOADED$((1 + 1))\n" % bytes(installed / "share/bash-completion/completions/mw"))
        wait_for(b"LOADED2")
        os.write(master, f"mw why -s {session.name} {socket_name.partition(':')[0]}:\t\n".encode())
        wait_for(f"\n{socket_name}: listen".encode())
    finally:
        shell.kill()
        shell.wait()
        os.close(master)
