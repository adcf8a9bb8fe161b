"""Every script must print the same natively and through MwComms."""

import concurrent.futures
import difflib
import os
from pathlib import Path

import pytest

from mwtest import netns
from script import Runner, variants

# What is known to differ (script: reason). An entry that prints the same after all fails: it has to go.
KNOWN = {}

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.sock"))
CASES = [(path, variant) for path in SCRIPTS for variant in variants(path)]


def _run(path, variant, mode):
    with netns.Namespace() as namespace:
        runner = Runner(path, variant, mode, namespace)
        return runner.run(), runner.log


def _both(case):
    return _run(*case, "native"), _run(*case, "mw")


@pytest.fixture(scope="session")
def answers(request):
    """Runs the chosen scripts a few at a time: most of a script's time is waiting."""
    chosen = [item.callspec.params for item in request.session.items
              if getattr(item, "originalname", "") == "test_script"]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() + 1) as pool:
        submitted = {(one["path"], one["variant"]): None for one in chosen}
        for case in submitted:
            submitted[case] = pool.submit(_both, case)
        yield submitted
        for answer in submitted.values():
            answer.cancel()


def _parameter(path, variant):
    marks = []
    if path.stem in KNOWN:
        marks.append(pytest.mark.xfail(reason=KNOWN[path.stem], strict=True))
    return pytest.param(path, variant, marks=marks, id=f"{path.stem}-{variant}")


@pytest.mark.parametrize(("path", "variant"), [_parameter(*case) for case in CASES])
def test_script(path, variant, answers):
    (native, native_log), (ours, log) = answers[path, variant].result()
    broken = [line for line in native if "STOPPED" in line or "SCRIPT-ERROR" in line]
    assert not broken, "the script itself is wrong:\n" + "\n".join(native) + native_log
    difference = list(difflib.unified_diff(native, ours, "native", "mw", lineterm="", n=3))
    assert not difference, "\n".join(difference) + "\n--- stderr under mw\n" + log[-3000:]
