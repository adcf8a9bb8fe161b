"""What a row of ./dev bench claims."""

import sys

import pytest

from mwtest import build

sys.path.insert(0, str(build.ROOT / "bench"))

import bench  # noqa: E402  (needs the path above)

RELAYS = {"haproxy": 2.0, "socat": 3.0}


def row(ours: float, relays: dict = RELAYS, **counted) -> bench.Row:
    return bench.Row("w", "m", 1.0, ours, relays, bench.at_most(1.5), **counted)


@pytest.mark.parametrize(("ours", "met", "verdict"), [(1.5, True, "met"), (1.6, False, "MISSED")])
def test_a_target_is_met_or_missed(ours, met, verdict):
    one = row(ours)
    assert one.document()["met"] is met and one.verdict() == verdict
    assert "tried" not in one.document()


@pytest.mark.parametrize(("tried", "met", "verdict"), [
    (100_000, True, "met"), (9_750, None, "not decided at 9750 of 100000")])
def test_fewer_than_the_target_names_decide_nothing(tried, met, verdict):
    one = row(1.0, {}, tried=tried, wanted=100_000)
    document = one.document()
    assert (document["tried"], document["wanted"], document["met"]) == (tried, 100_000, met)
    assert one.verdict() == verdict


@pytest.mark.parametrize(("relays", "beats", "said"), [
    (RELAYS, True, False), ({"haproxy": 1.0, "socat": 3.0}, False, True), ({}, None, False)],
    ids=["better", "not-better", "none"])
def test_only_relays_that_were_measured_are_beaten(relays, beats, said):
    one = row(1.2, relays)
    assert one.document()["beats_relays"] is beats
    assert ("RELAY" in one.verdict()) is said


def test_the_table_says_what_is_not_decided(capsys):
    bench.print_table([row(1.0, {}, tried=9_750, wanted=100_000)])
    assert "<= 1.5 x native: not decided at 9750 of 100000" in capsys.readouterr().out


def test_idle_connections_tell_how_many_there_were():
    with bench.Stage() as stage:
        rows = bench.idle_connections(stage, True)
    assert [one.document()["tried"] for one in rows] == [5000, 5000]
    assert [one.met for one in rows] == [None, None]


def test_a_repaired_wake_up_fails_the_run(monkeypatch, tmp_path, capsys):
    def repairing(_stage, _quick):
        (tmp_path / "mwcomms").mkdir()
        (tmp_path / "mwcomms/repairs").write_text("s1 2\n")
        return [row(1.0)]

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(bench, "WORKLOADS", (repairing,))
    monkeypatch.setattr(sys, "argv", ["bench.py"])
    status = bench.main()
    (tmp_path / "mwcomms/repairs").unlink()  # this test's own check would find it
    assert status == 1 and f"2 in session {tmp_path}/mwcomms/s1" in capsys.readouterr().err
