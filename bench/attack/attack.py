"""attack.py [--json [FILE]] [--only ATTACK]... [--defence NAME]... - slow attacks on web servers behind the channel.

purpose     Every attack against every defence, in namespaces of its own, while honest clients, slow ones among them,
            and a probe use the server. Prints a table, or with --json one document; writes build/attack-report.html.
method      measure.py defines every figure. stage.py has the place, the servers and the defences.
status      0: measured, whether targets are met or not; 1: could not measure; 2: usage.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import generators
import measure
import report
import stage
from stage import build, netns, proc

SERVERS = ("apache", "nginx")
BEFORE_SECONDS = 5.0
DESCRIPTORS = 20_000
OTHER_GUARD = "other-guard"


def measure_once(server: str, attack: str, defence: stage.Defence, options) -> tuple:
    """One row and its events."""
    with stage.Stage() as place:
        place.start_server(server, defence)
        load = stage.Load(place)
        wanted = BEFORE_SECONDS * 1000 / 100
        proc.wait_for(lambda: len(load.probes()) >= wanted, 60, "the probe runs")
        under_attack = stage.Attack(place, attack, options.connections)
        end = under_attack.begin + options.seconds
        while time.monotonic() < end:
            place.check()
            time.sleep(max(0.0, min(1.0, end - time.monotonic())))
        place.check()
        load.finish()
        events = measure.Events(load.begin, under_attack.begin, end, load.probes(), load.probes("control"),
                                load.honest(), under_attack.events(),
                                defence.first_action(place, under_attack))
        under_attack.stop()
    tells = defence.name != "none" and attack not in generators.CLOSED_ANYWAY
    found = measure.figures(events, cuts_tell=tells)
    outcome = found.pop("outcome")
    judged = measure.targets({**found, "outcome": outcome})
    row = {"server": server, "attack": attack, "defence": defence.name, "connections": options.connections,
           "seconds": options.seconds, "outcome": outcome, "figures": found, "targets": judged,
           "met": measure.verdict({**found, "outcome": outcome})}
    return row, events


def machine() -> dict:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=build.ROOT, capture_output=True, text=True,
                            timeout=20, check=False).stdout.strip()
    return {"commit": commit, "kernel": platform.release(), "processors": len(os.sched_getaffinity(0)),
            "load average at start": f"{os.getloadavg()[0]:.1f}",
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev attack", description=__doc__.splitlines()[0])
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE",
                        help="one JSON document, on standard output or in FILE")
    parser.add_argument("--only", action="append", choices=generators.ATTACKS, help="only this attack; may be repeated")
    parser.add_argument("--other-guard", type=Path, metavar="MW",
                        help=f"the guard of another version's mw as one more defence, {OTHER_GUARD}")
    parser.add_argument("--defence", action="append", choices=[*(one.name for one in stage.DEFENCES), OTHER_GUARD],
                        help="only this defence; may be repeated")
    parser.add_argument("--server", action="append", choices=SERVERS, help="only this server; may be repeated")
    parser.add_argument("--connections", type=int, default=1000, help="of the attack (1000)")
    parser.add_argument("--seconds", type=int, default=50, help="that each attack lasts (50)")
    parser.add_argument("--check-arguments", action="store_true", help="do nothing else")
    options = parser.parse_args()
    if not 1 <= options.connections <= 15_000:
        parser.error("--connections: from 1 to 15000")
    if OTHER_GUARD in (options.defence or []) and not options.other_guard:
        parser.error(f"--defence {OTHER_GUARD}: needs --other-guard")
    if options.other_guard and not os.access(options.other_guard, os.X_OK):
        parser.error(f"--other-guard: {options.other_guard} cannot be run")
    if options.seconds < 5:
        parser.error("--seconds: at least 5")
    return options


def stop(*_) -> None:
    raise SystemExit(143)  # so that everything is removed on the way out


def main() -> int:
    options = arguments()
    if options.check_arguments:
        return 0
    if os.geteuid() != 0:
        print("attack.py: needs root: it makes network namespaces", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    limit = min(DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    netns.sweep()
    document = {"schema": 1, "machine": machine(), "rows": [], "skipped": []}
    measured = []
    defences = list(stage.DEFENCES)
    if options.other_guard:
        defences.append(stage.Guard(OTHER_GUARD, options.other_guard.resolve()))
    for server in options.server or SERVERS:
        for defence in defences:
            if options.defence and defence.name not in options.defence:
                continue
            why = defence.why_not(server)
            if why:
                document["skipped"].append({"server": server, "defence": defence.name, "why": why})
                print(f"attack: {server}, {defence.name}: not measured: {why}", file=sys.stderr)
                continue
            for attack in options.only or generators.ATTACKS:
                print(f"attack: {server}, {defence.name}, {attack}", file=sys.stderr, flush=True)
                measured.append(measure_once(server, attack, defence, options))
                document["rows"].append(measured[-1][0])
    # Side by side: what each defence makes of the same attack.
    order = {name: number for number, name in enumerate(generators.ATTACKS)}
    measured.sort(key=lambda pair: (pair[0]["server"], order[pair[0]["attack"]]))
    document["rows"] = [row for row, _ in measured]
    page = build.ROOT / "build/attack-report.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text(report.page(document, measured), encoding="utf-8")
    print(f"attack: the report is {page}", file=sys.stderr)
    if options.json == "-":
        json.dump(document, sys.stdout, indent=1)
        print()
    else:
        if options.json:
            with open(options.json, "w", encoding="utf-8") as out:
                json.dump(document, out, indent=1)
        print(report.markdown(document["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
