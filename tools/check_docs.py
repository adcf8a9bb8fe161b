#!/usr/bin/env python3
"""Fails if a document names a file of the project that does not exist."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMED = re.compile(r"`((?:abi|src|tests|docs|tools|bench|packaging|kmod|clients)/[\w./-]+\.\w+)`"
                   r"|(?<![\w/`])((?:abi|src|tests|docs|tools|bench)/[\w./-]+\.(?:h|cc|py|md|sh))\b")


def main() -> int:
    missing = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            for match in NAMED.finditer(line):
                name = match.group(1) or match.group(2)
                if not (ROOT / name).exists():
                    missing.append(f"{page.relative_to(ROOT)}:{number}: {name} does not exist")
    print("\n".join(missing) or "documents: every file they name exists")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
