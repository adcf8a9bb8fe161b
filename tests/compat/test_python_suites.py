"""Python 3.11's own network suites: nothing that passes natively may fail protected.

purpose     Debian's libpython3.11-testsuite is run with and without protection in namespaces made
            alike, and the results compared test by test.
cost        The native results are kept in build/native-suites, keyed by the package's version and the
            kernel, since they do not depend on this project; those of a run that did not come to its end are not. MW_SUITES="test_select test_poll" runs
            only those suites.
"""

import concurrent.futures
import json
import os
import platform
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mwtest import build, netns, proc

# test_socket's vsock tests hang natively on some virtual machines.
SUITES = {
    "test_asyncio": [],
    "test_socket": ["-i", "*VSOCK*"],
    "test_ssl": [],
    "test_httplib": [],
    "test_httpservers": [],
    "test_ftplib": [],
    "test_smtplib": [],
    "test_socketserver": ["-u", "network"],
    "test_selectors": [],
    "test_select": [],
    "test_poll": [],
    "test_epoll": [],
}
CHOSEN = [name for name in SUITES if name in os.environ.get("MW_SUITES", " ".join(SUITES)).split()]
# Tests that the machine decides, with and without protection: these alone get further chances.
_FILLS_IN_TIME = ("its client must fill the connection within the second for which its server sleeps; "
                  "without a processor for that long it is reset instead")
BY_TIME = {
    "test.test_socket.SendfileUsingSendTest.testWithTimeoutTriggeredSend": _FILLS_IN_TIME,
    "test.test_socket.SendfileUsingSendfileTest.testWithTimeoutTriggeredSend": _FILLS_IN_TIME,
}
CHANCES = 3
RUN_SECONDS = 400  # regrtest dumps all stacks then
SUITE_SECONDS = 420
PASSED = "passed"


def _parse(report: Path, output: str) -> dict:
    """Test name -> passed, failed or skipped; from the report, or from the output of a crashed run."""
    results = {}
    if report.exists():
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            name = case.get("name")
            if case.find("skipped") is not None or case.get("result") == "skipped":
                results[name] = "skipped"
            elif case.find("failure") is not None or case.find("error") is not None:
                results[name] = "failed"
            else:
                results[name] = PASSED
        return results
    for name, where, verdict in re.findall(
            r"^(test\w+) \(([\w.]+)\)(?:\n[^\n]*?)? \.\.\. .*?(ok|FAIL|ERROR|skipped)", output, re.M):
        results[where if where.endswith(name) else f"{where}.{name}"] = (
            PASSED if verdict == "ok" else "skipped" if verdict == "skipped" else "failed")
    return results


def _run(mode: str, suite: str, directory: Path, only: list = None) -> tuple:
    """The results, and whether these are all: a suite that hangs or crashes writes no report."""
    name = f"{suite}-{mode}{'-again' if only else ''}"
    report = directory / f"{name}.xml"
    report.unlink(missing_ok=True)
    words = ["/usr/bin/python3", "-m", "test", "-v", "--timeout", RUN_SECONDS,
             "--junit-xml", report, *SUITES[suite]]
    for method in only or []:
        words += ["-m", method]
    with netns.Namespace() as namespace:
        log = directory / f"{name}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                namespace.wrap(build.wrap(mode, [*words, suite])), stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, cwd=directory, start_new_session=True)
            try:
                process.wait(SUITE_SECONDS)
            except subprocess.TimeoutExpired:
                pass  # what is missing from the report counts as failed
            finally:
                proc.end_group(process)
    complete = report.exists() and process.returncode >= 0
    return _parse(report, log.read_text(errors="replace")), complete


def _protected(suite: str, directory: Path) -> dict:
    return _run("mw", suite, directory)[0]


def _native(suite: str, directory: Path) -> dict:
    version = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", "libpython3.11-testsuite"],
                             capture_output=True, text=True, timeout=20, check=True).stdout
    kept = build.ROOT / "build" / "native-suites" / f"{suite}-{version}-{platform.release()}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    results, complete = _run("native", suite, directory)
    if complete:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(results, indent=1))
    return results


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Runs two at a time, the longest first: they wait more than they work."""
    directory = tmp_path_factory.mktemp("suites")
    for one in (directory, directory.parent, directory.parent.parent):
        one.chmod(0o755)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = {suite: (pool.submit(_native, suite, directory), pool.submit(_protected, suite, directory))
                   for suite in CHOSEN}
        yield directory, answers
        for pair in answers.values():
            for answer in pair:
                answer.cancel()


@pytest.mark.parametrize("suite", CHOSEN)
def test_suite(suite, runs):
    directory, answers = runs
    native, ours = (answer.result() for answer in answers[suite])
    wanted = {name for name, result in native.items() if result == PASSED}
    assert wanted, f"{suite} passes nothing natively"
    missing = sorted(name for name in wanted if ours.get(name) != PASSED)
    for _ in range(CHANCES):
        by_time = [name for name in missing if name in BY_TIME]
        if not by_time:
            break
        again, _ = _run("mw", suite, directory, sorted({name.rpartition(".")[2] for name in by_time}))
        missing = [name for name in missing if name not in by_time or again.get(name) != PASSED]
    log = (directory / f"{suite}-mw.log").read_text(errors="replace")
    lines = "\n".join(f"  {name}: {ours.get(name, 'no result')}" for name in missing)
    assert not missing, (f"{len(missing)} of {len(wanted)} tests pass natively and fail protected:\n"
                         f"{lines}\n--- end of the protected run\n{log[-3000:]}")
    print(f"{suite}: {len(wanted)} tests pass both ways")
