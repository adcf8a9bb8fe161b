#!/usr/bin/env python3
"""Checks which folder includes what (docs/decisions/0001): prints each stray include, exits 1 if there is one.

usage: check_includes.py [ROOT]
"""
import pathlib
import re
import sys

# Folder below src/ (or at the top) -> project folders that its files may include from.
MAY_USE = {
    "abi": set(),
    "base": set(),
    "coverage": {"base"},
    "ring": {"abi", "base"},
    "codec": {"abi", "base"},
    "transport": {"abi", "base", "ring", "codec"},
    "registry": {"abi", "base", "ring"},
    "netflow": {"abi", "base"},
    "guard": {"base", "netflow"},
    "shim": {"abi", "base", "coverage", "ring", "codec", "transport"},
    "ins": {"abi", "base", "ring", "codec", "transport", "registry"},
    "driver": {"abi", "base", "ring", "transport", "registry", "netflow"},
    "frontend": {"base", "coverage", "registry"},
    "cli": {"base", "netflow", "guard", "registry", "frontend", "transport"},
    "kmod": {"abi", "kmod/core"},
    "kmod/core": {"abi"},
}

# Wings of a folder, the lowest first: files include from their own wing and from lower ones. Files that stand in no
# wing put the folder together, and include from all of them; nothing in a wing includes them.
WINGS = {
    "ins": ["policy", "tables", "seams", "report", "worker", "control"],
    "shim": ["process", "socket", "calls", "libc"],
}

# Single files that a folder may use although it may not use the rest of theirs.
EXCEPTIONS = {("cli", "transport/local/session_fds.h")}
EXCEPTION_ONLY = {("cli", "transport")}

# System headers that a folder never needs if it keeps to its task. Its unit tests may use them.
IO = {"cstdio", "stdio.h", "iostream", "fstream", "ostream", "istream", "sstream", "unistd.h", "fcntl.h",
      "sys/socket.h", "sys/mman.h", "sys/epoll.h", "sys/eventfd.h"}
LOCKS = {"mutex", "shared_mutex", "condition_variable", "semaphore", "pthread.h", "thread"}
ALLOCATION = {"vector", "string", "map", "set", "unordered_map", "unordered_set", "list", "deque", "memory",
              "functional"}
NEVER_SYSTEM = {
    "coverage": LOCKS | ALLOCATION | {"iostream", "fstream", "ostream", "istream", "sstream", "unistd.h"},
    "ring": IO | LOCKS | ALLOCATION,
    "shim": {"iostream", "fstream", "ostream", "istream", "sstream", "thread", "mutex", "shared_mutex",
             "condition_variable", "future", "stdexcept", "exception", "semaphore"},
}
ONLY_SYSTEM = {
    "abi": {"stddef.h", "stdint.h", "linux/stddef.h", "linux/types.h"},
    "kmod/core": {"stdbool.h", "stddef.h", "stdint.h", "string.h", "linux/string.h", "linux/types.h", "linux/atomic.h",
                  "asm/barrier.h", "asm/rmwcc.h"},
}
NEVER_FILE = {"ring": {"base/log.h"}}

# What tests of several folders share; a unit test may include it, the product may not.
TEST_SUPPORT = "tests/support/"

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def folder_of(path):
    """The name in MAY_USE that a file belongs to, or None if no rule is about it."""
    parts = path.parts
    if parts[0] == "src" and len(parts) > 2:
        return parts[1]
    if parts[0] == "kmod":
        return "kmod/core" if parts[1] == "core" else "kmod"
    return "abi" if parts[0] == "abi" else None


def target_of(name, folder):
    """The folder that an include in quotes names."""
    if "/" not in name:
        return folder
    return "kmod/core" if name.startswith("kmod/core/") else name.split("/")[0]


def wing_of(folder, parts):
    """Which wing of the folder a file stands in, as its place in WINGS[folder]; None if in none."""
    wings = WINGS.get(folder, [])
    return wings.index(parts[0]) if len(parts) > 1 and parts[0] in wings else None


def wing_fault(folder, path, name):
    """The sentence about an include from the same folder that goes up, or None."""
    if folder not in WINGS:
        return None
    wings = WINGS[folder]
    mine, other = wing_of(folder, path.parts[2:]), wing_of(folder, name.split("/")[1:])
    if mine is None:
        return None if len(path.parts) == 3 else f"src/{folder}/{path.parts[2]} is no wing of {folder}: {', '.join(wings)}"
    if other is None:
        return f"{folder}/{wings[mine]} may not include {name}, which stands in no wing"
    return None if other <= mine else f"{folder}/{wings[mine]} may not include from {folder}/{wings[other]} ({name})"


def faults_of(path, text):
    """Yields (line number, sentence) for each include of this file that is not allowed."""
    folder = folder_of(path)
    if folder is None:
        return
    if folder not in MAY_USE:
        yield 0, f"no rule says what src/{folder} may include: add one here and in docs/decisions/0001"
        return
    is_test = path.stem.endswith("_test") or path.name.startswith("fake_")
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        kind, name = match.groups()
        if kind == '"':
            target = target_of(name, folder)
            if is_test and name.startswith(TEST_SUPPORT):
                continue
            if target == folder or (folder, name) in EXCEPTIONS:
                if name in NEVER_FILE.get(folder, ()):
                    yield number, f"{folder} may not include {name}"
                elif target == folder and (sentence := wing_fault(folder, path, name)):
                    yield number, sentence
            elif (folder, target) in EXCEPTION_ONLY:
                yield number, f"{folder} may include only some files of {target}, and {name} is none of them"
            elif target not in MAY_USE:
                yield number, f'"{name}" is not in the project: write <{name}>, or the path from src/'
            elif target not in MAY_USE[folder]:
                yield number, f"{folder} may not include from {target} ({name})"
            elif name in NEVER_FILE.get(folder, ()):
                yield number, f"{folder} may not include {name}"
        elif folder in ONLY_SYSTEM and name not in ONLY_SYSTEM[folder]:
            yield number, f"{folder} may not include <{name}>"
        elif not is_test and name in NEVER_SYSTEM.get(folder, ()):
            yield number, f"{folder} may not include <{name}>"


def check(root):
    """Prints the faults of all sources below root and returns their number, or -1 if there is no source."""
    sources = [p for top in ("abi", "kmod", "src") for p in sorted((root / top).rglob("*"))
               if p.suffix in {".h", ".cc", ".c"}]
    if not sources:
        print(f"{root}: no sources here")
        return -1
    count = 0
    for source in sources:
        path = source.relative_to(root)
        for number, sentence in faults_of(path, source.read_text(encoding="utf-8")):
            print(f"{path}:{number}: {sentence}")
            count += 1
    return count


def main():
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    return 0 if check(root) == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
