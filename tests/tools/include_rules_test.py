"""Does tools/check_includes.py find what it is there for? Run with the project's folder as the argument."""
import contextlib
import io
import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(sys.argv.pop(1)).resolve()
sys.path.insert(0, str(ROOT / "tools"))
import check_includes  # noqa: E402


class IncludeRules(unittest.TestCase):
    def faults(self, path, text):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            with contextlib.redirect_stdout(io.StringIO()):
                return check_includes.check(pathlib.Path(folder))

    def test_the_project_keeps_the_rules(self):
        self.assertEqual(check_includes.check(ROOT), 0)

    def test_allowed(self):
        self.assertEqual(self.faults("src/shim/a.cc", '#include "ring/channel.h"\n#include <errno.h>\n'), 0)
        self.assertEqual(self.faults("src/ring/a_test.cc", "#include <vector>\n"), 0)
        self.assertEqual(self.faults("src/driver/a_test.cc", '#include "tests/support/driver_session.h"\n'), 0)
        self.assertEqual(self.faults("src/cli/a.cc", '#include "transport/local/session_fds.h"\n'), 0)
        self.assertEqual(self.faults("kmod/core/a.h", '#include "kmod/core/b.h"\n#include "abi/a.h"\n'), 0)
        self.assertEqual(self.faults("kmod/a.c", '#include "kmod/core/b.h"\n#include <linux/module.h>\n'), 0)

    def test_stray_includes(self):
        for path, text in [
            ("abi/a.h", '#include "base/result.h"'),
            ("abi/a.h", "#include <string.h>"),
            ("src/base/a.h", '#include "ring/channel.h"'),
            ("src/ring/a.h", "#include <vector>"),
            ("src/ring/a.h", '#include "base/log.h"'),
            ("src/ring/a.h", '#  include "transport/local/control.h"'),
            ("src/shim/a.cc", "#include <iostream>"),
            ("src/shim/a.cc", '#include "ins/worker.h"'),
            ("src/ins/a.cc", '#include "driver/driver.h"'),
            ("src/driver/a.cc", '#include "shim/process/shared_lock.h"'),
            ("src/frontend/a.cc", '#include "ring/channel.h"'),
            ("src/cli/a.cc", '#include "transport/local/control.h"'),
            ("src/driver/a.cc", '#include "boost/any.hpp"'),
            ("src/driver/a.cc", '#include "tests/support/driver_session.h"'),
            ("src/driver/a_test.cc", '#include "tests/system/pair.h"'),
            ("src/newcomer/a.cc", ""),
            ("src/ins/a.cc", '#include "kmod/core/ring.h"'),
            ("kmod/a.c", '#include "ring/channel.h"'),
            ("kmod/core/a.h", "#include <linux/slab.h>"),
            ("kmod/core/a.h", "#include <stdlib.h>"),
            ("kmod/core/a.h", '#include "kmod/pages.h"'),
        ]:
            self.assertEqual(self.faults(path, text + "\n"), 1, f"{path}: {text}")

    def test_a_wing_includes_its_own_and_lower_ones(self):
        for path, name in [("calls/a.cc", "shim/calls/a.h"), ("calls/a.cc", "shim/process/a.h"),
                           ("libc/a.cc", "shim/calls/a.h"), ("start.cc", "shim/libc/a.h")]:
            self.assertEqual(self.faults(f"src/shim/{path}", f'#include "{name}"\n'), 0, f"{path}: {name}")

    def test_a_wing_includes_nothing_above_it(self):
        for path, name in [("process/a.cc", "shim/socket/a.h"), ("socket/a.h", "shim/calls/a.h"),
                           ("process/a_test.cc", "shim/calls/a.h"), ("calls/a.cc", "shim/libc/a.h"),
                           ("libc/a.cc", "shim/a.h"), ("newcomer/a.cc", "shim/process/a.h")]:
            self.assertEqual(self.faults(f"src/shim/{path}", f'#include "{name}"\n'), 1, f"{path}: {name}")

    def test_the_ins_has_wings(self):
        for path, name, faults in [("worker/a.cc", "ins/tables/a.h", 0), ("a_test.cc", "ins/control/a.h", 0),
                                   ("worker/a_test.cc", "tests/support/a.h", 0), ("tables/a.h", "ins/worker/a.h", 1),
                                   ("worker/a.cc", "ins/control/a.h", 1), ("worker/a.cc", "ins/sandbox.h", 1),
                                   ("worker/a.cc", "tests/support/a.h", 1), ("newcomer/a.cc", "ins/tables/a.h", 1)]:
            self.assertEqual(self.faults(f"src/ins/{path}", f'#include "{name}"\n'), faults, f"{path}: {name}")

    def test_nothing_to_check_is_no_success(self):
        self.assertEqual(self.faults("README", ""), -1)


if __name__ == "__main__":
    unittest.main()
