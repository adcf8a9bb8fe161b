"""Where the built programs are, and how a command is run natively or through MwComms."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODES = ("native", "mw")
ISOLATED = "isolated"
HOST = "192.0.2.10"  # the address of a host of a test's own (host.py)


def directory() -> Path:
    """The build tree under test: $MW_BUILD, relative to the project's root, or build/release."""
    return ROOT / os.environ.get("MW_BUILD", "build/release")


def program(name: str) -> Path:
    """A built program; fails with the remedy if it is missing."""
    for folder in ("bin", "tests", "bench"):
        path = directory() / folder / name
        if path.exists():
            return path
    raise FileNotFoundError(f"{name} is not in {directory()}: build first, or set MW_BUILD")


def wrap(mode: str, command: list, ports: list = (), workers: int = None) -> list:
    """The command itself, or the command under `mw run`: in the caller's namespace, or isolated with `ports`
    published under their own numbers (80, "53/udp"). The INS has `workers`, or else as many as MW_TEST_WORKERS says."""
    command = [str(word) for word in command]
    if mode == "native":
        return command
    count = workers or os.environ.get("MW_TEST_WORKERS")
    run = [str(program("mw")), "run", *(["--workers", str(count)] if count else [])]
    if mode == "mw":
        return [*run, "--net", "host", "--", *command]
    if mode != ISOLATED:
        raise ValueError(f"unknown mode {mode}")
    run += ["--egress", f"{HOST},dns"]  # what a test serves for it on the host
    for port in ports:
        number = str(port).partition("/")[0]
        run += ["-p", f"{number}:{port}"]
    return [*run, "--", *command]
