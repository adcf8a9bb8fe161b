"""Name servers, asked by dig over UDP and TCP, one question and many; answers too large for UDP come over TCP."""

import hashlib
import shutil

import pytest

from mwtest.proc import wait_for

NAMES = 100
TEXTS = [hashlib.sha256(b"%d" % i).hexdigest() * 3 for i in range(12)]  # together more than a datagram may have


def ask(box, *words) -> list:
    answer = box.run(["dig", "@127.0.0.1", "-p", 53, "+short", "+time=10", "+tries=1", *words]).stdout.decode()
    return answer.splitlines()


def check(box, server) -> None:
    wait_for(lambda: ask(box, "h7.example.test", "A"), 60, "it has read its zone", server)
    questions = box.directory / "questions"
    questions.write_text("".join(f"h{i}.example.test A\n" for i in range(NAMES)))
    wanted = [f"198.51.100.{i}" for i in range(NAMES)]
    for way in ("+notcp", "+tcp"):
        assert ask(box, way, "h7.example.test", "A") == ["198.51.100.7"]
        assert ask(box, way, "-f", questions) == wanted
    for way in ("+ignore", "+noignore", "+tcp"):
        texts = sorted(line.strip('"') for line in ask(box, way, "big.example.test", "TXT"))
        if way == "+ignore":
            assert len(texts) < len(TEXTS), "the datagram was cut, and TCP not tried"
        else:
            assert texts == sorted(TEXTS)


def check_six(box) -> None:
    """Over IPv6, where the server is on the caller's network."""
    for way in ("+notcp", "+tcp"):
        assert box.run(["dig", "@::1", "+short", "+time=10", "+tries=1", way, "h7.example.test"]).stdout == b"198.51.100.7\n"


@pytest.mark.rotating
def test_bind9(box):
    records = "".join(f"h{i} A 198.51.100.{i}\n" for i in range(NAMES))
    records += "".join(f'big TXT "{text}"\n' for text in TEXTS)
    zone = f"$TTL 60\n@ SOA ns a 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\n{records}"
    (box.directory / "zone").write_text(zone)
    folder = box.directory / "bind"
    folder.mkdir()
    shutil.chown(folder, "bind", "bind")
    (box.directory / "named.conf").write_text(
        f'options {{ directory "{folder}"; pid-file none; session-keyfile none; listen-on {{ any; }}; '
        f"listen-on-v6 {{ any; }}; recursion no; dnssec-validation no; allow-transfer {{ any; }}; }};\n"
        f'controls {{ }};\nzone "example.test" {{ type primary; file "{box.directory}/zone"; }};\n')
    server = box.start("named", ["named", "-g", "-u", "bind", "-c", box.directory / "named.conf"])
    box.wait_port(53, server)
    check(box, server)
    check_six(box)
    transferred = box.run(["dig", "@127.0.0.1", "+noall", "+answer", "example.test", "AXFR"]).stdout.decode()
    assert transferred.count(" A\t") + transferred.count("\tA\t") == NAMES + 1, transferred


@pytest.mark.rotating
@pytest.mark.isolated
def test_unbound(box):
    data = "".join(f'  local-data: "h{i}.example.test. A 198.51.100.{i}"\n' for i in range(NAMES))
    data += "".join(f"  local-data: 'big.example.test. TXT \"{text}\"'\n" for text in TEXTS)
    (box.directory / "unbound.conf").write_text(
        f'server:\n  directory: "{box.directory}"\n  chroot: ""\n  pidfile: ""\n  use-syslog: no\n  num-threads: 2\n'
        f"  interface: 0.0.0.0\n  interface: ::0\n  access-control: 0.0.0.0/0 allow\n  access-control: ::/0 allow\n"
        f'  local-zone: "example.test." static\n{data}remote-control:\n  control-enable: no\n')
    server = box.start("unbound", ["unbound", "-d", "-c", box.directory / "unbound.conf"], ports=[53, "53/udp"])
    box.wait_port(53, server)
    check(box, server)
    if "::1" in box.addresses:
        check_six(box)


@pytest.mark.rotating
def test_dnsmasq(box):
    (box.directory / "dnsmasq.conf").write_text(
        "no-resolv\nno-hosts\n" + "".join(f"host-record=h{i}.example.test,198.51.100.{i}\n" for i in range(NAMES))
        + "".join(f"txt-record=big.example.test,{text}\n" for text in TEXTS))
    server = box.start("dnsmasq", ["dnsmasq", "-k", "-C", box.directory / "dnsmasq.conf", "-x", box.directory / "pid",
                                   "--log-facility=-"])
    box.wait_port(53, server)
    check(box, server)
    check_six(box)
