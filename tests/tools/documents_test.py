"""Does tools/check_docs.py find what it is there for? Run with the project's folder as the argument."""
import contextlib
import io
import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(sys.argv.pop(1)).resolve()
sys.path.insert(0, str(ROOT / "tools"))
import check_docs  # noqa: E402

CODE = """#include "a.h"

namespace mw {
int declared(int x);
static int inner(int x) { return x; }
template <class T>
uint64_t Table::of_many(uint32_t index,
                        std::span<const T> from) const {
  if (inner(index)) return declared(2);
  called(index);
  return other(index);
}
MW_EXPORT ssize_t send(int fd, const void* p, size_t n, int flags) noexcept {
  return 0;
}
auto arrow(int x) -> int { return x; }
std::vector<std::pair<int, long>> pairs() { return {}; }
const Row* row() { return nullptr; }
class Table {
  bool in_class() const { return true; }
  bool only_declared() const;
};
}  // namespace mw
"""


class Documents(unittest.TestCase):
    def faults(self, page, path="README.md", code=CODE):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, text in [(path, page), ("src/a/a.cc", code), ("tools/b.py", "def run():\n    walk()\n")]:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text, encoding="utf-8")
            with contextlib.redirect_stdout(io.StringIO()):
                return check_docs.check(root)

    def test_the_project_keeps_the_rules(self):
        self.assertEqual(check_docs.check(ROOT), 0)

    def test_nothing_to_check_is_no_success(self):
        self.assertEqual(self.faults("", path="empty.txt"), -1)

    def test_functions_that_are_defined(self):
        for name in ("inner", "of_many", "Table::of_many", "send", "arrow", "pairs", "row", "in_class"):
            self.assertEqual(self.faults(f"`{name}()` in `src/a/a.cc` does it.\n"), 0, name)
        self.assertEqual(self.faults("`run()` in `tools/b.py`\n"), 0)

    def test_functions_that_are_not_defined_there(self):
        for name in ("declared", "called", "other", "only_declared", "nowhere", "many"):
            self.assertEqual(self.faults(f"`{name}()` in `src/a/a.cc` does it.\n"), 1, name)
        self.assertEqual(self.faults("`walk()` in `tools/b.py`\n"), 1)

    def test_each_function_of_an_enumeration(self):
        self.assertEqual(self.faults("`inner()` and `called()` in `src/a/a.cc`\n"), 1)
        self.assertEqual(self.faults("`called()`, `inner()` and `other()` in `src/a/a.cc`\n"), 2)

    def test_a_sentence_that_is_wrapped(self):
        self.assertEqual(self.faults("- so `called()`\n  in `src/a/a.cc`\n"), 1)

    def test_a_row_of_a_table(self):
        self.assertEqual(self.faults("| step | `src/a/a.cc` | `inner()`, `send()` |\n"), 0)
        self.assertEqual(self.faults("| step | `src/a/a.cc` | `inner()`, `called()` |\n"), 1)

    def test_a_function_without_a_file_says_nothing(self):
        self.assertEqual(self.faults("`send()` goes on; see `src/a/a.cc`.\n"), 0)

    def test_files(self):
        self.assertEqual(self.faults("`src/a/none.cc` and src/a/none.h, and `src/a/a.cc`\n"), 2)

    def test_links(self):
        self.assertEqual(self.faults("[there](src/a/a.cc#top) [here](#x) [out](https://example.org/)\n"), 0)
        self.assertEqual(self.faults("[gone](gone.md)\n"), 1)
        self.assertEqual(self.faults("[from its folder](../src/a/a.cc)\n", path="docs/a.md"), 0)
        self.assertEqual(self.faults("[from the top](src/a/a.cc)\n", path="docs/a.md"), 1)

    def test_columns(self):
        self.assertEqual(self.faults("word " * 20 + "\n"), 0)
        self.assertEqual(self.faults("word " * 20 + "x\n"), 1)
        self.assertEqual(self.faults("| " + "word " * 30 + "|\n- " + "w" * 120 + "\n"), 0)
        self.assertEqual(self.faults("    " + "code " * 20 + "\n"), 1)

    def test_headings(self):
        self.assertEqual(self.faults("##Heading\n"), 1)
        self.assertEqual(self.faults("```\n#define X\n```\n"), 0)


if __name__ == "__main__":
    unittest.main()
