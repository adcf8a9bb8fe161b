"""Programs that the shim does not reach are not started by others of a session either, however that is done."""

import errno
import json
import os
import shutil
import socket
import subprocess

import pytest

from mwtest import proc
from mwtest.session import copy_of_the_build, open_to_others

LISTENER = r"""
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef GO
__asm__(".section .note.go.buildid,\"a\",@note\n.long 4,4,4\n.asciz \"Go\"\n.byte 0\n.ascii \"test\"\n.text\n");
#endif
int main(void) {
  struct sockaddr_in a = {.sin_family = AF_INET};
  int s = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(s, (struct sockaddr*)&a, sizeof a) != 0 || listen(s, 1) != 0) return 3;
  puts("ran");
  return 0;
}
"""
# A program that enters the kernel by itself, as Go's do.
RAW = r"""
__asm__(".globl _start\n_start:\n mov $1, %eax\n mov $1, %edi\n lea text(%rip), %rsi\n mov $4, %edx\n syscall\n"
        " mov $60, %eax\n xor %edi, %edi\n syscall\n.section .rodata\ntext: .ascii \"ran\\n\"\n");
"""

DRIVER = r"""
import ctypes, errno, json, os, shutil, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)

def words(of):
    array = (ctypes.c_char_p * (len(of) + 1))()
    array[:len(of)] = [os.fsencode(word) for word in of]
    return array

class Actions(ctypes.Structure):
    _fields_ = [("room", ctypes.c_char * 80)]

def memory(program):
    fd = os.memfd_create("copy")
    with open(program, "rb") as file:
        os.write(fd, file.read())
    return fd

def spawned(program, call):
    pid = ctypes.c_int()
    error = call(pid)
    if error:
        ctypes.set_errno(error)
        return
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid.value, 0)[1]))

def spawned_from_folder(program):
    actions, folder, name = Actions(), *os.path.split(program)
    libc.posix_spawn_file_actions_init(ctypes.byref(actions))
    libc.posix_spawn_file_actions_addchdir_np(ctypes.byref(actions), os.fsencode(folder))
    spawned(program, lambda pid: libc.posix_spawn(ctypes.byref(pid), b"./" + os.fsencode(name), ctypes.byref(actions),
                                                  None, words([name]), words([])))

def found(program, call):
    os.environ["PATH"] = os.path.dirname(program) + ":/usr/bin"
    libc.setenv(b"PATH", os.fsencode(os.environ["PATH"]), 1)
    call(os.fsencode(os.path.basename(program)))

# Each becomes the program, or starts it and ends with its status.
EXECS = {
    "execve": lambda p: libc.execve(os.fsencode(p), words([p]), words([])),
    "execv": lambda p: libc.execv(os.fsencode(p), words([p])),
    "execl": lambda p: libc.execl(os.fsencode(p), os.fsencode(p), None),
    "execle": lambda p: libc.execle(os.fsencode(p), os.fsencode(p), None, words([])),
    "execlp": lambda p: libc.execlp(os.fsencode(p), os.fsencode(p), None),
    "execvp": lambda p: found(p, lambda name: libc.execvp(name, words([name]))),
    "execvpe": lambda p: found(p, lambda name: libc.execvpe(name, words([name]), words([]))),
    "fexecve": lambda p: libc.fexecve(os.open(p, os.O_RDONLY), words([p]), words([])),
    "fexecve_path": lambda p: libc.fexecve(os.open(p, os.O_PATH), words([p]), words([])),
    "memfd": lambda p: libc.fexecve(memory(p), words([p]), words([])),
    "execveat": lambda p: libc.execveat(os.open(os.path.dirname(p), os.O_PATH), os.fsencode(os.path.basename(p)),
                                        words([p]), words([]), 0),
    "syscall": lambda p: libc.syscall(ctypes.c_long(59), os.fsencode(p), words([p]), words([])),
    "syscall_at": lambda p: libc.syscall(ctypes.c_long(322), ctypes.c_long(os.open(p, os.O_RDONLY)), b"", words([p]),
                                         words([]), ctypes.c_long(0x1000)),
    "python": lambda p: os.execv(p, [p]),
    "posix_spawn": lambda p: spawned(p, lambda pid: libc.posix_spawn(ctypes.byref(pid), os.fsencode(p), None, None,
                                                                     words([p]), words([]))),
    "posix_spawnp": lambda p: found(p, lambda name: spawned(p, lambda pid: libc.posix_spawnp(
        ctypes.byref(pid), name, None, None, words([name]), words([])))),
    "posix_spawn_folder": spawned_from_folder,
    "ld.so": lambda p: libc.execv(b"/lib64/ld-linux-x86-64.so.2", words(["ld", "--inhibit-cache", p])),
}

def script(program, name, text):
    path = os.path.join(os.environ["PLACE"], name)
    with open(path, "w") as file:
        file.write(text.replace("PROGRAM", program))
    os.chmod(path, 0o755)
    return path

COMMANDS = {
    "sh": lambda p: ["sh", "-c", f"{p}; exit $?"],
    "bash": lambda p: ["bash", "-c", f"{p}; exit $?"],
    "bash exec": lambda p: ["bash", "-c", f"exec {p}"],
    "env": lambda p: ["env", "A=1", p],
    "env -i": lambda p: ["env", "-i", p],
    "script": lambda p: [script(p, "start.sh", "#!/bin/sh\nPROGRAM\n")],
    "plain script": lambda p: ["bash", "-c", script(p, "plain", "PROGRAM\n")],
    "interpreter": lambda p: ["sh", "-c", script(p, "interpreted", "#!PROGRAM\n")],
    "chain": lambda p: ["sh", "-c", script(script(p, "inner", "#!PROGRAM\n"), "outer", "#! PROGRAM -x\n")],
    "xargs": lambda p: ["sh", "-c", f"echo | xargs {p}"],
    "find": lambda p: ["find", p, "-exec", "{}", ";"],
    "perl system": lambda p: ["perl", "-e", f'exit(system("{p}") >> 8 || 0)'],
    "perl exec": lambda p: ["perl", "-e", f'exec("{p}") or exit(126)'],
    "subprocess": lambda p: [sys.executable, "-c", f"import subprocess, sys; sys.exit(subprocess.call(['{p}']))"],
    "os.system": lambda p: [sys.executable, "-c", f"import os; os._exit(os.waitstatus_to_exitcode(os.system('{p}')))"],
    "popen": lambda p: [sys.executable, "-c", f"import os; print(os.popen('{p}').read(), end='')"],
    "timeout": lambda p: ["timeout", "20", p],
    "nohup": lambda p: ["nohup", p],
    "setsid": lambda p: ["setsid", "-w", p],
    "node": lambda p: ["node", "-e", f"const d = require('child_process').spawnSync('{p}', [], {{stdio: 'inherit'}});"
                                     "process.exit(d.error ? 126 : d.status)"],
}

if __name__ == "__main__":
    what, program = sys.argv[1:3]
    if what == "all":
        answers = {}
        for way in [*EXECS, *COMMANDS]:
            one = [sys.executable, __file__, way, program] if way in EXECS else COMMANDS[way](program)
            if shutil.which(one[0]) is None:
                continue
            done = subprocess.run(one, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
            answers[way] = [done.returncode, done.stdout, done.stderr]
        print(json.dumps(answers))
    elif what in EXECS:
        try:
            EXECS[what](program)
            error = ctypes.get_errno()
        except OSError as failure:
            error = failure.errno
        print("errno", errno.errorcode.get(error, error), flush=True)
"""


@pytest.fixture(scope="module")
def programs(mw, tmp_path_factory):
    """name -> path of the same listener, built in several ways."""
    place = tmp_path_factory.mktemp("uncovered")
    open_to_others(place)
    (place / "listener.c").write_text(LISTENER)
    (place / "raw.c").write_text(RAW)
    (place / "driver.py").write_text(DRIVER)
    built = {"driver": place / "driver.py", "place": place}
    for name, source, flags in [("dynamic", "listener.c", []), ("static", "listener.c", ["-static"]),
                                ("static-pie", "listener.c", ["-static-pie"]), ("go-dynamic", "listener.c", ["-DGO"]),
                                ("go", "listener.c", ["-DGO", "-static"]),
                                ("raw", "raw.c", ["-nostdlib", "-static"])]:
        built[name] = place / name
        proc.run(["gcc", "-w", "-o", built[name], place / source, *flags], 120)
    return built


def lines_of(mw_text: str) -> list:
    return [line for line in mw_text.splitlines() if line.startswith("mw: ")]


def ways(mw, programs, name, *options, **more) -> dict:
    program = programs[name]
    done = proc.run([mw, "run", *options, "--", "/usr/bin/python3", programs["driver"], "all", program], 180,
                    env={**os.environ, "PLACE": str(programs["place"])}, **more)
    return json.loads(done.stdout)


def test_what_is_covered_is_started_in_every_way(mw, unchanged, programs):
    answers = ways(mw, programs, "dynamic")
    assert len(answers) > 30
    for way, (status, out, err) in answers.items():
        assert out == "ran\n", (way, status, err)
        assert status == 0, way
        assert lines_of(err) == [], way


@pytest.mark.parametrize("network", ["isolated", "host"])
@pytest.mark.parametrize(("name", "word"), [("static", "is statically linked"), ("static-pie", "is statically linked"),
                                            ("go", "is a Go program"), ("go-dynamic", "is a Go program"),
                                            ("raw", "is statically linked")])
def test_what_is_not_is_refused_in_every_way(mw, unchanged, programs, name, word, network):
    if network == "host" and name != "static":
        pytest.skip("one of them is enough there")
    for way, (status, out, err) in ways(mw, programs, name, "--net", network).items():
        assert "ran" not in out, way
        (line,) = lines_of(err)
        assert word in line, way
        assert "It was not started" in line, way
        assert f"--allow-uncovered={'memfd:copy' if way == 'memfd' else name}" in line, way
        if out.startswith("errno"):
            assert out == "errno EACCES\n", way
        elif way not in ("popen", "find", "xargs", "perl system", "subprocess"):
            assert status == 126, (way, err)


@pytest.mark.parametrize("option", ["--allow-uncovered", "--allow-uncovered=NAME", "--allow-uncovered=PATH",
                                    "--allow-uncovered=x,NAME"])
def test_what_is_allowed_runs_and_is_told(mw, unchanged, programs, option):
    static = programs["static"]
    option = option.replace("NAME", "static").replace("PATH", str(static))
    done = proc.run([mw, "run", option, "--", "sh", "-c", f"{static}; echo done"], 60)
    assert done.stdout == b"ran\ndone\n"
    (line,) = [line for line in lines_of(done.stderr.decode()) if "statically linked" in line]
    assert "runs uncovered" in line
    # The command itself too.
    done = proc.run([mw, "run", option, "--", static], 60)
    assert done.stdout == b"ran\n"
    assert b"runs uncovered" in done.stderr


def test_only_what_is_named_is_allowed(mw, unchanged, programs):
    for option in ("--allow-uncovered=stati", "--allow-uncovered=/bin/true", "--allow-uncovered=static-pie"):
        done = proc.run([mw, "run", option, "--", "sh", "-c", str(programs["static"])], 60, check=False)
        assert done.returncode == 126, option
        assert b"ran" not in done.stdout


def test_a_configuration_file_allows_as_well(mw, unchanged, programs, tmp_path):
    config = tmp_path / "session.toml"
    config.write_text('[application]\nallow_uncovered = ["static"]\n')
    command = ["--", "sh", "-c", f"{programs['static']}; {programs['static-pie']}"]
    done = proc.run([mw, "run", "--config", config, *command], 60, check=False)
    assert done.stdout == b"ran\n"
    assert done.returncode == 126
    # The command line counts more.
    done = proc.run([mw, "run", "--config", config, "--allow-uncovered=static-pie", *command], 60)
    assert done.stdout == b"ran\n"
    assert b"static is statically linked" in done.stderr


def test_no_environment_widens_what_is_allowed(mw, unchanged, programs):
    static = programs["static"]
    for script in (f"MWCOMMS_UNCOVERED='*' {static}", f"env MWCOMMS_UNCOVERED='*' sh -c {static}",
                   f"export MWCOMMS_UNCOVERED=static; sh -c {static}", f"env -i MWCOMMS_UNCOVERED=static {static}",
                   f"unset MWCOMMS_UNCOVERED; sh -c {static}"):
        done = proc.run([mw, "run", "--", "sh", "-c", script], 60, check=False,
                        env={**os.environ, "MWCOMMS_UNCOVERED": "*"})
        assert b"ran" not in done.stdout, script
        assert done.returncode == 126, script


def test_no_environment_takes_away_what_is_allowed(mw, unchanged, programs):
    script = f"unset MWCOMMS_UNCOVERED; env -i sh -c 'env -i sh -c {programs['static']}'"
    done = proc.run([mw, "run", "--allow-uncovered=static", "--", "sh", "-c", script], 60)
    assert done.stdout == b"ran\n"


def test_a_search_of_path_ends_at_the_first(mw, unchanged, programs, tmp_path):
    """Neither another program of that name is taken, nor is the same one told twice."""
    for folder, name in (("first", "static"), ("last", "dynamic")):
        (tmp_path / folder).mkdir()
        shutil.copy(programs[name], tmp_path / folder / "server")
    (tmp_path / "again").symlink_to("first")
    program = ("import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
               "words = (ctypes.c_char_p * 2)(b'server', None)\n"
               "print(libc.execvp(b'server', words), ctypes.get_errno(), flush=True)")
    path = f"{tmp_path}/none:{tmp_path}/first:{tmp_path}/last:/usr/bin:/bin"
    done = proc.run([mw, "run", "--", "/usr/bin/python3", "-c", program], 60, env={**os.environ, "PATH": path})
    assert done.stdout.decode() == f"-1 {errno.EACCES}\n"
    path = f"{tmp_path}/first:{tmp_path}/again:/usr/bin:/bin"
    done = proc.run([mw, "run", "--", "/bin/sh", "-c", "server"], 60, check=False, env={**os.environ, "PATH": path})
    assert done.returncode == 126
    assert len([line for line in lines_of(done.stderr.decode()) if "server" in line]) == 1


def test_programs_with_other_rights(mw, unchanged, programs, tmp_path):
    """As the kernel judges: what changes no id is started, and so is what cannot change one."""
    open_to_others(tmp_path)
    setuid, setgid = tmp_path / "setuid", tmp_path / "setgid"
    for program, mode, group in ((setuid, 0o4755, 0), (setgid, 0o2755, 42)):
        shutil.copy(programs["dynamic"], program)
        os.chown(program, 0, group)
        program.chmod(mode)
    user = "setpriv --reuid 65534 --regid 65534 --clear-groups"
    for script, expected in [
            (f"{setuid}", "ran"), (f"{user} {setuid}", "is setuid"), (f"{user} sh -c {setuid}", "is setuid"),
            (f"{user} --no-new-privs {setuid}", "ran"), (f"{user} --no-new-privs sh -c {setuid}", "ran"),
            (f"{setgid}", "is setgid"), (f"setpriv --regid 42 --clear-groups {setgid}", "ran"),
            (f"{user} {programs['dynamic']}", "ran"),
            (f"setpriv --euid 65534 {programs['dynamic']}", "effective ids")]:
        done = proc.run([mw, "run", "--", "sh", "-c", script], 60, check=False)
        text = done.stderr.decode()
        assert (done.stdout == b"ran\n") == (expected == "ran"), (script, text)
        assert expected == "ran" or expected in text, script
        assert done.returncode == (0 if expected == "ran" else 126) or "setpriv" in text, (script, text)


def test_without_root_what_cannot_be_read_is_refused(mw, unchanged, programs, tmp_path):
    open_to_others(tmp_path)
    program = tmp_path / "unreadable"
    shutil.copy(programs["dynamic"], program)
    program.chmod(0o711)
    user = "setpriv --reuid 65534 --regid 65534 --clear-groups"
    done = proc.run([mw, "run", "--", "sh", "-c", f"{program}; {user} sh -c {program}"], 60, check=False)
    assert done.stdout == b"ran\n"
    assert "cannot be read (Permission denied)" in done.stderr.decode()


def test_where_the_library_is_not_there(mw, unchanged, programs, tmp_path):
    """The dynamic linker would leave it out: for a user who may not read it, and in a chroot."""
    program = copy_of_the_build(mw, tmp_path / "tree")
    (tmp_path / "tree/lib").chmod(0o700)
    cage = tmp_path / "cage"
    for file in ("/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"):
        (cage / file[1:]).parent.mkdir(parents=True)
        shutil.copy(file, cage / file[1:])
    shutil.copy(programs["dynamic"], cage / "dynamic")
    open_to_others(programs["place"])
    user = "setpriv --reuid 65534 --regid 65534 --clear-groups"
    for words, why in [(f"{user} {programs['dynamic']}", "Permission denied"),
                       (f"chroot {cage} /dynamic", "No such file or directory")]:
        done = proc.run([program, "run", "--", "sh", "-c", words], 60, check=False)
        assert done.stdout == b"", words
        assert f"dynamic is started where libmwshim.so cannot be read ({why})" in done.stderr.decode(), words
        done = proc.run([program, "run", "--allow-uncovered=dynamic", "--", "sh", "-c", words], 60)
        assert done.stdout == b"ran\n", words


def test_threads_that_start_programs_at_once(mw, unchanged, programs):
    program = f"""
import subprocess, threading
bad = []
def work(path, expected):
    for _ in range(40):
        done = subprocess.run(["sh", "-c", path], capture_output=True)
        if (done.returncode, done.stdout) != expected:
            bad.append((path, done))
threads = [threading.Thread(target=work, args=args) for args in
           [({str(programs['static'])!r}, (126, b"")), ({str(programs['dynamic'])!r}, (0, b"ran\\n"))] * 4]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(bad)
"""
    done = proc.run([mw, "run", "--", "/usr/bin/python3", "-c", program], 120)
    assert done.stdout == b"[]\n"


def test_a_socket_as_standard_error_of_a_vfork_child_stays_whole(mw, unchanged, programs, start, free_port, tmp_path):
    """Its line cannot be written there, and must not be taken for bytes that go around the C library."""
    server = tmp_path / "cgi.py"
    server.write_text(f"""
import socket, subprocess
listener = socket.create_server(("0.0.0.0", 80))
while True:
    connection, _ = listener.accept()
    try:
        subprocess.Popen([{str(programs['static'])!r}], stdout=connection, stderr=connection)
    except PermissionError:
        connection.sendall(b"refused")
    connection.close()
""")
    session = start("-p", f"{free_port}:80", "--", "/usr/bin/python3", str(server))

    def ask():
        try:
            with socket.create_connection(("127.0.0.1", free_port), 5) as client:
                return client.makefile("rb").read()
        except OSError:
            return None
    assert proc.wait_for(ask, 60, "an answer", session.background) == b"refused"
    assert "bypass: bytes" not in session.background.tail()


def test_a_process_without_free_descriptors_still_starts_programs(mw, unchanged, programs):
    program = f"""
import os, resource, subprocess
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
try:
    while True:
        os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
except OSError:
    pass
child = os.posix_spawn({str(programs['dynamic'])!r}, ["x"], {{}})
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = proc.run([mw, "run", "--", "/usr/bin/python3", "-c", program], 60)
    assert done.stdout == b"ran\n0\n(64, 4096)\n", done.stderr


def test_another_network_namespace_is_the_programs_own_choice(mw, unchanged, programs):
    done = proc.run([mw, "run", "--", "unshare", "-n", "sh", "-c", str(programs["static"])], 60)
    assert done.stdout == b"ran\n"
    assert "statically linked" not in done.stderr.decode()


def test_wrong_lists_are_told(mw):
    for option in ("--allow-uncovered=", "--allow-uncovered=a/b", "--allow-uncovered=" + ",".join(["x" * 100] * 50)):
        done = subprocess.run([mw, "run", option, "--", "true"], capture_output=True, timeout=60)
        assert done.returncode == 2, option
        assert b"allow-uncovered" in done.stderr, option
