"""soak.py [SECONDS] - moves bytes in every way that programs have, and makes every call, for a long time.

purpose     Pauses and lost wake-ups that only show in one of many thousand transfers.
method      The kernel's own sockets for a quarter of the time, then INSs with one and two workers; then 200 threads
            with calls. Fails on a wrong byte or result, a wake-up that a stack repaired, a pause that is 200 ms longer
            than the kernel's longest, and a call of more than a second. Only an idle machine can be judged by its
            pauses.
"""

import contextlib
import random
import socket
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))

from mwtest import build, netns, proc, repairs  # noqa: E402  (needs the path above)

PATHS = {"native": [], "1 worker": ["--workers", "1"], "2 workers": ["--workers", "2"]}
SERVER = "127.0.0.1"
SLACK = 60  # seconds in which a run comes to its end
PAUSE_LIMIT = 200  # milliseconds
CALL_LIMIT = 1000


def wrapped(path: str, *command: object) -> list:
    words = [str(word) for word in command]
    if path == "native":
        return words
    return [str(build.program("mw")), "run", "--net", "host", *PATHS[path], "--", *words]


@contextlib.contextmanager
def network():
    """A loopback like a network: with its usual 65536 bytes a segment, small buffers stall the kernel for seconds."""
    with netns.Namespace() as namespace:
        netns.ip("-n", namespace.name, "link", "set", "lo", "mtu", "1500")
        yield namespace


def transfers(namespace, path: str, seconds: float, seed: int, largest: int, threads: int) -> dict:
    """(wait, call, option) -> (transfers, bytes, longest pause in ms)."""
    program = build.program("soak")
    done = proc.run(namespace.wrap([program, "drive", seconds, seed, largest, threads,
                                    *wrapped(path, program, "worker")]), seconds + SLACK)
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    return {tuple(row[:3]): (int(row[3]), int(row[4]), float(row[5])) for row in rows}


def calls(namespace, path: str, seconds: float, threads: int) -> dict:
    """call -> (number, longest in ms), while nobody answers where names are asked for."""
    with tempfile.NamedTemporaryFile("w") as conf, socket_that_says_nothing(namespace):
        # The C library reads the first two, the INS's resolver the others.
        conf.write(f"nameserver {SERVER}\noptions timeout:1 attempts:1 retrans:1000 retry:1\n")
        conf.flush()
        inside = f'mount --make-rprivate / && mount --bind {conf.name} /etc/resolv.conf && exec "$@"'
        command = wrapped(path, build.program("calls"), threads, seconds)
        done = proc.run(namespace.wrap(["unshare", "-m", "sh", "-c", inside, "sh", *command]), seconds + SLACK)
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    return {name: (int(number), float(longest)) for name, number, longest in rows}


@contextlib.contextmanager
def socket_that_says_nothing(namespace):
    with namespace.entered():
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with silent:
        silent.bind((SERVER, 53))
        yield


def print_transfers(rows: dict) -> None:
    """The ten longest pauses of each path, longest first."""
    print(f"{'path':10} {'wait':9} {'call':9} {'option':17} {'transfers':>9} {'MB':>9} {'longest pause/ms':>17}")
    for path, found in rows.items():
        for key, (number, moved, longest) in sorted(found.items(), key=lambda row: -row[1][2])[:10]:
            print(f"{path:10} {key[0]:9} {key[1]:9} {key[2]:17} {number:9} {moved / 1e6:9.1f} {longest:17.1f}")


def print_calls(rows: dict) -> None:
    print(f"{'call':18}" + "".join(f"{path + '/ms':>16}" for path in rows))
    for name in rows["native"]:
        print(f"{name:18}" + "".join(f"{found[name][1]:16.1f}" for found in rows.values()))


def judge(moved: dict, called: dict) -> list:
    """What is wrong with the figures, in sentences."""
    wrong = []
    limit = PAUSE_LIMIT + max(longest for _, _, longest in moved["native"].values())
    for path, found in moved.items():
        wrong += [f"{path}: {' '.join(key)} stood still for {longest:.0f} ms, the kernel's longest and {PAUSE_LIMIT} ms"
                  f" are {limit:.0f} ms" for key, (_, _, longest) in found.items() if longest > limit]
    for path, found in called.items():
        wrong += [f"{path}: {name} took {longest:.0f} ms" for name, (_, longest) in found.items()
                  if longest > CALL_LIMIT and name != "getaddrinfo"]
    return wrong


def main(words: list) -> int:
    if len(words) > 1 or not all(word.isdigit() and int(word) > 0 for word in words):
        print("usage: soak.py [SECONDS]", file=sys.stderr)
        return 2
    seconds = int(words[0]) if words else 600
    seed = random.randrange(1 << 31)
    print(f"seed {seed}", flush=True)
    watch = repairs.Watch()
    try:
        with network() as namespace:
            moved = {path: transfers(namespace, path, seconds / 4, seed, 64 << 20, 4) for path in PATHS}
            print_transfers(moved)
            called = {path: calls(namespace, path, seconds / 12, 200) for path in PATHS}
            print_calls(called)
    except AssertionError as failure:
        wrong = [str(failure)]
    else:
        wrong = judge(moved, called)
    if grown := watch.grown():
        wrong.append(repairs.sentence(grown))
    for sentence in wrong:
        print(f"soak.py: failed: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
