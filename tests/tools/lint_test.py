"""Does tools/lint.py look at every file, and again at what changed? Run with the project's folder as the argument."""
import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest
import unittest.mock

ROOT = pathlib.Path(sys.argv.pop(1)).resolve()
sys.path.insert(0, str(ROOT / "tools"))
import lint  # noqa: E402
import summarise_tests  # noqa: E402

# Stands in for clang-tidy: complains of files with BAD in them, and keeps a list of what it was asked about.
FAKE = """#!/bin/sh
[ "$1" != --version ] || exec cat "$(dirname "$0")/version"
for last; do :; done
echo "$last" >>"$(dirname "$0")/asked"
! grep BAD "$last"
"""


class Files(unittest.TestCase):
    def test_nothing_that_was_built(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name in ("src/a/x.cc", "build/y.cc", ".git/z.cc", "tools/__pycache__/p.py", ".ci/run", "dev"):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).touch()
            found = [str(path.relative_to(root)) for path in lint.files(root)]
            self.assertEqual(found, ["dev", ".ci/run", "src/a/x.cc"])

    def test_shell_scripts(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, text, wanted in [("dev", "#!/bin/bash\n", True), ("run", "#!/usr/bin/env bash\n", True),
                                       ("sh", "#!/bin/sh -e\n", True), ("mw.bash", "complete\n", True),
                                       ("py", "#!/usr/bin/python3\n", False), ("text", "bash\n", False),
                                       ("x.cc", "#!/bin/bash\n", False), ("bytes", "\u00ff\n", False)]:
                path = pathlib.Path(folder) / name
                path.write_text(text, encoding="latin-1")
                self.assertEqual(lint.is_shell(path), wanted, name)

    def test_the_projects_scripts_are_known(self):
        found = {str(path.relative_to(ROOT)) for path in lint.files(ROOT) if lint.is_shell(path)}
        self.assertLessEqual({"dev", ".ci/run", "packaging/mw.bash"}, found)


class TidyTest(unittest.TestCase):
    def setUp(self):
        folders = unittest.mock.patch.object(lint, "TIDY_FOLDERS", ("base", "netflow"))
        folders.start()
        self.addCleanup(folders.stop)
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = pathlib.Path(self.folder.name)
        self.build = self.root / "build/release"
        self.put(".clang-tidy", "Checks: x\n")
        self.put("version", "clang-tidy 14\n")
        self.put("tidy", FAKE).chmod(0o755)
        self.put("src/base/a.cc", '#include "base/a.h"\n#include <base/system.h>\n')
        self.put("src/base/a.h", '#include "b.h"\n')
        self.put("src/base/b.h", '#include "a.h"\n')  # a circle
        self.put("src/netflow/n.cc", "")
        self.put("src/base/unused.h", "")
        self.names = ["src/base/a.cc", "src/netflow/n.cc", "src/base/a_test.cc", "src/unlisted/u.cc", "tests/t.cc"]
        self.put("src/base/a_test.cc", "BAD")
        self.put("src/unlisted/u.cc", "BAD")
        self.put("tests/t.cc", "BAD")
        self.compile("-O2")

    def put(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def compile(self, option):
        self.put("build/release/compile_commands.json", json.dumps(
            [{"directory": str(self.build), "command": f"c++ {option} -c {name}", "file": f"{self.root}/{name}"}
             for name in self.names]))

    def check(self):
        """(whether all is well, which files were looked at)."""
        asked = self.root / "asked"
        asked.write_text("", encoding="utf-8")
        good, _ = lint.Tidy(self.root, self.build, str(self.root / "tidy")).check()
        looked = sorted(str(pathlib.Path(line).relative_to(self.root)) for line in asked.read_text().splitlines())
        return good, looked

    def test_each_listed_file_once(self):
        self.names *= 2
        self.compile("-O2")
        self.assertEqual(self.check(), (True, ["src/base/a.cc", "src/netflow/n.cc"]))
        self.assertEqual(self.check(), (True, []))

    def test_what_changed_is_looked_at_again(self):
        self.check()
        self.put("src/base/unused.h", "new")
        self.assertEqual(self.check(), (True, []))
        for name, looked in [("src/base/a.cc", 1), ("src/base/b.h", 1), (".clang-tidy", 2), ("version", 2)]:
            path = self.root / name
            path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
            good, files = self.check()
            self.assertEqual((good, len(files)), (True, looked), name)
        self.compile("-O3")
        self.assertEqual(len(self.check()[1]), 2)

    def test_a_finding_stays_until_it_is_mended(self):
        self.put("src/netflow/n.cc", "BAD")
        self.assertEqual(self.check(), (False, ["src/base/a.cc", "src/netflow/n.cc"]))
        self.assertEqual(self.check(), (False, ["src/netflow/n.cc"]))
        self.put("src/netflow/n.cc", "good")
        self.assertEqual(self.check(), (True, ["src/netflow/n.cc"]))

    def test_nothing_to_look_at_is_no_success(self):
        self.names = []
        self.compile("-O2")
        self.assertEqual(self.check(), (False, []))


class Report(unittest.TestCase):
    def run_checks(self, *results):
        with tempfile.TemporaryDirectory() as folder:
            report = pathlib.Path(folder) / "lint.xml"
            named = [(f"check {number}", lambda result=result: result) for number, result in enumerate(results)]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                failures = lint.run_checks(named, str(report))
                return failures, summarise_tests.count(str(report))

    def test_counts(self):
        self.assertEqual(self.run_checks((True, ""), (False, "a \x1b[0m finding <&>\n"), (True, "")), (1, (2, 1, 0)))

    def test_every_tool_is_among_the_checks(self):
        names = {name for name, _ in lint.checks(ROOT)}
        tools = {path.name for path in (ROOT / "tools").glob("check_*.py")}
        self.assertEqual(names, {"clang-format", "shellcheck", "pyflakes", "clang-tidy"} | tools)


if __name__ == "__main__":
    unittest.main()
