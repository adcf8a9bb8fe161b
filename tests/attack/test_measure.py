"""The definitions of the bench's figures, on made-up events."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench/attack"))

import measure  # noqa: E402  (needs the path above)
import report  # noqa: E402
import stage  # noqa: E402


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


def test_only_an_act_on_the_attack_detects_it():
    acts = [(9.0, "10.201.2.10"), (11.0, "10.201.1.12:4000"), (12.0, "10.201.1.99"), (13.0, "10.201.2.10:4001"),
            (14.0, "10.201.2.10")]
    assert measure.first_act(iter(acts), 10.0, lambda peer, _: peer.startswith("10.201.2.10")) == 13.0
    assert measure.first_act(iter(acts), 10.0, lambda peer, _: peer == "10.201.3.1") is None


def test_who_hides_behind_an_address_is_known_by_its_ports():
    class Made(stage.Attack):
        def __init__(self, shared: bool) -> None:
            self.shared = shared

        def events(self) -> list:
            return [{"kind": "attack", "t": 11.0, "ports": [4000]}, {"kind": "cut", "t": 11.5},
                    {"kind": "attack", "t": 20.0, "ports": [5000]}]

    hidden, alone = Made(True), Made(False)
    assert hidden.owns(f"{stage.SHARED}:4000", 11.2)
    assert not hidden.owns(f"{stage.SHARED}:4001", 11.2)
    assert not hidden.owns(f"{stage.SHARED}:5000", 12.0), "that port was somebody else's by then"
    assert not hidden.owns(stage.SHARED, 11.2), "a block of the address is one of the honest people too"
    assert not hidden.owns(f"{stage.ATTACKER}:4000", 11.2)
    assert alone.owns(f"{stage.ATTACKER}:1", 11.2) and alone.owns(stage.ATTACKER, 11.2)
    assert not alone.owns(f"{stage.HONEST[3]}:4000", 11.2)


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


def test_a_stream_from_before_the_attack_counts_when_it_is_cut_in_it():
    honest = [{**request(8, "cut", "events", 1), "end": 12.0}, request(8, "cut", "poll", 2)]
    found = measure.figures(run(probes(0, 40), honest), True)
    assert found["honest_cut_by_kind"] == {"events": [1, 1], "poll": [0, 0]}


def test_cuts_are_told_by_kind_of_client():
    honest = [request(15, "cut", "browser", 1), request(16, "served", "browser", 2), request(17, "cut", "events", 3),
              request(18, "served", "poll", 4), request(19, "served", "fast", 5), request(20, "timeout", "browser", 6)]
    found = measure.figures(run(probes(0, 40), honest), True)
    assert found["honest_cut_by_kind"] == {"browser": [1, 3], "events": [1, 1], "fast": [0, 1], "poll": [0, 1]}
    assert found["browsers_served"] == pytest.approx(1 / 3)
    assert set(found["honest_cut_by_kind"]) <= set(report.KINDS)
    assert report.text_of("honest_cut_by_kind", found["honest_cut_by_kind"]) == \
        "browser behind NAT 1/3, event stream 1/1"
    assert report.text_of("honest_cut_by_kind", {"fast": [0, 7]}) == "none"


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
