"""report.py - the measurements as one HTML page without anything from elsewhere, and as a Markdown table."""

import html
import math

import measure

WIDTH, HEIGHT, LEFT, BOTTOM = 520, 150, 46, 18
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1150px; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } th, td { border: 1px solid #ccc; padding: 2px 8px; text-align: right; }
th, td:nth-child(-n+4) { text-align: left; } .yes { background: #dff0d8; } .no { background: #f6d5d5; } .void { color: #777; }
figure { display: inline-block; margin: 0 1em 1em 0; } figcaption { font-weight: 600; } text { font-size: 10px; fill: #555; }
"""
COLUMNS = (("server", "server"), ("attack", "attack"), ("defence", "defence"), ("outcome", "outcome"),
           ("detect_s", "detected after s"), ("recover_s", "normal after s"), ("served_before", "served before"),
           ("served_during", "during"), ("served_after", "after"), ("browsers_served", "browsers served"),
           ("honest_cut", "honest cut"), ("honest_connections", "of"), ("honest_cut_by_kind", "cut by kind"), ("attack_open_max", "attack held"), ("machine_slow_share", "machine slow"))
SHARES = ("served_before", "served_during", "served_after", "browsers_served", "machine_slow_share")
# What the kinds of load.py are called; the first ones are told first.
KINDS = {"fast": "plain", "browser": "browser behind NAT", "poll": "long poll", "events": "event stream",
         "upload": "slow uplink", "download": "slow download", "phone": "phone"}


def text_of(name: str, value) -> str:
    if value is None:
        return "-"
    if name == "honest_cut_by_kind":
        return ", ".join(f"{KINDS[kind]} {value[kind][0]}/{value[kind][1]}" for kind in KINDS
                         if value.get(kind, [0])[0]) or "none"
    if name in SHARES:
        return f"{value * 100:.1f} %"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def cells(row: dict) -> list:
    flat = {**row, **row["figures"]}
    met = {True: "yes", False: "no", None: "inconclusive"}[row["met"]]
    return [text_of(name, flat[name]) for name, _ in COLUMNS] + [met]


def markdown(rows: list) -> str:
    titles = [title for _, title in COLUMNS] + ["met"]
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    return "\n".join(lines + ["| " + " | ".join(cells(row)) + " |" for row in rows])


class Plot:
    """One diagram over the time of a run, as SVG."""

    def __init__(self, title: str, begin: float, end: float, low: float, high: float, logarithmic: bool) -> None:
        self._title, self._begin, self._end = title, begin, max(end, begin + 1)
        self._low, self._high, self._logarithmic = low, max(high, low + 1), logarithmic
        self._parts = []

    def _x(self, when: float) -> float:
        part = (min(max(when, self._begin), self._end) - self._begin) / (self._end - self._begin)
        return LEFT + (WIDTH - LEFT - 4) * part

    def _y(self, value: float) -> float:
        value = min(max(value, self._low), self._high)
        if self._logarithmic:
            part = math.log(value / self._low) / math.log(self._high / self._low)
        else:
            part = (value - self._low) / (self._high - self._low)
        return 4 + (HEIGHT - BOTTOM - 8) * (1 - part)

    def span(self, begin: float, end: float, colour: str) -> None:
        left, right = self._x(begin), self._x(end)
        self._parts.append(f'<rect x="{left:.1f}" y="4" width="{max(0, right - left):.1f}" '
                           f'height="{HEIGHT - BOTTOM - 8}" fill="{colour}"/>')

    def dots(self, points: list, colour: str) -> None:
        shape = "".join(f"M{self._x(when):.1f} {self._y(value):.1f}h1.8" for when, value in points)
        self._parts.append(f'<path d="{shape}" stroke="{colour}" stroke-width="1.8" fill="none"/>')

    def line(self, points: list, colour: str) -> None:
        shape = " ".join(f"{self._x(when):.1f},{self._y(value):.1f}" for when, value in points)
        self._parts.append(f'<polyline points="{shape}" stroke="{colour}" fill="none"/>')

    def mark(self, when: float, colour: str, what: str) -> None:
        x = self._x(when)
        self._parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{HEIGHT - BOTTOM - 4}" stroke="{colour}" '
                           f'stroke-dasharray="3 2"><title>{html.escape(what)}</title></line>')

    def svg(self, ticks: list) -> str:
        axis = "".join(f'<text x="{LEFT - 4}" y="{self._y(tick) + 3:.1f}" text-anchor="end">{tick:g}</text>'
                       for tick in ticks if self._low <= tick <= self._high)
        seconds = range(0, int(self._end - self._begin) + 1, 10)
        axis += "".join(f'<text x="{self._x(self._begin + one):.1f}" y="{HEIGHT - 4}" text-anchor="middle">{one}</text>'
                        for one in seconds)
        return (f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{html.escape(self._title)}">'
                + "".join(self._parts) + axis + "</svg>")


def plots(row: dict, events: measure.Events) -> str:
    found, last = row["figures"], events.end
    onset = None if found["degraded_s"] is None else events.attack + found["degraded_s"]
    latency = Plot("probe latency", events.begin, last, 1, 2000, True)
    reports = [(one["t"], one["open"]) for one in events.attacker if one["kind"] == "attack"]
    highest = max([value for _, value in reports], default=1)
    held = Plot("connections of the attack", events.begin, last, 0, highest, False)
    for plot in (latency, held):
        plot.span(events.attack, last, "#fdf3e3")
        if onset is not None:
            recovered = None if found["recover_s"] is None else onset + found["recover_s"]
            plot.span(onset, recovered or last, "#fbdcdc")
            plot.mark(onset, "#b00", "degraded")
            if recovered is not None:
                plot.mark(recovered, "#080", "normal again")
    for verdict, colour in (("served", "#2a6"), ("degraded", "#c80"), ("denied", "#c00")):
        latency.dots([(one["t"], one["ms"]) for one in events.probes if measure.judge(one) == verdict], colour)
    latency.line([(one["t"], one["ms"]) for one in events.control], "#bbb")
    held.line(reports, "#36c")
    title = html.escape(f"{row['server']}: {row['attack']}, defence {row['defence']}: {row['outcome']}")
    return (f"<h3>{title}</h3><figure><figcaption>probe, ms to the first byte (grey: the control)</figcaption>"
            f"{latency.svg([1, 10, 100, 300, 2000])}</figure>"
            f"<figure><figcaption>connections of the attack that are open</figcaption>{held.svg([0, highest])}</figure>")


def page(document: dict, measured: list) -> str:
    """measured: (row, Events) pairs."""
    body = []
    for row, _ in measured:
        words = cells(row)
        style = {"yes": "yes", "no": "no"}.get(words[-1], "void")
        body.append("<tr>" + "".join(f"<td>{html.escape(word)}</td>" for word in words[:-1])
                    + f'<td class="{style}">{words[-1]}</td></tr>')
    titles = "".join(f"<th>{title}</th>" for title in [title for _, title in COLUMNS] + ["met"])
    machine = html.escape(", ".join(f"{key}: {value}" for key, value in document["machine"].items()))
    wanted = html.escape("; ".join(f"{name} {sign} {limit:g}" for name, sign, limit in measure.TARGETS))
    skipped = "".join(f"<li>{html.escape(one['server'])}, {html.escape(one['defence'])}: {html.escape(one['why'])}</li>"
                      for one in document["skipped"])
    return (f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Attack bench</title><style>{STYLE}</style>'
            f"<h1>Attack bench</h1><p>{machine}</p><p>Targets: {wanted}. A row whose machine was slow for more than "
            f"{measure.MACHINE_LIMIT:.0%} of the probes is inconclusive.</p>"
            f"<table><tr>{titles}</tr>{''.join(body)}</table>"
            + (f"<p>Not measured:</p><ul>{skipped}</ul>" if skipped else "")
            + "".join(plots(row, events) for row, events in measured) + "</html>\n")
