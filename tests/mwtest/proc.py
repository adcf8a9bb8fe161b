"""Child processes with bounded lives, and readiness by asking, never by sleeping a guess."""

import os
import signal
import subprocess
import time
from pathlib import Path


class Background:
    """A command in its own process group, ended with everything that it started."""

    def __init__(self, command: list, log: Path, env: dict = None, cwd: Path = None,
                 stdin=subprocess.DEVNULL) -> None:
        self.log = log
        self._output = open(log, "ab")
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=stdin, stdout=self._output,
            stderr=subprocess.STDOUT, env=env, cwd=cwd, start_new_session=True)

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def _signal_group(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass  # the whole group has ended

    def stop(self, seconds: float = 60) -> int:
        """TERM to the first process, then KILL to the group; returns the exit status."""
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._signal_group(signal.SIGKILL)
        self._signal_group(signal.SIGKILL)
        status = self.process.wait(60)
        self._output.close()
        return status

    def tail(self, lines: int = 30) -> str:
        self._output.flush()
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def run(command: list, seconds: float, check: bool = True, **options) -> subprocess.CompletedProcess:
    """Runs to the end within `seconds`; on failure says what the command printed."""
    words = [str(word) for word in command]
    process = subprocess.Popen(words, stdin=options.pop("stdin", subprocess.DEVNULL),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True, **options)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"{' '.join(words)}: still running after {seconds} s\n"
                             f"{_text(out)[-3000:]}\n{_text(err)[-3000:]}") from None
    done = subprocess.CompletedProcess(words, process.returncode, out, err)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(words)}: exit status {done.returncode}\n"
                             f"{_text(out)[-3000:]}\n{_text(err)[-3000:]}")
    return done


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def wait_for(condition, seconds: float, what: str, background: Background = None):
    """Repeats `condition` until it is true; fails early if the background process has ended."""
    limit = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if background is not None and not background.alive():
            raise AssertionError(f"{what}: the process ended with "
                                 f"{background.process.returncode}\n{background.tail()}")
        if time.monotonic() > limit:
            tail = background.tail() if background is not None else ""
            raise AssertionError(f"{what}: not within {seconds} s\n{tail}")
        time.sleep(0.02)


def end_group(process: subprocess.Popen, seconds: float = 60) -> None:
    """Ends a process that leads its group, first with TERM, and whatever is left of the group."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass  # killed below
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the whole group has ended
    process.wait(seconds)
