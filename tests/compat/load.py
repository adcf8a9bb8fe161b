"""Rounds of ApacheBench while something else happens."""

import concurrent.futures
import contextlib
import threading

import webserver


@contextlib.contextmanager
def while_loaded(box, port: int, path: str, requests: int = 500, clients: int = 8):
    """Loads the server until the block ends; no request of any round may fail."""
    done = threading.Event()

    def load() -> list:
        rounds = []
        while not rounds or not done.is_set():
            rounds.append(webserver.load(box, port, requests, clients, path))
        return rounds

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(load)
        try:
            yield
        finally:
            done.set()
        rounds = answer.result()
    assert rounds == [(requests, 0)] * len(rounds)
