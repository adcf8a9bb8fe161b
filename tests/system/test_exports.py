"""What the exports send, as Debian's own tools read it: nfcapd and nfdump, tshark, a scraper, a reader of JSON lines.

Observations come from the test through mw_export_feed, in the NetFlow interface's bytes of version 2.
"""

import json
import os
import re
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mwtest import build, proc
from mwtest.session import BASE

from mwnetflow import FlowFlag

ACCEPT, CONNECT, RECV, SEND, CLOSE = 3, 4, 5, 6, 7
ACCEPTED = FlowFlag.INBOUND | FlowFlag.ESTABLISHED
FINISHED = ACCEPTED | FlowFlag.PEER_FIN | FlowFlag.OUR_FIN


def endpoint(address: str, port: int) -> bytes:
    six = ":" in address
    packed = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, address)
    return struct.pack(">I16sH", 6 if six else 4, packed, port)


def observation(kind: int, number: int, at: float, peer=("192.0.2.9", 40000), local=("192.0.2.1", 80), total_in=0,
                total_out=0, flags=ACCEPTED) -> bytes:
    """One as the wire has it, `at` seconds from now."""
    name = lambda n: 0x53 << 56 | 1 << 40 | n  # noqa: E731
    when = time.time() + at
    stamp = struct.pack(">QQ", int(when), int(when % 1 * 1e9))
    extra = name(number) if kind in (ACCEPT, CLOSE) else 0
    return (struct.pack(">HIQH", 0xd346, 152, 0, kind) + stamp + stamp +
            struct.pack(">q", name(1 if kind == ACCEPT else number)) + endpoint(*local) + endpoint(*peer) +
            struct.pack(">QQQHHII16s", total_in, total_out, extra, 1, flags, 77, 33, b"server"))


def conversation(number: int, peer, local, total_in: int, total_out: int, end=FINISHED, seconds: float = 1) -> bytes:
    at = dict(peer=peer, local=local)
    return (observation(ACCEPT, number, 0, **at) +
            observation(RECV, number, 0, total_in=total_in, **at) +
            observation(SEND, number, seconds, total_in=total_in, total_out=total_out, **at) +
            observation(CLOSE, number, seconds, total_in=total_in, total_out=total_out, flags=end, **at))


FLOWS = [(("192.0.2.9", 40000), ("192.0.2.1", 80), 120, 4500),
         (("2001:db8::9", 40001), ("2001:db8::1", 443), 7, 1 << 33),
         (("::ffff:198.51.100.7", 40002), ("::ffff:192.0.2.1", 80), 1, 2, ACCEPTED | FlowFlag.PEER_RST)]


def some_flows() -> bytes:
    return b"".join(conversation(100 + n, *flow) for n, flow in enumerate(FLOWS))


class Feed:
    """A running exporter."""

    def __init__(self, folder, config: str, *arguments: str) -> None:
        path = folder / "exports.toml"
        path.write_text(config)
        self.process = subprocess.Popen([str(build.program("mw_export_feed")), str(path), *arguments],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.prometheus = self.process.stdout.readline().decode().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert status == 0

    def say(self, data: bytes) -> None:
        self.process.stdin.write(data)


class Collector:
    """Keeps each message of a UDP or TCP exporter."""

    def __init__(self, kind=socket.SOCK_DGRAM) -> None:
        self.socket = socket.socket(socket.AF_INET, kind)
        self.socket.settimeout(20)
        self.socket.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            self.socket.listen(1)
        self.address = "127.0.0.1:%d" % self.socket.getsockname()[1]

    def datagrams(self, records: int) -> list:
        found = []
        while count(found) < records:
            found.append(self.socket.recv(65536))
        return found


def split(data: bytes) -> list:
    """The messages of a stream."""
    found = []
    while data:
        size = struct.unpack(">HH", data[:4])[1]
        found.append(data[:size])
        data = data[size:]
    return found


def sets(message: bytes):
    at = 16
    while at < len(message):
        kind, size = struct.unpack(">HH", message[at:at + 4])
        yield kind, message[at + 4:at + size]
        at += size


def count(messages: list) -> int:
    sizes = {256: 72, 257: 96}
    return sum(len(content) // sizes[kind] for message in messages for kind, content in sets(message) if kind >= 256)


def pcap(path, messages: list) -> None:
    """A capture of these messages as UDP to port 4739."""
    with open(path, "wb") as out:
        out.write(struct.pack("<IHHIIII", 0xa1b2c3d4, 2, 4, 0, 0, 262144, 101))  # LINKTYPE_RAW
        for message in messages:
            udp = struct.pack(">HHHH", 40000, 4739, 8 + len(message), 0) + message
            ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, b"\x7f\0\0\1", b"\x7f\0\0\1") + udp
            out.write(struct.pack("<IIII", 0, 0, len(ip), len(ip)) + ip)


def dissected(path) -> str:
    done = proc.run(["tshark", "-r", path, "-V", "-O", "cflow"], 120,
                    env={**os.environ, "HOME": str(path.parent)})
    return done.stdout.decode()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_tshark_understands_every_field(tmp_path, transport):
    collector = Collector(socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM)
    with Feed(tmp_path, f'[exports.ipfix]\ncollector = "{collector.address}"\ntransport = "{transport}"\n') as feed:
        if transport == "tcp":
            connection, _ = collector.socket.accept()
            connection.settimeout(20)
            # The templates are the sign that it has seen the connection.
            head = connection.recv(16, socket.MSG_WAITALL)
            data = head + connection.recv(struct.unpack(">HH", head[:4])[1] - 16, socket.MSG_WAITALL)
        feed.say(some_flows())
        if transport == "udp":
            messages = collector.datagrams(len(FLOWS))
    if transport == "tcp":
        with connection:
            while part := connection.recv(65536):
                data += part
        messages = split(data)
    assert count(messages) == len(FLOWS)
    pcap(tmp_path / "ipfix.pcap", messages)
    text = dissected(tmp_path / "ipfix.pcap")
    assert not re.search(r"(?i)malformed|no template found|unknown|expert", text), text
    for line in ("SrcAddr: 192.0.2.9", "DstAddr: 192.0.2.1", "SrcAddr: 2001:db8::9", "DstAddr: 2001:db8::1",
                 "SrcAddr: 198.51.100.7", "SrcPort: 40000", "DstPort: 443", "Octets: 120",
                 "Octets: 4500 (Reverse Type 1", f"Octets: {1 << 33} (Reverse Type 1",
                 "Flow End Reason: End of Flow detected (3)", "Biflow Direction: Initiator (1)", "Protocol: TCP (6)"):
        assert line in text, (line, text)


def test_nfdump_reads_what_nfcapd_took(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    log = tmp_path / "nfcapd.log"
    with proc.Background(["nfcapd", "-w", store, "-b", "127.0.0.1", "-p", port, "-t", "300"], log) as nfcapd:
        needle = f"0100007F:{port:04X} "
        proc.wait_for(lambda: needle in open("/proc/net/udp").read(), 20, "nfcapd listens", nfcapd)
        with Feed(tmp_path, f'[exports.ipfix]\ncollector = "127.0.0.1:{port}"\n') as feed:
            feed.say(some_flows())
        # Its receive queue is empty when it has taken all.
        proc.wait_for(lambda: re.search(rf"{needle}\S+ \S+ \S+:00000000 ", open("/proc/net/udp").read()), 20,
                      "nfcapd reads", nfcapd)
        nfcapd.stop()  # writes what it has
    done = proc.run(["nfdump", "-R", store, "-o", "json"], 60)
    flows = {flow["src_port"]: flow for flow in json.loads(done.stdout)}
    assert set(flows) == {40000, 40001, 40002}, log.read_text()
    v4, v6, mapped = flows[40000], flows[40001], flows[40002]
    assert (v4["src4_addr"], v4["dst4_addr"], v4["dst_port"]) == ("192.0.2.9", "192.0.2.1", 80)
    assert (v4["in_bytes"], v4["out_bytes"], v4["proto"]) == (120, 4500, 6)
    assert (v6["src6_addr"], v6["dst6_addr"]) == ("2001:db8::9", "2001:db8::1")
    assert (v6["in_bytes"], v6["out_bytes"]) == (7, 1 << 33)
    assert (mapped["src4_addr"], mapped["in_bytes"], mapped["out_bytes"]) == ("198.51.100.7", 1, 2)
    assert "P" in v4["tcp_flags"] and "S" in v4["tcp_flags"] and "F" in v4["tcp_flags"]
    assert "R" not in v4["tcp_flags"] and "R" in mapped["tcp_flags"] and "F" not in mapped["tcp_flags"]


def test_active_and_idle_timeouts_in_real_time(tmp_path):
    """One connection that keeps talking is told every two seconds, a silent one once after one."""
    collector = Collector()
    start = time.time()
    with Feed(tmp_path, '[exports]\nactive_timeout_s = 2\nidle_timeout_s = 1\n[exports.ipfix]\n'
              f'collector = "{collector.address}"\n') as feed:
        feed.say(observation(ACCEPT, 1, 0) + observation(ACCEPT, 2, 0))
        total = 0
        reasons = {}
        while len(reasons.get(1, [])) < 3:
            assert time.time() - start < 30, reasons
            total += 10
            feed.say(observation(RECV, 1, 0, total_in=total))
            collector.socket.settimeout(0.1)
            try:
                message = collector.socket.recv(65536)
            except TimeoutError:
                continue
            for kind, content in sets(message):
                for one in range(0, len(content) if kind == 256 else 0, 72):
                    record = content[one:one + 72]
                    begun, ended, octets = struct.unpack(">QQQ", record[8:32])
                    number = struct.unpack(">Q", record[56:64])[0] & 0xffffffff
                    reasons.setdefault(number, []).append(record[70])
                    if number == 1:
                        # Some slack for a busy machine, none downwards.
                        assert 2000 <= ended - begun < 5000 and octets > 0
    assert set(reasons[1]) == {2} and reasons[2] == [1]


def test_json_lines_and_prometheus(tmp_path):
    file = tmp_path / "flows.json"
    with Feed(tmp_path, f'[exports.json_lines]\nfile = "{file}"\n[exports.prometheus]\nlisten = "127.0.0.1:0"\n') as feed:
        feed.say(some_flows() + observation(ACCEPT, 999, 0))

        def scrape() -> dict:
            with urllib.request.urlopen(f"http://{feed.prometheus}/metrics", timeout=10) as answer:
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                text = answer.read().decode()
            # No peer is in it.
            assert "192.0.2" not in text and "40000" not in text
            return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))

        proc.wait_for(lambda: scrape()["mwcomms_flows_ended_total"] == "3", 20, "three flows ended")
        values = scrape()
        assert values["mwcomms_flows_open"] == "1"
        assert values["mwcomms_flow_bytes_total{direction=\"in\"}"] == "128"
        assert values["mwcomms_flow_duration_seconds_count"] == "3"
        assert values["mwcomms_observations_lost_total{where=\"export_queue\"}"] == "0"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["id.orig_p"] for line in lines if line["reason"] == "closed"] == [40000, 40001, 40002]
    assert lines[0]["orig_bytes"] == 120 and lines[0]["conn_state"] == "SF" and lines[0]["final"] is True
    assert (lines[0]["pid"], lines[0]["user_id"], lines[0]["command"]) == (77, 33, "server")
    assert lines[2]["conn_state"] == "RSTO" and lines[2]["history"] == "ShADdR"
    assert lines[-1]["reason"] == "unobserved" and lines[-1]["conn_state"] == "S1"


def test_a_session_exports_what_its_server_does(mw, start, server, tmp_path, free_port):
    """Also while a collector takes the connection and reads nothing."""
    file, config = tmp_path / "flows.json", tmp_path / "exports.toml"
    collector, stalled = Collector(), Collector(socket.SOCK_STREAM)
    config.write_text(f'[netflow]\nlisten = "none"\n[exports.ipfix]\ncollector = "{collector.address}"\n'
                      f'[exports.json_lines]\nfile = "{file}"\n[exports.prometheus]\nlisten = "unix:{tmp_path}/m"\n')
    session = start("--config", str(config), "-p", f"127.0.0.1:{free_port}:80", "--", *server, "80", "hello")
    assert Path(BASE, session.name, "mw/pvm/prometheus").read_text().strip() == f"unix:{tmp_path}/m"

    def ask() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/", timeout=10) as answer:
            return answer.read().decode()

    def answers() -> bool:
        try:
            return ask().startswith("hello")
        except (urllib.error.URLError, ConnectionError):
            return False

    proc.wait_for(answers, 20, "the server answers", session.background)
    for _ in range(5):
        ask()

    def closed() -> list:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return [line for line in lines if line["reason"] == "closed" and line["resp_bytes"] > 0]

    proc.wait_for(lambda: len(closed()) >= 6, 20, "six connections in the file", session.background)
    one = closed()[-1]
    assert (one["id.resp_p"], one["proto"], one["local_orig"], one["user_id"]) == (80, "tcp", False, 0)
    # Who closes first is up to the two of them; the server sees the other's end only if that was it.
    assert one["conn_state"] in ("SF", "S3") and one["history"].startswith("ShADd")
    assert one["pid"] != 0 and one["command"] != ""
    assert one["id.resp_h"] == session.record["ins4"] and one["orig_bytes"] > 50 and one["resp_bytes"] > 50
    messages = collector.datagrams(6)
    assert any(kind == 2 for message in messages for kind, _ in sets(message))
    with socket.socket(socket.AF_UNIX) as scraper:
        scraper.connect(str(tmp_path / "m"))
        scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b""
        while part := scraper.recv(65536):
            text += part
    assert int(re.search(rb"mwcomms_flows_ended_total (\d+)", text).group(1)) >= 6
    session.background.stop()

    # A collector that reads nothing changes nothing for the client.
    config.write_text(f'[exports.ipfix]\ncollector = "{stalled.address}"\ntransport = "tcp"\n'
                      '[exports]\nactive_timeout_s = 1\nidle_timeout_s = 1\n')
    session = start("--config", str(config), "-p", f"127.0.0.1:{free_port}:80", "--", *server, "80", "hello")
    proc.wait_for(answers, 20, "the server answers", session.background)
    for _ in range(20):
        assert ask().startswith("hello")


def test_a_wrong_configuration_starts_nothing(mw, unchanged, tmp_path):
    config = tmp_path / "exports.toml"
    config.write_text('[netflow]\nlisten = "0.0.0.0:0"\n')
    done = proc.run([mw, "run", "--config", config, "--", "true"], 20, check=False)
    assert done.returncode == 2 and b":2:" in done.stderr


def test_check_config(tmp_path):
    mw = build.program("mw")
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('[netflow]\nlisten = "127.0.0.1:0"\n')
    bad.write_text('[netflow]\nlisten = "0.0.0.0:4711"\nrole = "god"\n')
    done = proc.run([mw, "check-config", good], 20)
    assert (done.stdout, done.stderr) == (b"", b"")
    done = proc.run([mw, "check-config", bad], 20, check=False)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 2 and len(lines) == 2 and done.stdout == b""
    assert lines[0].startswith(f"{bad}:2:10: 0.0.0.0:4711 is reached from elsewhere")
    assert lines[1].startswith(f"{bad}:3:8: role has to be")
    done = proc.run([mw, "check-config", "--json", bad], 20, check=False)
    document = json.loads(done.stdout)
    assert done.returncode == 2 and document["ok"] is False
    assert [fault["line"] for fault in document["faults"]] == [2, 3]
    done = proc.run([mw, "check-config", "--json", tmp_path / "none"], 20, check=False)
    assert done.returncode == 3 and json.loads(done.stdout)["ok"] is False
    assert proc.run([mw, "check-config"], 20, check=False).returncode == 2


def test_check_config_may_not_read(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    secret = tmp_path / "secret.toml"
    secret.write_text("")
    secret.chmod(0o600)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    with open(build.program("mw"), "rb") as program:
        done = proc.run(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
                         f"/proc/self/fd/{program.fileno()}", "check-config", secret], 20, check=False,
                        pass_fds=[program.fileno()])
    assert done.returncode == 4, done.stderr
