#!/usr/bin/env python3
"""Runs every static check of the project, prints what each finds, and exits 1 if one finds something.

usage: lint.py [--junitxml FILE]    all checks; FILE is for tools/summarise_tests.py
       lint.py --format             formats the C and C++ sources in place

The checks: clang-format; shellcheck; pyflakes; each tools/check_*.py; clang-tidy over the folders below, with the
checks of .clang-tidy. clang-tidy takes most of the time, so build/tidy.json keeps which files it found clean, by a
hash of everything that it looked at. It needs a configured build/release, which says how each file is compiled.
"""
import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Of src/: those that are clean. A folder joins them when it is (docs/decisions/0034-static-checks.md).
TIDY_FOLDERS = ("coverage", "registry", "transport")
SOURCES = {".h", ".cc", ".c"}
SHELL = re.compile(r"#!.*\b(?:ba)?sh\b")
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)


def run(command: list) -> tuple:
    """(whether it succeeded, what it printed) of a command at the top of the project."""
    done = subprocess.run([str(word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    return done.returncode == 0, done.stdout


def files(root: pathlib.Path) -> list:
    """Every file of the project below root, sorted: what was built, hidden folders and caches left out."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in ("build", "__pycache__")
                            and (not name.startswith(".") or name == ".ci"))
        found += [pathlib.Path(folder) / name for name in sorted(names)]
    return found


def is_shell(path: pathlib.Path) -> bool:
    if path.suffix:
        return path.suffix in (".sh", ".bash")
    with path.open("rb") as file:
        return SHELL.match(file.readline(80).decode(errors="replace")) is not None


class Tidy:
    """clang-tidy over the files of a compilation database, but for those that were clean as they are now."""

    def __init__(self, root: pathlib.Path, build: pathlib.Path, command: str = "clang-tidy") -> None:
        self.root = root
        self.build = build
        self.command = command
        self.record = build.parent / "tidy.json"
        self.seen = {}  # file -> hash of its content and of what it includes of the project

    def includes(self, path: pathlib.Path, text: str) -> list:
        """The project's headers that a file includes by itself."""
        places = (path.parent, self.root, self.root / "src")
        found = []
        for name in INCLUDE.findall(text):
            found += [place / name for place in places if (place / name).is_file()][:1]
        return found

    def content(self, path: pathlib.Path) -> str:
        """A hash of the file and of every header of the project that it reaches."""
        sums = {}
        todo = [path]
        while todo:
            one = todo.pop()
            if one in sums:
                continue
            if one not in self.seen:
                data = one.read_bytes()
                self.seen[one] = (hashlib.sha256(data).hexdigest(), self.includes(one, data.decode(errors="replace")))
            sums[one], headers = self.seen[one]
            todo += headers
        return hashlib.sha256(repr(sorted((str(one), sums[one]) for one in sums)).encode()).hexdigest()

    def fingerprint(self, version: str, entry: dict) -> str:
        """Of everything that decides what clang-tidy says of one file, but for the system's headers."""
        config = (self.root / ".clang-tidy").read_bytes()
        command = entry.get("command") or repr(entry["arguments"])
        parts = [version.encode(), config, command.encode(), self.content(pathlib.Path(entry["file"])).encode()]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def entries(self) -> list:
        """What is to be looked at: the product's sources in TIDY_FOLDERS, each once."""
        database = json.loads((self.build / "compile_commands.json").read_text(encoding="utf-8"))
        wanted = tuple(f"{self.root}/src/{name}/" for name in TIDY_FOLDERS)
        found = {entry["file"]: entry for entry in database
                 if entry["file"].startswith(wanted) and entry["file"].endswith(".cc")
                 and not entry["file"].endswith("_test.cc")}
        return [found[name] for name in sorted(found)]

    def check(self) -> tuple:
        entries = self.entries()
        if not entries:
            return False, f"{self.build}/compile_commands.json names no source in {', '.join(TIDY_FOLDERS)}\n"
        _, version = run([self.command, "--version"])
        clean = json.loads(self.record.read_text(encoding="utf-8")) if self.record.exists() else {}
        prints = {entry["file"]: self.fingerprint(version, entry) for entry in entries}
        todo = [name for name in prints if clean.get(os.path.relpath(name, self.root)) != prints[name]]
        said, failed = "", 0
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, (good, text) in zip(todo, pool.map(self.look_at, todo)):
                if good:
                    clean[os.path.relpath(name, self.root)] = prints[name]
                else:
                    failed += 1
                    said += text
        self.record.write_text(json.dumps(clean, indent=1, sort_keys=True), encoding="utf-8")
        return not failed, said + f"{len(prints)} files, {len(todo)} of them looked at, {failed} with findings\n"

    def look_at(self, name: str) -> tuple:
        return run([self.command, "--quiet", "-p", self.build, name])


def clang_format(found: list, *options: str) -> tuple:
    return run(["clang-format", *options, *(path for path in found if path.suffix in SOURCES)])


def checks(root: pathlib.Path) -> list:
    """(name, function that returns whether all is well and what was said) of each check."""
    found = files(root)
    scripts = [path for path in found if path.suffix == ".py"]
    return [
        ("clang-format", lambda: clang_format(found, "--dry-run", "-Werror")),
        ("shellcheck", lambda: run(["shellcheck", "--shell=bash", *filter(is_shell, found)])),
        ("pyflakes", lambda: run(["pyflakes3", *scripts])),
        *((path.name, lambda path=path: run([sys.executable, "-B", path])) for path in scripts
          if path.parent == root / "tools" and path.name.startswith("check_")),
        ("clang-tidy", lambda: Tidy(root, root / "build" / "release").check()),
    ]


def run_checks(all_checks: list, report: str = "") -> int:
    """Runs them one after the other. Returns how many failed."""
    suite = ElementTree.Element("testsuite", name="lint")
    failures = 0
    for name, check in all_checks:
        begun = time.monotonic()
        good, said = check()
        took = time.monotonic() - begun
        case = ElementTree.SubElement(suite, "testcase", classname="lint", name=name, time=f"{took:.1f}")
        print(f"-- {name}: {'ok' if good else 'FAILED'} ({took:.1f} s)\n{said}", end="", flush=True)
        if not good:
            failures += 1
            # XML has no place for control characters, which a compiler's message may quote.
            ElementTree.SubElement(case, "failure").text = re.sub(r"[^\t\n -\ud7ff]", "?", said)
    if report:
        ElementTree.ElementTree(suite).write(report, encoding="utf-8", xml_declaration=True)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="lint.py", description=__doc__.splitlines()[0])
    parser.add_argument("--junitxml", default="", metavar="FILE")
    parser.add_argument("--format", action="store_true", help="format the C and C++ sources in place")
    options = parser.parse_args()
    if options.format:
        good, said = clang_format(files(ROOT), "-i")
        print(said, end="")
        return 0 if good else 1
    return 1 if run_checks(checks(ROOT), options.junitxml) else 0


if __name__ == "__main__":
    sys.exit(main())
