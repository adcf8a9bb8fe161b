"""What a program preloads into those that it starts goes in beside the shim, which stays, whatever the environment."""

import json

import pytest

from mwtest import proc

THEIRS = "libnss_files.so.2"  # any library of the system
PROGRAM = """
import ctypes, json, os, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)
if sys.argv[1] == "all":
    for job in json.loads(sys.argv[2]):
        done = subprocess.run([sys.executable, __file__, job[0], json.dumps(job[1])], stdout=subprocess.PIPE)
        print(done.stdout.decode().strip() or "null", flush=True)
    sys.exit(0)
way, environment = sys.argv[1], json.loads(sys.argv[2])
command = ["/usr/bin/python3", "-c", '''
import json, os
with open("/proc/self/maps") as file:
    maps = file.read()
print(json.dumps([os.environ.get("LD_PRELOAD"), "libmwshim" in maps, "libnss_files" in maps, "MWCOMMS_SESSION" in os.environ,
                  [line for line in os.environ if line.startswith("KEEP")]]), flush=True)
''']
ours = next(word for word in os.environ["LD_PRELOAD"].split(":") if word.endswith("/libmwshim.so"))
environment = {name: value.replace("OURS", ours) for name, value in environment.items()}

def words(of):
    array = (ctypes.c_char_p * (len(of) + 1))()
    array[:len(of)] = [word.encode() for word in of]
    return array

path, argv, envp = command[0].encode(), words(command), words([f"{n}={v}" for n, v in environment.items()])

def own_environment():
    libc.clearenv()
    for name, value in environment.items():
        libc.setenv(name.encode(), value.encode(), 1)
    return " ".join("'" + word.replace("'", "'\\\\''") + "'" for word in command).encode()

ways = {
    "execve": lambda: libc.execve(path, argv, envp),
    "execvpe": lambda: libc.execvpe(b"python3", argv, envp),
    "execle": lambda: libc.execle(path, *(word.encode() for word in command), None, envp),
    "fexecve": lambda: libc.fexecve(os.open(path, os.O_RDONLY), argv, envp),
    "execveat": lambda: libc.execveat(-100, path, argv, envp, 0),
    "syscall": lambda: libc.syscall(ctypes.c_long(59), path, argv, envp),
    "posix_spawn": lambda: libc.posix_spawn(None, path, None, None, argv, envp) or os.wait(),
    "posix_spawnp": lambda: libc.posix_spawnp(None, path, None, None, argv, envp) or os.wait(),
    "subprocess": lambda: subprocess.run(command, env=environment),
    "shell": lambda: subprocess.run(["env", "-i", *(f"{n}={v}" for n, v in environment.items()), *command]),
    "execv": lambda: (own_environment(), libc.execv(path, argv)),
    "system": lambda: libc.system(own_environment()),
    "popen": lambda: print(os.read(popen(own_environment()), 1000).decode(), end=""),
}

def popen(line):
    libc.popen.restype = ctypes.c_void_p
    return libc.fileno(ctypes.c_void_p(libc.popen(line, b"r")))

ways[way]()
"""
WAYS = ("execve", "execvpe", "execle", "fexecve", "execveat", "syscall", "posix_spawn", "posix_spawnp", "subprocess", "shell",
        "execv", "system", "popen")


GIVEN = [
    ({}, "OURS"), ({"LD_PRELOAD": ""}, "OURS"), ({"LD_PRELOAD": "OURS"}, "OURS"),
    ({"LD_PRELOAD": f"OURS {THEIRS}"}, f"OURS {THEIRS}"), ({"LD_PRELOAD": f"{THEIRS}:OURS"}, f"{THEIRS}:OURS"),
    ({"LD_PRELOAD": "libnothing_libmwshim.so"}, "OURS:libnothing_libmwshim.so"),
]


@pytest.fixture
def started(mw, tmp_path):
    """started(jobs) -> for each way and environment what the program that was started so says of itself."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)

    def start(jobs: list) -> list:
        done = proc.run([mw, "run", "--", "/usr/bin/python3", script, "all", json.dumps(jobs)], 60)
        return [json.loads(line) for line in done.stdout.decode().splitlines()]

    return start


def test_it_is_joined_with_ours(started):
    environment = {"KEEP": "1", "LD_PRELOAD": THEIRS}
    for way, answer in zip(WAYS, started([(way, environment) for way in WAYS]), strict=True):
        assert answer is not None, way
        preload, *rest = answer
        assert preload.endswith(f"/libmwshim.so:{THEIRS}"), way
        assert preload.count(":") == 1, way
        assert rest == [True, True, True, ["KEEP"]], way


def test_it_is_there_once_and_always(started):
    jobs = [(way, given) for way in ("execve", "system") for given, _ in GIVEN]
    expected = [text for _ in range(2) for _, text in GIVEN]
    for job, preload, answer in zip(jobs, expected, started(jobs), strict=True):
        assert answer is not None, job
        ours = next(word for word in answer[0].replace(":", " ").split() if word.endswith("/libmwshim.so"))
        assert answer[0].replace(ours, "OURS") == preload, job
        assert answer[1], job
        assert answer[3], job
