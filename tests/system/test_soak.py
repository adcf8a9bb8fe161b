"""Bytes in every way that programs have, and every call, for some seconds: all contents and results are right, and no
wake-up had to be repaired (which every test watches). `./dev soak` does it for long, and judges pauses too."""

import random

import pytest
import soak
from mwtest import build, proc

MEGABYTE = 1 << 20


@pytest.mark.parametrize("path", ["1 worker", "2 workers"])
def test_every_way_to_move_bytes(path):
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    with soak.network() as namespace:
        small = soak.transfers(namespace, path, 4, seed, MEGABYTE, 4)
        large = soak.transfers(namespace, path, 4, seed, 64 * MEGABYTE, 2)
    assert small and large, "nothing was moved"


@pytest.mark.parametrize("path", ["1 worker", "2 workers"])
def test_every_call_by_many_threads(path):
    with soak.network() as namespace:
        made = soak.calls(namespace, path, 3, 30)
    assert [name for name, (number, _) in made.items() if number == 0] == []


def test_a_wrong_byte_is_found():
    program = build.program("soak")
    with soak.network() as namespace:
        done = proc.run(namespace.wrap([program, "drive", 20, 1, MEGABYTE, 1, program, "spoiling-worker"]), 60,
                        check=False)
    assert done.returncode == 1 and b"wrong bytes" in done.stderr, done.stderr.decode()


NATIVE = {("level", "send", "none"): (9, 9, 40.0)}
QUICK = {"socket": (9, 1.0), "getaddrinfo": (9, 9000.0)}


@pytest.mark.parametrize(("longest", "call", "said"), [
    (239, 999, []), (241, 999, ["stood still for 241 ms"]), (239, 1001, ["socket took 1001 ms"])])
def test_what_the_long_form_judges(longest, call, said):
    moved = {"native": NATIVE, "1 worker": {("edge", "send", "none"): (9, 9, longest)}}
    wrong = soak.judge(moved, {"native": QUICK, "1 worker": {**QUICK, "socket": (9, call)}})
    assert len(wrong) == len(said) and all(part in one for part, one in zip(said, wrong)), wrong
