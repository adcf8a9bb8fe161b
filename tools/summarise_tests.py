"""Adds up JUnit XML files and prints one line: N passed, N failed[, N skipped].

A file that is missing or unreadable counts as one failure: a runner that died must not look like success.
"""

import sys
import xml.etree.ElementTree as ElementTree


def count(path: str) -> tuple:
    """(passed, failed, skipped) of one file."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 0, 1, 0
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None
              or c.get("status") == "fail"]
    skipped = [c for c in cases if c not in failed and
               (c.find("skipped") is not None or c.get("status") in ("notrun", "disabled"))]
    for case in failed:
        print(f"FAILED {path}: {case.get('classname', '')}::{case.get('name', '')}", file=sys.stderr)
    return len(cases) - len(failed) - len(skipped), len(failed), len(skipped)


def main() -> int:
    totals = [sum(column) for column in zip(*(count(path) for path in sys.argv[1:]))]
    passed, failed, skipped = totals
    line = f"{passed} passed, {failed} failed"
    print(line + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
