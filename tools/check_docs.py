#!/usr/bin/env python3
"""Fails if a document names a file of the project, or a test in one (FILE::TEST), that does not exist, or if a heading
is none any more, as when a formatter of programs went over the page."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMED = re.compile(r"`((?:abi|src|tests|docs|tools|bench|packaging|kmod|clients)/[\w./-]+\.\w+)`"
                   r"|(?<![\w/`])((?:abi|src|tests|docs|tools|bench)/[\w./-]+\.(?:h|cc|py|md|sh))\b")

TEST = re.compile(r"`((?:src|tests)/[\w./-]+\.(?:py|cc))::([\w.]+)`")


def has_test(path: pathlib.Path, name: str) -> bool:
    """A function of pytest, or Suite.Case of GoogleTest."""
    if not path.exists():
        return False
    if path.suffix == ".py":
        wanted = rf"^def {re.escape(name)}\("
    else:
        suite, _, case = name.partition(".")
        wanted = rf"^TEST(?:_F|_P)?\(\s*{re.escape(suite)},\s*{re.escape(case)}\s*\)"
    return re.search(wanted, path.read_text(), re.M) is not None


def main() -> int:
    missing = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        fenced = False
        for number, line in enumerate(page.read_text().splitlines(), 1):
            fenced ^= line.startswith("```")
            if not fenced and re.match(r"\s*#+[^#\s]", line):
                missing.append(f"{page.relative_to(ROOT)}:{number}: a heading without a space")
            for match in NAMED.finditer(line):
                name = match.group(1) or match.group(2)
                if not (ROOT / name).exists():
                    missing.append(f"{page.relative_to(ROOT)}:{number}: {name} does not exist")
            for file, name in TEST.findall(line):
                if not has_test(ROOT / file, name):
                    missing.append(f"{page.relative_to(ROOT)}:{number}: {file} has no test {name}")
    print("\n".join(missing) or "documents: every file and every test that they name exists")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
