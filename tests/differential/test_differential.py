"""Every script must print the same natively and through MwComms."""

import difflib
from pathlib import Path

import pytest

from script import Runner, variants

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.sock"))
CASES = [(path, variant) for path in SCRIPTS for variant in variants(path)]


def _run(path, variant, mode, namespace):
    runner = Runner(path, variant, mode, namespace)
    return runner.run(), runner.log


@pytest.mark.parametrize(("path", "variant"), CASES,
                         ids=[f"{path.stem}-{variant}" for path, variant in CASES])
def test_script(path, variant, namespace):
    native, native_log = _run(path, variant, "native", namespace)
    broken = [line for line in native if "STOPPED" in line or "SCRIPT-ERROR" in line]
    assert not broken, "the script itself is wrong:\n" + "\n".join(native) + native_log
    ours, log = _run(path, variant, "mw", namespace)
    difference = list(difflib.unified_diff(native, ours, "native", "mw", lineterm="", n=3))
    assert not difference, "\n".join(difference) + "\n--- stderr under mw\n" + log[-3000:]
