#!/usr/bin/env python3
"""Checks the documents against the tree: prints each fault, exits 1 if there is one.

usage: check_docs.py [ROOT]

What is named exists: files, tests (FILE::TEST), the targets of links, and functions beside a file: `function()` in
`file`, or a row of a table with both. Lines have at most 100 columns, but for tables and for words that cannot be
broken. A heading is one: a formatter of programs that goes over a page takes its space away.
"""
import pathlib
import re
import sys

COLUMNS = 100
FOLDERS = "abi|src|tests|docs|tools|bench|packaging|kmod|clients"
FILE = rf"(?:{FOLDERS})/[\w./-]+\.\w+"
NAMED = re.compile(rf"`({FILE})`|(?<![\w/`])((?:abi|src|tests|docs|tools|bench)/[\w./-]+\.(?:h|cc|py|md|sh))\b")
TEST = re.compile(r"`((?:src|tests)/[\w./-]+\.(?:py|cc))::([\w.]+)`")
FUNCTION = r"`(?:\w+::)*(\w+)\(\)`"
FUNCTIONS_IN_FILE = re.compile(rf"((?:{FUNCTION}(?:, | and |, and )?)+) in `({FILE})`")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
# What stands before a call and not before a definition.
NO_TYPE = {"return", "else", "case", "throw", "new", "delete", "co_return", "goto", "and", "or", "not"}


def has_test(path: pathlib.Path, name: str) -> bool:
    """A function of pytest, or Suite.Case of GoogleTest."""
    if not path.exists():
        return False
    if path.suffix == ".py":
        wanted = rf"^def {re.escape(name)}\("
    else:
        suite, _, case = name.partition(".")
        wanted = rf"^TEST(?:_F|_P)?\(\s*{re.escape(suite)},\s*{re.escape(case)}\s*\)"
    return re.search(wanted, path.read_text(encoding="utf-8"), re.M) is not None


def end_of_parameters(text: str, start: int) -> int:
    """The index behind the parenthesis that closes the one at `start`, or the end of the text."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    return len(text)


def defines(text: str, suffix: str, name: str) -> bool:
    """Whether a source has a function of this name with its body: a call or a declaration is none."""
    if suffix == ".py":
        return re.search(rf"^\s*(?:async )?def {re.escape(name)}\(", text, re.M) is not None
    # A type, which may have a qualified name, then the function's name with its class, then parameters and a body.
    head = re.compile(rf"^ {{0,4}}([\w:<>,*&\[\]~][\w:<>,*&\[\]~ ]*[ *&])(?:\w+::)*{re.escape(name)}(\()", re.M)
    for match in head.finditer(text):
        if match.group(1).split()[0] in NO_TYPE:
            continue
        behind = text[end_of_parameters(text, match.start(2)):]
        if re.match(r"[\s\w]*(?:->[^{;]*)?\{", behind):
            return True
    return False


def blocks(text: str):
    """Yields (line number, text, kind) of a page: "code" and "table" line by line, "text" by paragraph."""
    paragraph, begin, fenced = [], 0, False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        is_fence = line.startswith("```")
        kind = "table" if line.startswith("|") else "code" if fenced or is_fence else "text"
        fenced ^= is_fence
        if kind == "text" and line.strip() and not re.match(r"\s*(?:[-*]|\d+\.) ", line):
            begin = begin if paragraph else number
            paragraph.append(line.strip())
            continue
        if paragraph:
            yield begin, " ".join(paragraph), "text"
            paragraph = []
        if kind == "text" and line.strip():
            begin, paragraph = number, [line.strip()]
        elif kind != "text":
            yield number, line, kind


def named_functions(text: str, kind: str):
    """Yields (file, function) for each function that stands beside a file."""
    for match in FUNCTIONS_IN_FILE.finditer(text):
        for name in re.findall(FUNCTION, match.group(1)):
            yield match.group(3), name
    if kind == "table":
        files = re.findall(rf"`({FILE})`", text)
        if len(files) == 1:
            for name in re.findall(FUNCTION, text):
                yield files[0], name


def is_too_long(line: str) -> bool:
    """A table's row is one line, and a single word cannot be broken."""
    return len(line) > COLUMNS and not line.startswith("|") and " " in re.sub(r"^\s*(?:[-*] |\d+\. |#+ )?", "", line)


def faults_of(root: pathlib.Path, page: pathlib.Path):
    """Yields (line number, sentence) for each fault of one page."""
    text = page.read_text(encoding="utf-8")
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        fenced ^= line.startswith("```")
        if not fenced and re.match(r"\s*#+[^#\s]", line):
            yield number, "a heading without a space"
        if is_too_long(line):
            yield number, f"{len(line)} columns, and there are {COLUMNS}"
        for match in NAMED.finditer(line):
            name = match.group(1) or match.group(2)
            if not (root / name).exists():
                yield number, f"{name} does not exist"
        for file, name in TEST.findall(line):
            if not has_test(root / file, name):
                yield number, f"{file} has no test {name}"
        for target in [] if fenced else LINK.findall(line):
            if "://" not in target and not target.startswith("#"):
                if not (page.parent / target.partition("#")[0]).exists():
                    yield number, f"the link to {target} leads nowhere"
    for number, block, kind in blocks(text):
        for file, name in named_functions(block, kind):
            path = root / file
            if path.exists() and not defines(path.read_text(encoding="utf-8"), path.suffix, name):
                yield number, f"{file} does not define {name}()"


def check(root: pathlib.Path) -> int:
    """Prints the faults of all documents below root and returns their number, or -1 if there is no document."""
    pages = [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md")),
             *sorted((root / "tests").rglob("*.md"))]
    if not pages:
        print(f"{root}: no documents here")
        return -1
    faults = [f"{page.relative_to(root)}:{number}: {sentence}"
              for page in pages for number, sentence in faults_of(root, page)]
    print("\n".join(faults) or "documents: what they name exists, where they say")
    return len(faults)


def main() -> int:
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    return 0 if check(root) == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
