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


# Scripts in which sockets of several workers meet in one call or one process: these always run with two workers too,
# all of them with MW_TEST_WORKERS=2.
SEVERAL_SOCKETS = ("epoll_mixed", "epoll_many_sets", "epoll_max_events", "epoll_nested_edge", "epoll_two_sets",
                   "epoll_fork", "poll_mixed_blocking", "poll_shapes", "select_basic", "many_sockets", "udp_many",
                   "connections_in_turn", "connections_in_turn_fork", "threads_accept", "threads_poll_same",
                   "exec_epoll", "fork_listener", "scm_rights_epoll", "tcp_self_connect", "tcp_close_flushes",
                   "tcp_accept_queue_order", "splice_blocking", "close_under_waits")
# What each test's INS has; None is what `mw run` does by itself, or what MW_TEST_WORKERS says.
WORKERS = {"test_script": None, "test_script_with_two_workers": 2}


def _run(path, variant, mode, workers=None):
    with netns.Namespace() as namespace:
        runner = Runner(path, variant, mode, namespace, workers)
        return runner.run(), runner.log


@pytest.fixture(scope="session")
def answers(request):
    """Runs the chosen scripts a few at a time: most of a script's time is waiting."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() + 1) as pool:
        submitted = {}
        for item in request.session.items:
            name = getattr(item, "originalname", "")
            if name not in WORKERS:
                continue
            path, variant = item.callspec.params["path"], item.callspec.params["variant"]
            for run in ((path, variant, "native"), (path, variant, "mw", WORKERS[name])):
                if run not in submitted:
                    submitted[run] = pool.submit(_run, *run)
        yield submitted
        for answer in submitted.values():
            answer.cancel()


def _parameter(path, variant):
    marks = []
    if path.stem in KNOWN:
        marks.append(pytest.mark.xfail(reason=KNOWN[path.stem], strict=True))
    return pytest.param(path, variant, marks=marks, id=f"{path.stem}-{variant}")


def _compare(path, variant, answers, workers):
    native, native_log = answers[path, variant, "native"].result()
    ours, log = answers[path, variant, "mw", workers].result()
    broken = [line for line in native if "STOPPED" in line or "SCRIPT-ERROR" in line]
    assert not broken, "the script itself is wrong:\n" + "\n".join(native) + native_log
    difference = list(difflib.unified_diff(native, ours, "native", "mw", lineterm="", n=3))
    assert not difference, "\n".join(difference) + "\n--- stderr under mw\n" + log[-3000:]


@pytest.mark.parametrize(("path", "variant"), [_parameter(*case) for case in CASES])
def test_script(path, variant, answers):
    _compare(path, variant, answers, None)


@pytest.mark.parametrize(("path", "variant"), [_parameter(*case) for case in CASES if case[0].stem in SEVERAL_SOCKETS])
def test_script_with_two_workers(path, variant, answers):
    _compare(path, variant, answers, 2)


def test_the_scripts_for_two_workers_exist():
    assert set(SEVERAL_SOCKETS) <= {path.stem for path in SCRIPTS}
