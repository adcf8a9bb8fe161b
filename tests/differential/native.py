"""native.py SCRIPT... - prints the transcripts of scripts run natively, for their authors."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from mwtest import netns  # noqa: E402
from script import Runner, variants  # noqa: E402


def main(arguments: list) -> int:
    mode = "native"
    if arguments and arguments[0] in ("native", "mw"):
        mode = arguments.pop(0)
    if not arguments:
        print("usage: native.py [native|mw] SCRIPT...", file=sys.stderr)
        return 2
    bad = 0
    for name in arguments:
        for variant in variants(Path(name)):
            with netns.Namespace() as namespace:
                runner = Runner(Path(name), variant, mode, namespace)
                transcript = runner.run()
            print(f"== {name} {variant} ({mode})", *transcript, sep="\n")
            if runner.log:
                print(runner.log, end="")
            bad += any("STOPPED" in line or "SCRIPT-ERROR" in line for line in transcript)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
