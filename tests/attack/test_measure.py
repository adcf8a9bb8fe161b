"""The definitions of the bench's figures, on made-up events."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench/attack"))

import measure  # noqa: E402  (needs the path above)
import report  # noqa: E402


def probes(begin: float, end: float, ms: float = 5, fate: str = "served") -> list:
    count = round((end - begin) * 10)
    return [{"kind": "probe", "t": begin + index / 10, "ms": ms, "fate": fate} for index in range(count)]


def request(when: float, fate: str = "served", kind: str = "fast", connection: int = None) -> dict:
    return {"kind": kind, "t": when, "end": when + 0.1, "fate": fate, "connected": True,
            "connection": round(when * 1000) if connection is None else connection}


def run(probe_list: list, honest: list = (), attacker: list = (), control: list = None) -> measure.Events:
    """The attack begins at 10 and the run ends at 40."""
    return measure.Events(0.0, 10.0, 40.0, probe_list, probes(0, 40) if control is None else control, list(honest),
                          list(attacker))


def test_held():
    found = measure.figures(run(probes(0, 40), [request(when) for when in range(40)]), True)
    assert found["outcome"] == "held"
    assert found["detect_s"] is None and found["recover_s"] is None
    assert found["served_before"] == found["served_during"] == 1.0
    assert measure.verdict(found) is True


def test_denied_for_good():
    found = measure.figures(run(probes(0, 12) + probes(12, 40, 2000, "timeout"),
                                [request(when, "served" if when < 12 else "timeout") for when in range(40)]), True)
    assert found["outcome"] == "denied"
    assert found["degraded_s"] == pytest.approx(2.0)
    assert found["served_during"] == 0.0 and found["served_after"] is None
    assert measure.verdict(found) is False


def test_detected_and_recovered():
    attacker = [{"kind": "attack", "t": 11.0, "open": 900, "opened": 900, "cuts": 0}, {"kind": "cut", "t": 12.5},
                {"kind": "attack", "t": 39.0, "open": 10, "opened": 1800, "cuts": 890}]
    honest = [request(when / 10, "timeout" if 120 <= when < 170 else "served") for when in range(400)]
    found = measure.figures(run(probes(0, 12) + probes(12, 17, 900) + probes(17, 40), honest, attacker), True)
    assert found["outcome"] == "degraded"
    assert found["detect_s"] == pytest.approx(0.5)
    assert found["recover_s"] == pytest.approx(5.0)
    assert (found["served_before"], found["served_during"], found["served_after"]) == (1.0, 0.0, 1.0)
    assert (found["attack_open_max"], found["attack_open_end"], found["attack_cut"]) == (900, 10, 890)
    assert measure.verdict(found) is True


def test_an_undefended_server_detects_nothing():
    found = measure.figures(run(probes(0, 12) + probes(12, 40, 2000, "timeout"), [],
                                [{"kind": "cut", "t": 12.1}]), False)
    assert found["detect_s"] is None


def test_two_bad_probes_are_no_degradation():
    assert measure.figures(run(probes(0, 12) + probes(12, 12.2, 900) + probes(12.2, 40)), True)["outcome"] == "held"


def test_a_relapse_shows_in_what_is_served_afterwards():
    honest = [request(when / 10, "timeout" if 120 <= when < 130 or when >= 300 else "served") for when in range(400)]
    found = measure.figures(run(probes(0, 12) + probes(12, 13, 900) + probes(13, 30) + probes(30, 40, 900), honest), True)
    assert found["recover_s"] == pytest.approx(1.0)
    assert found["served_after"] == pytest.approx(170 / 270)
    assert measure.verdict(found) is False


def test_slow_requests_of_fast_clients_are_not_normal():
    honest = [{**request(when / 10), "end": when / 10 + (2.0 if when < 200 else 0.1)} for when in range(400)]
    found = measure.figures(run(probes(0, 12) + probes(12, 13, 900) + probes(13, 40), honest), True)
    assert found["recover_s"] == pytest.approx(8.0)


def test_slow_times_of_the_machine_do_not_count():
    slow = probes(0, 12) + probes(12, 20, 900) + probes(20, 40)
    found = measure.figures(run(slow, control=slow), True)
    assert found["outcome"] == "held"
    assert found["machine_slow_share"] == pytest.approx(0.2, abs=0.03)
    assert measure.verdict(found) is None, "too much to say anything"
    # The same without any probe at all: nobody looked.
    gap = probes(0, 12) + probes(20, 40)
    assert measure.figures(run(probes(0, 40), control=gap), True)["machine_slow_share"] > 0.15


def test_cut_connections_are_counted_once_and_only_during_the_attack():
    honest = [request(5, "cut"), request(15, "cut", "upload", 1), request(16, "served", "fast", 2),
              request(17, "served", "fast", 2), {**request(18, "refused"), "connected": False}]
    found = measure.figures(run(probes(0, 40), honest), True)
    assert (found["honest_cut"], found["honest_connections"]) == (1, 2)
    assert (found["honest_slow_cut"], found["honest_slow_connections"]) == (1, 1)
    assert measure.verdict(found) is False


def test_report_is_one_page_without_anything_from_elsewhere():
    events = run(probes(0, 12) + probes(12, 17, 900) + probes(17, 40), [request(when) for when in range(40)],
                 [{"kind": "attack", "t": 11.0, "open": 900, "opened": 900, "cuts": 0}])
    found = measure.figures(events, True)
    row = {"server": "apache", "attack": "slow-headers", "defence": "<b>", "outcome": found.pop("outcome"),
           "figures": found, "met": False}
    document = {"machine": {"kernel": "6"}, "rows": [row], "skipped": []}
    page = report.page(document, [(row, events)])
    assert page.count("<svg") == 2 and "&lt;b&gt;" in page and "<b>" not in page
    assert "http" not in page and "<script" not in page and "src=" not in page
    assert "| apache | slow-headers | <b> | degraded |" in report.markdown([row])
