"""`mw guard` beside the server of a bench's stage."""

import json

import stage
from mwtest import build, proc

SECONDS = 30
CROWD = 6


class Guarded:
    """`mw guard` beside the server, with rules of its own; a context manager."""

    def __init__(self, place: stage.Stage, *options: str, ttl_s: int = 600, allow: str = "", keep: int = 10) -> None:
        self._place = place
        rules = place.directory / "rules.toml"
        rules.write_text(f"ttl_s = {ttl_s}\nkeep = {keep}\nallow = [{allow}]\n[crowd]\nconnections = {CROWD}\n")
        self._audit = place.directory / "audit.jsonl"
        self._audit.unlink(missing_ok=True)
        self.process = place.start("guard", place.server, [
            build.program("mw"), "guard", "--rules", rules, "--audit", self._audit, *options, place.session])

    def __enter__(self) -> "Guarded":
        return self

    def __exit__(self, *_) -> None:
        self._place.stop(self.process, 20)

    def lines(self, *what: str) -> list:
        text = self._audit.read_text() if self._audit.exists() else ""
        seen = [json.loads(line) for line in text[:text.rfind("\n") + 1].splitlines()]
        return [one for one in seen if one["what"] in what]

    def wait_for(self, what: str, holds=lambda line: True) -> dict:
        return proc.wait_for(lambda: next(filter(holds, self.lines(what)), None), SECONDS, f"a line: {what}",
                             self.process)


def served(place: stage.Stage) -> bool:
    """The last probes were served, all of them."""
    place.check()
    return [one["fate"] for one in place.load.probes()[-5:]] == ["served"] * 5
