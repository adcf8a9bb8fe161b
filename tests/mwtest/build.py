"""Where the built programs are, and how a command is run natively or through MwComms."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODES = ("native", "mw")


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


def wrap(mode: str, command: list) -> list:
    """The command itself, or the command under `mw run` in the caller's namespace."""
    command = [str(word) for word in command]
    if mode == "native":
        return command
    if mode != "mw":
        raise ValueError(f"unknown mode {mode}")
    return [str(program("mw")), "run", "--net", "host", "--", *command]
