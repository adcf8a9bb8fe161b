"""Whichever way a program looks names up, the question leaves from the INS and never from the host."""

import contextlib
import socket
import struct
import threading

import pytest

from mwtest import proc
from mwtest.session import output

SERVER = "198.18.253.1"
LONG = b"x" * 200


class NameServer(threading.Thread):
    """Knows a.test, reverse names and a long text, over UDP and TCP; remembers who asked what."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((SERVER, 53))
        self.tcp = socket.create_server((SERVER, 53))
        self.asked = []
        self.how = []  # for each of them whether it came over TCP, and with EDNS
        threading.Thread(target=self.serve_tcp, daemon=True).start()

    def run(self) -> None:
        while True:
            query, peer = self.udp.recvfrom(4096)
            if not query:
                return
            answer = self.answer(query, peer[0])
            if answer is None:
                continue
            if len(answer) > 512:
                answer = answer[:2] + bytes([answer[2] | 2]) + answer[3:12] + query[12:]
                answer = answer[:6] + bytes(6) + answer[12:]
            self.udp.sendto(answer, peer)

    def serve_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = self.tcp.accept()
                with connection:
                    query = connection.recv(4096)[2:]
                    answer = self.answer(query, peer[0], True)
                    connection.sendall(struct.pack("!H", len(answer)) + answer)

    def answer(self, query: bytes, who: str, tcp: bool = False):
        at, labels = 12, []
        while query[at]:
            labels.append(query[at + 1:at + 1 + query[at]].decode())
            at += query[at] + 1
        name = ".".join(labels)
        kind = struct.unpack("!H", query[at + 1:at + 3])[0]
        self.asked.append((who, name, kind))
        self.how.append((tcp, query[11] != 0))
        if name.startswith("silent"):
            return None
        data = {("a.test", 1): bytes([192, 0, 2, 7]), ("1.2.0.192.in-addr.arpa", 12): b"\1b\4test\0",
                ("six.test", 28): bytes([0x20, 1, 13, 184] + [0] * 11 + [6]), ("a.b.test", 1): bytes([192, 0, 2, 8])}.get((name, kind))
        records = [data] if data else []
        if kind == 16 and name in ("text.test", "longer.test"):
            records = [bytes([len(LONG)]) + LONG] * (4 if name == "text.test" else 40)
        code = 0 if records or name in ("a.test", "six.test") else 2 if name.startswith("fail") else 3
        question = query[12:at + 5]
        body = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(one)) + one for one in records)
        return query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(records), 0, 0) + question + body

    def stop(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(b"", (SERVER, 53))
        self.join(10)
        self.tcp.shutdown(socket.SHUT_RDWR)  # which ends the accept() as well
        self.tcp.close()
        self.udp.close()


@pytest.fixture
def names(mw, unchanged):
    output("ip", "address", "add", f"{SERVER}/32", "dev", "lo")
    try:
        server = NameServer()
        server.start()
        yield server
        server.stop()
    finally:
        output("ip", "address", "del", f"{SERVER}/32", "dev", "lo")


@pytest.fixture
def ask(mw, names, tmp_path):
    """ask(code) -> what the Python code prints under `mw run`, and who asked the name server what."""
    conf = tmp_path / "resolv.conf"
    hosts = tmp_path / "hosts"

    def begin(code: str, resolver: str = "", order: str = "", more: str = "", run: str = f"exec {mw} run --") -> tuple:
        script = tmp_path / "script.py"
        script.write_text(PRELUDE + code)
        conf.write_text(f"nameserver {SERVER}\n" + (resolver or "search test\noptions timeout:2 attempts:2\n"))
        hosts.write_text("127.0.0.1 localhost\n" + more)
        switch = tmp_path / "nsswitch.conf"
        switch.write_text(order or "hosts: files dns\n")
        del names.asked[:], names.how[:]
        inside = (f"mount --make-rprivate / && mount --bind {conf} /etc/resolv.conf && "
                  f"mount --bind {switch} /etc/nsswitch.conf && "
                  f"mount --bind {hosts} /etc/hosts && {run} /usr/bin/python3 {script}")
        done = proc.run(["unshare", "-m", "sh", "-c", inside], 60, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode(), names.asked

    return begin


PRELUDE = """
import ctypes, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
answer = ctypes.create_string_buffer(65536)
def herr():
    libc.__h_errno_location.restype = ctypes.POINTER(ctypes.c_int)
    return libc.__h_errno_location()[0]
def flags(n):
    return struct.unpack("!H", answer.raw[2:4])[0]
"""


def from_the_ins(asked: list) -> None:
    assert asked, "nobody asked"
    assert all(who.startswith(("10.213.", "100.127.", "172.29.", "198.19.")) for who, _, _ in asked), asked


@pytest.mark.parametrize("call", [
    "libc.res_query(b'a.test', 1, 1, answer, 65536)", "libc.__res_query(b'a.test', 1, 1, answer, 65536)",
    "libc.res_search(b'a', 1, 1, answer, 65536)", "libc.res_querydomain(b'a', b'test', 1, 1, answer, 65536)",
])
def test_the_resolver_library_asks_through_the_ins(ask, call):
    out, asked = ask(f"n = {call}\nprint(n, answer.raw[n - 4:n].hex(), flags(n) & 15)")
    assert out == f"{12 + 12 + 16} c0000207 0\n"
    from_the_ins(asked)
    assert {name for _, name, _ in asked} == {"a.test"}


def test_states_of_ones_own(ask):
    out, asked = ask("""
state = ctypes.create_string_buffer(1024)
libc.__res_ninit(state)
print(libc.res_nquery(state, b"a.test", 1, 1, answer, 65536))
print(libc.res_nsearch(state, b"a", 1, 1, answer, 65536))
message = ctypes.create_string_buffer(512)
n = libc.res_nmkquery(state, 0, b"a.test", 1, 1, None, 0, None, message, 512)
print(libc.res_nsend(state, message, n, answer, 65536), answer.raw[:2] == message.raw[:2])
print(libc.res_send(message, n, answer, 65536))
""")
    assert out == "40\n40\n40 True\n40\n"
    from_the_ins(asked)


def test_failures_are_told_as_ever(ask):
    out, asked = ask("""
print(libc.res_query(b"none.test", 1, 1, answer, 65536), herr())
print(libc.res_query(b"a.test", 1, 28, answer, 65536), herr())
print(libc.res_search(b"none", 1, 1, answer, 65536), herr())
print(libc.res_query(b"a..test", 1, 1, answer, 65536), herr())
print(libc.res_query(b"a.test", 1, 1, answer, 5), ctypes.get_errno())
""")
    assert out == "-1 1\n-1 4\n-1 1\n-1 3\n-1 22\n"
    from_the_ins(asked)


def test_a_long_answer_is_fetched_and_one_that_is_too_long_is_cut(ask):
    out, asked = ask("""
n = libc.res_query(b"text.test", 1, 16, answer, 65536)
print(n, flags(n) & 0x200, answer.raw[:n].count(b"x" * 200))
n = libc.res_query(b"text.test", 1, 16, answer, 100)
print(n, flags(n) & 0x200)
state = ctypes.create_string_buffer(1024)
libc.__res_ninit(state)
message = ctypes.create_string_buffer(512)
n = libc.res_nmkquery(state, 0, b"longer.test", 1, 16, None, 0, None, message, 512)
n = libc.res_nsend(state, message, n, answer, 65536)
print(n, flags(n) & 0x200, answer.raw[6:12].hex())
""")
    length = 12 + 15 + 4 * (12 + 201)
    assert out == f"{length} 0 4\n{length} 512\n{12 + 17} 512 000000000000\n"
    from_the_ins(asked)


def test_the_other_ways(ask):
    out, asked = ask("""
print(socket.gethostbyname("a.test"), socket.getaddrinfo("a.test", 80, socket.AF_INET)[0][4])
print(socket.gethostbyaddr("192.0.2.1")[0], socket.getnameinfo(("192.0.2.1", 80), socket.NI_NUMERICSERV))
class Gaicb(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("service", ctypes.c_char_p), ("request", ctypes.c_void_p),
                ("result", ctypes.c_void_p), ("status", ctypes.c_int), ("unused", ctypes.c_int * 5)]
for mode in (0, 1):
    one = Gaicb(b"a.test", b"80")
    array = (ctypes.POINTER(Gaicb) * 1)(ctypes.pointer(one))
    print(libc.getaddrinfo_a(mode, array, 1, None), libc.gai_suspend(array, 1, None), libc.gai_error(ctypes.byref(one)),
          bool(one.result))
# A resolver of its own goes through the INS like every UDP socket.
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.settimeout(10)
own.connect(("198.18.253.1", 53))
own.send(b"\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1a\\4test\\0\\0\\1\\0\\1")
print(own.recv(512)[-4:].hex())
""")
    assert out == ("192.0.2.7 ('192.0.2.7', 80)\nb.test ('b.test', '80')\n0 -103 0 True\n0 -103 0 True\nc0000207\n")
    from_the_ins(asked)


def test_another_network_namespace_has_its_own_names(ask):
    """Nothing leaves a program that has cut itself off, neither through the INS nor otherwise."""
    out, asked = ask("""
print(libc.unshare(0x40000000))
for call in (lambda: socket.getaddrinfo("a.test", 80), lambda: socket.gethostbyname("a.test"),
             lambda: socket.gethostbyaddr("192.0.2.1")):
    try:
        print(call())
    except OSError as error:
        print(type(error).__name__)
print(libc.res_query(b"a.test", 1, 1, answer, 65536))
print(socket.gethostbyname("localhost"))
""")
    assert out == "0\ngaierror\ngaierror\nherror\n-1\n127.0.0.1\n"
    assert asked == []


LOOK_UP = """
import json, sys
def look_up(name, family=0, flags=0):
    try:
        found = socket.getaddrinfo(name, 1, family, socket.SOCK_STREAM, 0, flags)
        print(name, family, flags, *(f"{one[4][0]} {one[3]}" for one in found))
    except socket.gaierror as error:
        print(name, family, flags, error.errno)
"""
HOSTS = """192.0.2.50 half.test half
2001:db8::51 other.test other
::1 six-loopback
192.0.2.99 a.test
2001:db8::60 both
192.0.2.60 both
192.0.2.61 both
"""


def as_natively(ask, code: str, **how) -> list:
    """Runs the code natively and through the channel; what it printed and what was asked is the same. Returns the names asked."""
    answers = {}
    for mode, run in (("native", {"run": "exec"}), ("mw", {})):
        out, asked = ask(LOOK_UP + code, **how, **run)
        # A and AAAA go out together, in either order.
        answers[mode] = (out.splitlines(), sorted((name.lower(), kind) for _, name, kind in asked),
                         [name for k, (_, name, _) in enumerate(asked) if k == 0 or asked[k - 1][1] != name])
    assert answers["mw"] == answers["native"]
    return answers["native"][2]


@pytest.mark.parametrize("order", [
    "hosts: files dns", "hosts: dns files", "hosts:files", "hosts: dns", "hosts: files [NOTFOUND=return] dns",
    "hosts: dns [NOTFOUND=return] files", "hosts: dns [!UNAVAIL=return] files", "hosts: nothing [NOTFOUND=return] dns",
    "passwd: files",
])
def test_the_services_are_asked_in_their_order(ask, order):
    code = """
for name in ("half.test", "half", "other.test", "six-loopback", "both", "a.test", "six.test", "none.test"):
    for family in (0, socket.AF_INET, socket.AF_INET6):
        look_up(name, family)
look_up("half.test", socket.AF_INET6, socket.AI_V4MAPPED)
look_up("a.test", socket.AF_INET6, socket.AI_V4MAPPED)
look_up("both", socket.AF_INET6, socket.AI_V4MAPPED | socket.AI_ALL)
look_up("both", 0, socket.AI_CANONNAME)
for address in ("192.0.2.1", "192.0.2.50", "127.0.0.1", "192.0.2.77"):
    try:
        print(socket.gethostbyaddr(address)[0])
    except OSError as error:
        print(error.errno)
"""
    as_natively(ask, code, order=order + "\n", more=HOSTS, resolver="options timeout:1 attempts:1\n")


@pytest.mark.parametrize(("resolver", "expected"), [
    ("search test", ["a.test", "x.test", "x", "b.test", "b", "a.b", "a.b.test", "c.d", "c.d.test", "a.test"]),
    ("search one test\noptions ndots:2", None), ("domain test\noptions ndots:0", None), ("options ndots:15", None),
    ("search one.test . test", None), ("search test\noptions no-tld-query", None),
])
def test_the_search_list_is_the_c_librarys(ask, resolver, expected):
    code = """
for name in ("a", "x", "b", "a.b", "c.d", "a.test."):
    look_up(name, socket.AF_INET)
"""
    names = as_natively(ask, code, resolver=f"{resolver}\noptions timeout:1 attempts:1\n")
    assert expected is None or names == expected


def test_the_environment_changes_the_search_list(ask):
    code = """
import os, subprocess
if len(sys.argv) == 1:
    for more in ({"LOCALDOMAIN": "test"}, {"RES_OPTIONS": "ndots:3"}, {"LOCALDOMAIN": "b.test one", "RES_OPTIONS": "ndots:2"}):
        subprocess.run([sys.executable, __file__, "again"], env={**os.environ, **more})
else:
    for name in ("a", "a.b", "x"):
        look_up(name, socket.AF_INET)
"""
    as_natively(ask, code, resolver="search two\noptions timeout:1 attempts:1\n")


def test_who_does_not_answer_is_asked_as_often_as_configured(ask):
    names = as_natively(ask, """
look_up("silent.test", socket.AF_INET)
look_up("fail.test", socket.AF_INET)
""", resolver="options timeout:1 attempts:2\n")
    assert set(names) == {"silent.test", "fail.test"}


def test_time_limits_of_the_environment_hold_for_the_session(ask, monkeypatch):
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")
    assert as_natively(ask, "look_up('silent.test', socket.AF_INET)", resolver="options timeout:30\n") == ["silent.test"]


@pytest.mark.parametrize("option", ["edns0", "use-vc", "rotate"])
def test_questions_go_out_as_configured(ask, names, option):
    how = {}
    for mode, run in (("native", {"run": "exec"}), ("mw", {})):
        out, _ = ask(LOOK_UP + "look_up('a.test', socket.AF_INET)", resolver=f"options timeout:2 {option}\n", **run)
        how[mode] = out, names.how[:]
    assert how["mw"] == how["native"]
    assert how["native"][1] == [(option == "use-vc", option == "edns0")]
