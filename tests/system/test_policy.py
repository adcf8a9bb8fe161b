"""./dev installs packages without starting their services, and leaves nothing of that behind.

Nothing is installed: `apt-get` is a stand-in, and /usr/sbin a folder of the test's own.
"""

import os
import shutil
import signal

import pytest

from mwtest import build, proc

FOREIGN = "#!/bin/sh\nexit 104\n"
SHOWS = 'cat /usr/sbin/policy-rc.d >"$SEEN"; test -x /usr/sbin/policy-rc.d\n'


@pytest.fixture
def install(tmp_path):
    """install(what apt-get does) -> the running install_packages of ./dev; install.policy is its policy-rc.d."""
    if os.geteuid() != 0:
        pytest.skip("packages are installed by root")
    folder = tmp_path / "sbin"
    folder.mkdir()
    (tmp_path / "bin").mkdir()
    os.mkfifo(tmp_path / "never")
    running = []

    def begin(script: str) -> proc.Background:
        stand_in = tmp_path / "bin/apt-get"
        stand_in.write_text("#!/bin/bash\n" + script)
        stand_in.chmod(0o755)
        words = ["unshare", "-m", "bash", "-c", 'mount --bind "$0" /usr/sbin && exec bash -c ". $1/dev; install_packages none"',
                 folder, build.ROOT]
        running.append(proc.Background(words, tmp_path / "log", env={
            **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SEEN": str(tmp_path / "seen"),
            "NEVER": str(tmp_path / "never")}))
        return running[-1]

    begin.policy = folder / "policy-rc.d"
    begin.seen = tmp_path / "seen"
    assert shutil.which("unshare")
    yield begin
    for one in running:
        one.stop()


def blocked(install) -> proc.Background:
    """An installation that is under way: apt-get ends when somebody ends it."""
    background = install(SHOWS + 'read -r <>"$NEVER"\n')
    proc.wait_for(lambda: install.seen.exists() and install.seen.read_text().endswith("exit 101\n"), 60,
                  "apt-get runs", background)
    return background


@pytest.mark.parametrize(("script", "status"), [(SHOWS, 0), (SHOWS + "exit 7\n", 7)], ids=["works", "fails"])
def test_the_policy_is_there_meanwhile_and_gone_afterwards(install, script, status):
    assert install(script).process.wait(60) == status
    assert install.seen.read_text().endswith("exit 101\n")
    assert not install.policy.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal(install, number, status):
    background = blocked(install)
    os.killpg(background.pid, number)  # as a terminal does
    assert background.process.wait(60) == status, background.tail()
    assert not install.policy.exists()


def test_what_a_killed_one_left_is_removed_by_the_next(install):
    background = blocked(install)
    os.killpg(background.pid, signal.SIGKILL)
    background.process.wait(60)
    assert install.policy.exists()
    assert install(SHOWS).process.wait(60) == 0
    assert not install.policy.exists()


def test_that_of_another_one_that_runs_stays(install):
    background = blocked(install)
    before = install.policy.read_text()
    assert install(SHOWS).process.wait(60) == 0
    assert install.policy.read_text() == before
    os.killpg(background.pid, signal.SIGTERM)
    assert background.process.wait(60) == 143
    assert not install.policy.exists()


def test_somebody_elses_is_used_and_stays(install):
    install.policy.write_text(FOREIGN)
    install.policy.chmod(0o755)
    assert install(SHOWS).process.wait(60) == 0
    assert install.seen.read_text() == FOREIGN
    assert install.policy.read_text() == FOREIGN
