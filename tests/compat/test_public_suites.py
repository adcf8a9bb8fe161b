"""The test suites of libuv, libevent, memcached and redis: nothing that passes natively fails through the channel.

purpose     Debian's sources are fetched, built and run in namespaces made alike, with and without protection, the whole
            suite in one session, and the results are compared test by test.
cost        Sources, builds and native results are kept in build/suites, keyed by version and kernel. apt's own lists and
            configuration are left alone.
"""

import json
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mwtest import build, netns, proc

PLACE = build.ROOT / "build/suites"
RUN_SECONDS = 900
BUILD_SECONDS = 900


@dataclass(frozen=True)
class Suite:
    package: str
    build: str
    run: list
    result: str  # a regular expression whose groups `name` and `passed` say it
    again: object  # name of a test -> the command that runs it alone
    # What differs (name: reason). An entry that passes after all fails: it has to go.
    differs: dict = field(default_factory=dict)
    user: str = ""


MEMCACHED = ("00-startup ascii-auth binary binary-get bogus-commands cas conn-limits daemonize flags getset idle-timeout "
             "incrdecr issue_50 issue_61 issue_152 line-lengths maxconns multiversioning noreply quit shutdown stats "
             "stats-conns udp unixsocket watcher watcher_connid").split()
REDIS = ("unit/protocol unit/networking unit/pubsub unit/introspection unit/querybuf unit/pendingquerybuf unit/quit "
         "unit/tracking unit/wait unit/obuf-limits integration/block-repl integration/replication-2").split()
PROGRAMS_OF_REDIS = "server cli benchmark sentinel check-rdb check-aof"
SUITES = {
    "libuv": Suite(
        "libuv1", "./autogen.sh && ./configure --disable-shared && make -j2 && make -j2 check-am TESTS=",
        ["test/run-tests"], r"^(?:(?P<passed>ok)|not ok) \d+ - (?P<name>\w+)$",
        lambda name: ["test/run-tests", name],
        user="nobody"),
    "libevent": Suite(
        "libevent", "./autogen.sh && ./configure --disable-openssl --disable-samples --disable-shared && "
                    "make -j2 && make -j2 test/regress",
        ["test/regress"], r"^(?P<name>[\w/]+): (?:\[forking\] )?(?P<passed>OK)$",
        lambda name: ["test/regress", name],
        {"dns/bufferevent_connect_hostname_emfile": "names are resolved by the INS, which is not out of descriptors"}),
    "memcached": Suite(
        "memcached", "./configure && make -j2 memcached-debug timedrun sizes",
        ["prove", "-j3", *(f"t/{name}.t" for name in MEMCACHED)],
        r"^t/(?P<name>[\w-]+)\.t \.+ (?:(?P<passed>ok)|(?!skipped))", lambda name: ["prove", f"t/{name}.t"]),
    "redis": Suite(
        "redis", f"for one in {PROGRAMS_OF_REDIS}; do ln -sf /usr/bin/redis-$one src/; done",
        ["./runtest", "--clients", "2", *(word for unit in REDIS for word in ("--single", unit))],
        r"^\[(?:\x1b\[[0-9;]*m)?(?:(?P<passed>ok)|err)(?:\x1b\[[0-9;]*m)?\]: (?P<name>.+?)(?: \(\d+ ms\))?(?: in tests/.*)?$", None),
}


def _apt(*words: str, cwd: Path = None, check: bool = True) -> subprocess.CompletedProcess:
    """apt-WORDS, with lists of its own, so that this host's are as they were."""
    folder = PLACE / "apt"
    for one in ("lists/partial", "cache/archives/partial", "parts"):
        (folder / one).mkdir(parents=True, exist_ok=True)
    # Where this host has Debian's packages from there are their sources too.
    lists = proc.run(["apt-get", "indextargets", "--format", "deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)",
                      "Created-By: Packages", "Origin: Debian"], 60).stdout.decode()
    assert lists, "this host has no package lists of Debian: apt-get update"
    (folder / "parts/suites.list").write_text("\n".join(sorted(set(lists.splitlines()))) + "\n")
    options = {"Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": folder / "parts",
               "Dir::State::lists": folder / "lists", "Dir::Cache": folder / "cache", "APT::Sandbox::User": "root"}
    program, *rest = words
    return proc.run([f"apt-{program}", "-q", *(f"-o{key}={value}" for key, value in options.items()), *rest], 300, check,
                    cwd=cwd)


def _download(package: str, folder: Path) -> None:
    """From the first archive that has it: one may have dropped what its list still names."""
    lines = _apt("cache", "madison", package).stdout.decode().splitlines()
    archives = [line.split("|")[2].split() for line in lines if line.endswith("Sources")]
    suites = list(dict.fromkeys(place.split("/")[0] for _, place, _ in archives))
    assert suites, f"no archive has the sources of {package}"
    for suite in suites:
        folder.mkdir(parents=True)
        done = _apt("get", "source", "--download-only", f"{package}/{suite}", cwd=folder, check=False)
        if done.returncode == 0:
            return
        shutil.rmtree(folder)
    raise AssertionError(f"{package} in {', '.join(suites)}: {done.stderr.decode()[-3000:]}")


def _built(name: str) -> Path:
    """The folder with the suite's built sources; removed if a step fails, so that the next run begins anew."""
    suite = SUITES[name]
    folder = PLACE / name
    if (folder / "built").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    _apt("get", "update")
    _download(suite.package, folder)
    proc.run(["dpkg-source", "-x", *folder.glob("*.dsc"), folder / "source"], 120)
    proc.run(["bash", "-c", suite.build], BUILD_SECONDS, cwd=folder / "source")
    proc.run(["chmod", "-R", "a+rwX", folder / "source"], 60)
    shutil.copy(next(folder.glob("*.dsc")), folder / "built")
    return folder


def _run(mode: str, suite: Suite, folder: Path, log: Path, words: list) -> tuple:
    """name -> whether it passed, where what hung or crashed is missing; and whether the suite came to its end."""
    if suite.user:
        words = ["setpriv", f"--reuid={suite.user}", "--clear-groups", *words]
    with netns.Namespace() as namespace, open(log, "wb") as output:
        process = subprocess.Popen(namespace.wrap(build.wrap(mode, words)), stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, cwd=folder / "source", start_new_session=True)
        try:
            process.wait(RUN_SECONDS)
            ended = process.returncode >= 0
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            proc.end_group(process)
    results = {}
    for match in re.finditer(suite.result, log.read_text(errors="replace"), re.M):
        name = match["name"]
        results[name] = results.get(name, True) and match["passed"] is not None
    return results, ended


def _native(name: str, folder: Path, log: Path) -> dict:
    version = re.search(r"^Version: (.*)$", (folder / "built").read_text(), re.M)[1]
    kept = folder / f"native-{version.replace(':', '.')}-{platform.release()}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    results, ended = _run("native", SUITES[name], folder, log, SUITES[name].run)
    assert ended, f"natively {name} did not come to its end\n{log.read_text(errors='replace')[-3000:]}"
    kept.write_text(json.dumps(results, indent=1))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
def test_suite(name, tmp_path):
    suite = SUITES[name]
    folder = _built(name)
    native = _native(name, folder, tmp_path / "native.log")
    wanted = {test for test, passed in native.items() if passed}
    assert len(wanted) > 20, f"natively only {len(wanted)} pass"
    ours, _ = _run("mw", suite, folder, tmp_path / "mw.log", suite.run)
    assert not [test for test in suite.differs if ours.get(test)], "these are no differences any more"
    missing = [test for test in sorted(wanted) if not ours.get(test) and test not in suite.differs]
    if suite.again:  # a busy machine has a say in some: once more, alone
        log = tmp_path / "again.log"
        missing = [test for test in missing if not _run("mw", suite, folder, log, suite.again(test))[0].get(test)]
    log = (tmp_path / "mw.log").read_text(errors="replace")
    assert not missing, (f"{len(missing)} of {len(wanted)} tests pass natively and fail protected:\n  "
                         + "\n  ".join(missing) + f"\n--- end of the protected run\n{log[-3000:]}")
    print(f"{name}: {len(wanted)} tests pass both ways")
