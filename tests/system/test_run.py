"""`mw run` as a user meets it: status, refusals, published ports, and a host that looks untouched."""

import errno
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request

import pytest

from mwtest import proc
from mwtest.session import copy_of_the_build, host_state, open_to_others, output


def run(mw, *arguments, seconds=120):
    return proc.run([mw, *arguments], seconds, check=False)


def get(url: str, background=None, seconds=60) -> str:
    """The page, asked for until there is one."""
    def attempt():
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None
    return proc.wait_for(attempt, seconds, f"an answer from {url}", background)


@pytest.mark.parametrize(("script", "status"), [("true", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_exit_status_is_the_commands(mw, unchanged, script, status):
    done = run(mw, "run", "--", "sh", "-c", script)
    assert done.returncode == status, done.stderr.decode()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["version"]])
def test_help_is_no_error(mw, arguments):
    done = run(mw, *arguments)
    assert done.returncode == 0
    assert done.stdout and done.stderr == b""


def test_missing_command(mw, unchanged):
    done = run(mw, "run", "--", "no-such-command-anywhere")
    assert done.returncode == 127
    assert b"not found" in done.stderr


def test_static_program_is_refused(mw, unchanged):
    done = run(mw, "run", "--", "/sbin/ldconfig", "-p")
    assert done.returncode == 126
    assert b"statically linked" in done.stderr


def test_setuid_program_is_refused(mw, unchanged, tmp_path):
    program = tmp_path / "true"
    shutil.copy("/bin/true", program)
    os.chown(program, 65534, 65534)
    program.chmod(0o4755)
    done = run(mw, "run", "--", str(program))
    assert done.returncode == 126
    assert b"setuid" in done.stderr


def test_says_which_network_it_chose_and_why(mw, unchanged):
    isolated = run(mw, "run", "--", "true").stderr.decode()
    assert "isolated in network namespace mw-true-0" in isolated and "because" in isolated
    host = run(mw, "run", "--net", "host", "--", "true").stderr.decode()
    assert "host's own network" in host and "--net host was given" in host
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as setting:
        low = setting.read().strip()
    assert low == "0" or f"ports below {low} are refused" in host
    refused = run(mw, "run", "--net", "host", "--", "/usr/bin/python3", "-c",
                  "import socket; socket.create_server(('127.0.0.1', 1))")
    assert low in ("0", "1") or b"Permission denied" in refused.stderr


def test_output_belongs_to_the_command(mw, unchanged):
    assert run(mw, "run", "-v", "--", "echo", "only this").stdout == b"only this\n"


def test_what_the_user_preloads_stays(mw, unchanged):
    others = "libnss_files.so.2"  # any library of the system
    done = proc.run([mw, "run", "--", "sh", "-c", "echo $LD_PRELOAD"], 30,
                    env={**os.environ, "LD_PRELOAD": others})
    first, second = done.stdout.decode().strip().split(":")
    assert first.endswith("/libmwshim.so") and second == others


def test_published_port(mw, unchanged, start, server, free_port):
    session = start("-p", f"{free_port}:80", "--", *server, "80", "hello")
    here = output("hostname", "-I").split()[0] if shutil.which("hostname") else "127.0.0.1"
    assert get(f"http://127.0.0.1:{free_port}/", session.background).startswith("hello")
    assert get(f"http://{here}:{free_port}/", session.background).startswith("hello")
    assert f"table inet mw_{session.name.replace('-', '_')} " in output("nft", "list", "ruleset")


def test_reached_from_elsewhere_by_published_ports_only(mw, visitor, unchanged, start, server, free_port):
    session = start("-p", f"{free_port}:80", "--", *server, "80", "hello")
    get(f"http://127.0.0.1:{free_port}/", session.background)
    # The client's address is the true one, in both families.
    answer = visitor.curl(f"http://{visitor.HOST4}:{free_port}/").stdout
    assert answer == f"hello ::ffff:{visitor.OWN4}".encode()
    if session.record.get("ins6"):
        answer = visitor.curl(f"http://[{visitor.HOST6}]:{free_port}/").stdout
        assert answer == f"hello {visitor.OWN6}".encode()
    direct = visitor.curl(f"http://{session.record['ins4']}:80/", limit=2, check=False)
    assert direct.returncode == 28, "an unpublished way in: it must time out"
    assert session.background.stop() == 143


def test_ins_cannot_reach_the_hosts_loopback(mw, unchanged, start, server, free_port, tmp_path):
    with proc.Background([*server, str(free_port), "secret"], tmp_path / "host.log") as host_only:
        get(f"http://127.0.0.1:{free_port}/", host_only)
        session = start("--", "sleep", "60")
        # As hostile as it gets: root inside the INS's own namespace sends 127.0.0.1 to the host.
        inside = ["ip", "netns", "exec", f"mw-{session.name}"]
        output(*inside, "sysctl", "-q", "net.ipv4.conf.eth0.route_localnet=1")
        output(*inside, "ip", "route", "del", "local", "127.0.0.0/8", "table", "local")
        output(*inside, "ip", "route", "del", "local", "127.0.0.1", "table", "local")
        output(*inside, "ip", "route", "add", "127.0.0.1", "via", session.record["host4"], "src",
               session.record["ins4"])
        done = proc.run([*inside, "curl", "-sS", "-m", "2", f"http://127.0.0.1:{free_port}/"], 60, check=False)
        assert done.returncode == 28, "the packets must be dropped, not answered"


def test_published_udp_port(mw, unchanged, start, tmp_path, free_port):
    echo = tmp_path / "echo.py"
    echo.write_text("import socket\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\ns.bind(('::', 53))\n"
                    "while True:\n    data, peer = s.recvfrom(2048)\n    s.sendto(data[::-1], peer)\n")
    session = start("-p", f"127.0.0.1:{free_port}:53/udp", "--", "/usr/bin/python3", str(echo))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        client.connect(("127.0.0.1", free_port))

        def ask():
            try:
                client.send(b"abc")
                return client.recv(100)
            except (TimeoutError, ConnectionRefusedError):
                return None
        assert proc.wait_for(ask, 60, "an echo", session.background) == b"cba"


def test_loopback_v6_is_refused_at_once(mw, unchanged, start, server, free_port):
    session = start("-p", f"{free_port}:80", "--", *server, "80", "x")
    get(f"http://127.0.0.1:{free_port}/", session.background)
    with socket.socket(socket.AF_INET6) as client:
        client.settimeout(60)
        assert client.connect_ex(("::1", free_port)) == errno.ECONNREFUSED


@pytest.mark.parametrize(("tool", "pattern"), [
    ("ip", "netns add"), ("ip", "-batch"), ("ip", "-n mw-"), ("nft", "-f"), ("ip", ""), ("nft", "")])
def test_a_step_that_fails_leaves_nothing_behind(mw, unchanged, tmp_path, tool, pattern):
    place = os.path.realpath(shutil.which(tool))
    real = shutil.copy(place, tmp_path / "real")
    marker = tmp_path / "failed"
    fake = tmp_path / tool
    # Fails once, the first time that the pattern fits; without a pattern it always does.
    fake.write_text(f"#!/bin/bash\nif [[ $* == *'{pattern}'* && ! -e {marker} ]]; then\n"
                    f"{f'touch {marker}' if pattern else ':'}; echo broken on purpose >&2; exit 1; fi\n"
                    f'exec {real} "$@"\n')
    fake.chmod(0o755)
    inside = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'  # tools are not looked for in PATH
    done = proc.run(["unshare", "-m", "--propagation", "slave", "sh", "-c", inside, "sh", fake, place,
                     mw, "run", "-p", "18192:80", "--", "true"], 120, check=False)
    assert done.returncode == 125
    assert b"broken on purpose" in done.stderr and b"mw: cannot " in done.stderr


def test_two_sessions_side_by_side(mw, unchanged, start, server):
    one = start("-p", "18181:80", "--", *server, "80", "one")
    two = start("-p", "18182:80", "--", *server, "80", "two")
    assert one.record["ins4"] != two.record["ins4"]
    assert one.record["ins_uid"] != two.record["ins_uid"]
    for _ in range(3):
        assert get("http://127.0.0.1:18181/", one.background).startswith("one")
        assert get("http://127.0.0.1:18182/", two.background).startswith("two")
    # Neither reaches the other's INS: neither directly nor, unless asked for, through what it publishes.
    inside = ["ip", "netns", "exec", f"mw-{one.name}", "curl", "-sS", "-m", "2"]
    for place in (two.record["ins4"], f"{two.record['host4']}:18182", f"{one.record['host4']}:18182"):
        assert proc.run([*inside, f"http://{place}/"], 60, check=False).returncode == 7, "refused at once"
    assert one.background.stop() == 143
    assert get("http://127.0.0.1:18182/", two.background).startswith("two")


def test_a_port_is_published_once(mw, unchanged, start, server):
    start("-p", "18183:80", "--", *server, "80", "one")
    done = run(mw, "run", "-p", "18183:80", "--", "true")
    assert done.returncode == 125
    assert b"publishes that port" in done.stderr


def test_a_port_in_use_is_refused(mw, unchanged, server, tmp_path):
    with proc.Background([*server, "18184", "host"], tmp_path / "log") as other:
        get("http://[::1]:18184/", other)
        done = run(mw, "run", "-p", "18184:80", "--", "true")
        assert done.returncode == 125
        assert b"in use" in done.stderr


def test_signals_reach_the_command(mw, unchanged, start, tmp_path):
    script = f"trap 'exit 42' HUP; touch {tmp_path}/up; while :; do sleep 0.05; done"
    # A shell cannot trap what was ignored when it began, and under nohup(1) that is.
    session = start("--", "env", "--default-signal=HUP", "bash", "-c", script)
    proc.wait_for((tmp_path / "up").exists, 60, "the trap is set", session.background)
    session.background.process.send_signal(signal.SIGHUP)
    assert session.background.process.wait(60) == 42


def test_daemon_stays_part_of_the_session(mw, unchanged, start, server, tmp_path):
    command = f"setsid {' '.join(server)} 80 daemon & exit 0"
    session = start("-p", "18185:80", "--", "sh", "-c", command)
    assert get("http://127.0.0.1:18185/", session.background).startswith("daemon")
    assert session.background.alive()
    assert session.background.stop() == 0, "the status of the command, which had ended well"


def test_ins_is_replaced_and_listens_again(mw, unchanged, start, server, fair_clock):
    session = start("-p", "18186:80", "--", *server, "80", "again")
    get("http://127.0.0.1:18186/", session.background)
    for _ in range(3):
        first = session.pid("ins")
        os.kill(first, signal.SIGKILL)
        began = fair_clock.now()
        assert get("http://127.0.0.1:18186/", session.background).startswith("again")
        assert fair_clock.now() - began < 1.5
        assert session.pid("ins") != first


def test_driver_is_replaced(mw, unchanged, start, server):
    session = start("-p", "18187:80", "--", *server, "80", "still")
    get("http://127.0.0.1:18187/", session.background)
    first = session.pid("driver")
    os.kill(first, signal.SIGKILL)
    proc.wait_for(lambda: session.pid("driver") not in (0, first), 60, "another driver", session.background)
    assert get("http://127.0.0.1:18187/", session.background).startswith("still")


def test_a_hung_ins_is_replaced(mw, unchanged, start, server):
    session = start("-p", "18188:80", "--", *server, "80", "woken")
    get("http://127.0.0.1:18188/", session.background)
    first = session.pid("ins")
    os.kill(first, signal.SIGSTOP)
    proc.wait_for(lambda: session.pid("ins") not in (0, first), 60, "another INS", session.background)
    assert get("http://127.0.0.1:18188/", session.background).startswith("woken")


def test_a_session_of_the_same_name_on_another_host_is_left_alone(mw, start):
    """Two hosts that share their processes, like containers, have each a folder /run/mwcomms."""
    session = start("--net", "host", "--", "sleep", "100000")
    pids = {who: session.pid(who) for who in ("ins", "driver")}
    there = f"mount -t tmpfs -o mode=755 there /run/mwcomms && {mw} run --net host -- sleep 0 && ls -A /run/mwcomms"
    done = subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", there],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and session.name not in done.stdout, done.stderr
    assert f"session {session.name}:" in done.stderr
    assert {who: session.pid(who) for who in pids} == pids
    for pid in pids.values():
        os.kill(pid, 0)


def test_everything_killed_is_cleaned_up_at_the_next_start(mw, unchanged, start, server):
    session = start("-p", "18190:80", "--", *server, "80", "gone")
    get("http://127.0.0.1:18190/", session.background)
    pids = [session.pid(who) for who in ("owner", "ins", "driver", "application")]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    session.background.process.wait(60)
    proc.wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 60, "their end")
    assert run(mw, "run", "-p", "18190:80", "--", "true").returncode == 0
    assert host_state() == unchanged


def test_a_rule_set_of_the_host_is_left_alone(mw, unchanged, start, server):
    rules = ("table inet mwtest_host {\nchain c {\ntype filter hook input priority 0\n"
             "ip saddr 203.0.113.9 drop\n}\n}\n")
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True, timeout=60)
    try:
        before = output("nft", "list", "ruleset")
        session = start("-p", "18191:80", "--", *server, "80", "x")
        get("http://127.0.0.1:18191/", session.background)
        assert output("nft", "list", "table", "inet", "mwtest_host") in before
        session.background.stop()
        assert output("nft", "list", "ruleset") == before
    finally:
        output("nft", "delete", "table", "inet", "mwtest_host")


def test_without_root_the_hosts_network_is_used(mw, unchanged, tmp_path):
    # A copy, because others need not be able to read the build tree.
    program = copy_of_the_build(mw, tmp_path / "tree")
    open_to_others(tmp_path)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = proc.run([*user, program, "run", "--", "sh", "-c", "exit 5"], 120, check=False,
                    env={"PATH": os.environ["PATH"]})
    assert done.returncode == 5, done.stderr.decode()
    assert b"host's own network" in done.stderr and b"only root" in done.stderr
    refused = proc.run([*user, program, "run", "--net", "isolated", "--", "true"], 120, check=False)
    assert refused.returncode == 2


def test_a_name_in_tmp_that_somebody_took_hinders_nobody(mw, unchanged, tmp_path):
    """Of a user who has no folder of his own: anybody may make any name there first."""
    program = copy_of_the_build(mw, tmp_path / "tree")
    open_to_others(tmp_path)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-u", "XDG_RUNTIME_DIR"]
    taken = [type(tmp_path)(f"/tmp/mwcomms-65534-{secrets.token_hex(4)}") for _ in range(3)]
    for one in taken:
        one.mkdir(mode=0o700)
    try:
        done = proc.run([*user, program, "run", "--net", "host", "--", program, "ps", "--json"], 120)
        assert len(json.loads(done.stdout)["sessions"]) == 1, "and `mw ps` finds it"
        (own,) = [one for one in type(tmp_path)("/tmp").glob("mwcomms-65534-*") if one not in taken]
        assert own.stat().st_uid == 65534 and own.stat().st_mode & 0o77 == 0
        shutil.rmtree(own)
    finally:
        for one in taken:
            one.rmdir()


def test_without_root_bytes_are_carried(mw, unchanged, tmp_path, namespace):
    """A server of somebody who is nobody, with a stack that may do no more than its user."""
    program = copy_of_the_build(mw, tmp_path / "tree")
    open_to_others(tmp_path)
    (tmp_path / "pages").mkdir()
    content = os.urandom(1 << 20)
    (tmp_path / "pages/bytes").write_bytes(content)
    registry = tmp_path / "registry"
    registry.mkdir(mode=0o700)
    os.chown(registry, 65534, 65534)
    words = namespace.wrap(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program, "run", "-v", "--net", "host",
                            "--", "/usr/bin/python3", "-m", "http.server", "-d", tmp_path / "pages", "8000"])
    with proc.Background(words, tmp_path / "log", env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(registry)}) as background:
        def fetch() -> bytes:
            with namespace.entered():
                try:
                    with urllib.request.urlopen("http://127.0.0.1:8000/bytes", timeout=60) as answer:
                        return answer.read()
                except urllib.error.URLError as error:
                    assert isinstance(error.reason, ConnectionRefusedError), error
                    return b""  # not there yet
        assert proc.wait_for(fetch, 60, "the page", background) == content
        stack = int(re.search(r"mwins pid (\d+)", background.log.read_text())[1])
        with open(f"/proc/{stack}/status") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
        assert status["Name"] == "mwins" and status["Seccomp"].strip() == "2"
        assert status["Uid"].split() == ["65534"] * 4 and int(status["CapEff"], 16) == 0
        # It is the stack that listens, not the application.
        listener = proc.run(namespace.wrap(["ss", "-Hltnp", "sport = :8000"]), 60).stdout.decode()
        assert f"pid={stack}," in listener
    assert not any(registry.rglob("owner")), "the session is removed"


def test_installed_tree_works(mw, unchanged, tmp_path):
    build = os.path.dirname(os.path.dirname(mw))
    proc.run(["cmake", "--install", build], 120, env={**os.environ, "DESTDIR": str(tmp_path)})
    installed = next(tmp_path.rglob("bin/mw"))
    done = run(str(installed), "run", "-v", "--", "sh", "-c", "echo $LD_PRELOAD; exit 6")
    assert done.returncode == 6, done.stderr.decode()
    assert str(tmp_path) in done.stdout.decode()
