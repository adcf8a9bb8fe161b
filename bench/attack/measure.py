"""measure.py - from events to figures; pure, no input or output.

A probe is served (first byte within DEGRADED_MS), degraded (later) or denied (not within its time-out, or refused).
It does not count while the machine itself was slow, which the control probe tells. The service is degraded from the
first of three bad probes in a row, and normal again from the start of NORMAL_SECONDS in which at least
NORMAL_SHARE of the probes and of the fast clients' requests were served in time, while the attack goes on.
"""

import bisect
from dataclasses import dataclass, field

DEGRADED_MS = 300
CONTROL_MS = 150
IN_A_ROW = 3
NORMAL_SECONDS = 3.0
NORMAL_SHARE = 0.98
NORMAL_FAST_SECONDS = 1.0
MACHINE_LIMIT = 0.05  # a row is inconclusive if more of its probes fell into slow times of the machine

TARGETS = (("detect_s", "<=", 0.65), ("recover_s", "<=", 7.5), ("cut_share", "<=", 0.01), ("served_after", ">=", 0.99))


@dataclass
class Events:
    """What one run recorded; times are monotonic seconds."""
    begin: float
    attack: float  # the attack begins
    end: float     # the attack is still on; nothing new is started after this
    probes: list = field(default_factory=list)
    control: list = field(default_factory=list)
    honest: list = field(default_factory=list)
    attacker: list = field(default_factory=list)
    first_action: float = None  # what the defence did first about the attack, if it can tell; else the first cut is taken


def machine_was_slow(control: list):
    """A function: did the machine lag around this time?"""
    times = [one["t"] for one in control]

    def slow(when: float) -> bool:
        low, high = bisect.bisect_left(times, when - 0.15), bisect.bisect_right(times, when + 0.45)
        near = control[low:high]
        # Also if there is none: the prober itself did not run.
        return not near or any(one["ms"] > CONTROL_MS or one["fate"] != "served" for one in near)
    return slow


def judge(probe: dict) -> str:
    if probe["fate"] != "served":
        return "denied"
    return "degraded" if probe["ms"] > DEGRADED_MS else "served"


def first_degraded(judged: list) -> float:
    """judged: (time, verdict) of probes that count. None if the service held."""
    for index in range(len(judged) - IN_A_ROW + 1):
        if all(verdict != "served" for _, verdict in judged[index:index + IN_A_ROW]):
            return judged[index][0]
    return None


def normal_again(judged: list, fast: list, onset: float, end: float) -> float:
    """When the service became normal under attack, or None."""
    for when, verdict in judged:
        if when < onset or verdict != "served":
            continue
        if when + NORMAL_SECONDS > end:
            return None
        seen = [one == "served" for time, one in judged if when <= time < when + NORMAL_SECONDS]
        seen_fast = [one["fate"] == "served" and one["end"] - one["t"] <= NORMAL_FAST_SECONDS
                     for one in fast if when <= one["t"] < when + NORMAL_SECONDS]
        if len(seen) >= 10 and all(sum(each) >= NORMAL_SHARE * len(each) for each in (seen, seen_fast)):
            return when
    return None


def share(requests: list, begin: float, end: float) -> float:
    """The served ones among the requests that began in this time; None if there was none."""
    chosen = [one["fate"] == "served" for one in requests if begin <= one["t"] < end]
    return sum(chosen) / len(chosen) if chosen else None


def cuts(requests: list, begin: float) -> tuple:
    """(connections that the other side ended unfinished, connections) with a request that ended since."""
    since = [one for one in requests if one["end"] >= begin and one["connected"]]
    all_of_them = {one["connection"] for one in since}
    cut = {one["connection"] for one in since if one["fate"] == "cut"}
    return len(cut), len(all_of_them)


def cuts_by_kind(requests: list, begin: float) -> dict:
    """For each kind of client: [connections that were cut, connections]."""
    return {kind: list(cuts([one for one in requests if one["kind"] == kind], begin))
            for kind in sorted({one["kind"] for one in requests})}


def first_act(acts, begin: float, owns) -> float:
    """The first of (time, peer) since `begin` that is about the attack: what a defence does to others detects nothing.

    owns(peer, time) tells whether a connection (ADDRESS:PORT) or an address is the attack's.
    """
    return next((when for when, peer in acts if when >= begin and owns(peer, when)), None)


def figures(events: Events, cuts_tell: bool) -> dict:
    """cuts_tell: the first connection of the attack that is cut is the work of a defence."""
    slow = machine_was_slow(events.control)
    counting = [(one["t"], judge(one)) for one in sorted(events.probes, key=lambda one: one["t"])
                if not slow(one["t"])]
    during_attack = [one for one in counting if events.attack <= one[0] < events.end]
    fast = [one for one in events.honest if one["kind"] == "fast"]
    onset = first_degraded(during_attack)
    recovered = None if onset is None else normal_again(during_attack, fast, onset, events.end)
    action = events.first_action
    if action is None and cuts_tell:
        action = next((one["t"] for one in events.attacker if one["kind"] == "cut"), None)
    worst = {verdict for _, verdict in during_attack} if onset is not None else {"served"}
    outcome = next(text for verdict, text in (("denied", "denied"), ("degraded", "degraded"), ("served", "held"))
                   if verdict in worst)
    probes = [one for one in events.probes if one["t"] < events.end]
    cut, connections = cuts(events.honest, events.attack)
    slow_cut, slow_connections = cuts([one for one in events.honest if one["kind"] != "fast"], events.attack)
    reports = [one for one in events.attacker if one["kind"] == "attack"]
    return {
        "outcome": outcome,
        # A defence that acts before anybody notices has detected in no time.
        "detect_s": max(0.0, action - onset) if onset is not None and action is not None else None,
        "recover_s": recovered - onset if recovered is not None else None,
        "served_before": share(events.honest, events.begin, events.attack),
        "served_during": share(events.honest, events.attack if onset is None else onset, recovered or events.end),
        "served_after": share(events.honest, recovered, events.end) if recovered is not None else None,
        "honest_requests": len(events.honest),
        "honest_connections": connections, "honest_cut": cut,
        "honest_slow_connections": slow_connections, "honest_slow_cut": slow_cut,
        "honest_cut_by_kind": cuts_by_kind(events.honest, events.attack),
        "browsers_served": share([one for one in events.honest if one["kind"] == "browser"], events.attack, events.end),
        "cut_share": cut / connections if connections else None,
        "degraded_s": onset - events.attack if onset is not None else None,
        "attack_open_max": max((one["open"] for one in reports), default=0),
        "attack_open_end": next((one["open"] for one in reversed(reports) if one["t"] <= events.end), 0),
        "attack_cut": reports[-1]["cuts"] if reports else 0,
        "probes": len(probes),
        "machine_slow_share": 1 - sum(one[0] < events.end for one in counting) / len(probes) if probes else 1.0,
    }


def targets(found: dict) -> list:
    """Each target with its value; `met` is null where there was nothing to meet: no degradation, nothing to recover."""
    held = found["outcome"] == "held"
    rows = []
    for name, sign, limit in TARGETS:
        value = found[name]
        if value is None:
            met = None if held or name == "cut_share" else False
        else:
            met = value <= limit if sign == "<=" else value >= limit
        rows.append({"name": name, "target": f"{sign} {limit:g}", "value": value, "met": met})
    return rows


def verdict(found: dict) -> bool:
    """All targets met? None if the machine was too slow to tell."""
    if found["machine_slow_share"] > MACHINE_LIMIT:
        return None
    return all(one["met"] is not False for one in targets(found))
