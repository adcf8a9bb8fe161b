"""Where the built programs are, and how a command is run natively or through MwComms."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODES = ("native", "mw")
ISOLATED = "isolated"


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


def workers() -> list:
    """The option for as many INS workers as MW_TEST_WORKERS says; nothing, the default, if it says nothing."""
    count = os.environ.get("MW_TEST_WORKERS")
    return ["--workers", count] if count else []


def wrap(mode: str, command: list, ports: list = ()) -> list:
    """The command itself, or the command under `mw run`: in the caller's namespace, or isolated with `ports`
    published under their own numbers (80, "53/udp")."""
    command = [str(word) for word in command]
    if mode == "native":
        return command
    run = [str(program("mw")), "run", *workers()]
    if mode == "mw":
        return [*run, "--net", "host", "--", *command]
    if mode != ISOLATED:
        raise ValueError(f"unknown mode {mode}")
    for port in ports:
        number = str(port).partition("/")[0]
        run += ["-p", f"{number}:{port}"]
    return [*run, "--", *command]
