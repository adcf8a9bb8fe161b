"""The interfaces that an isolated program sees are its stack's, and what does not go through its stack reaches nobody."""

import json
import os
import signal
import socket
import subprocess

import pytest

from mwtest import proc
from mwtest.session import gone, output, serves

VIEW = """
import ctypes, fcntl, json, socket, struct, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)

class Address(ctypes.Structure):
    pass

Address._fields_ = [("next", ctypes.POINTER(Address)), ("name", ctypes.c_char_p), ("flags", ctypes.c_uint),
                    ("address", ctypes.POINTER(ctypes.c_ubyte)), ("mask", ctypes.c_void_p),
                    ("peer", ctypes.c_void_p), ("data", ctypes.c_void_p)]

def getifaddrs():
    first = ctypes.POINTER(Address)()
    assert libc.getifaddrs(ctypes.byref(first)) == 0
    at = first
    while at:
        one = at.contents
        if one.address:
            family = int.from_bytes(bytes(one.address[0:2]), "little")
            if family == socket.AF_INET:
                yield one.name.decode(), socket.inet_ntop(family, bytes(one.address[4:8]))
            elif family == socket.AF_INET6:
                yield one.name.decode(), socket.inet_ntop(family, bytes(one.address[8:24]))
        at = one.next

def binds(address, kind, scope):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as s:
        s.bind((address, 0, 0, scope if address.startswith("fe80") else 0) if ":" in address else (address, 0))
        return s.getsockname()[0].split("%")[0] == address

addresses = sorted(set(getifaddrs()))
flags = {}
for _, name in socket.if_nameindex():
    for family in (socket.AF_INET, socket.AF_UNIX):
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            got = fcntl.ioctl(s, 0x8913, struct.pack("16s24x", name.encode()))  # SIOCGIFFLAGS
            flags[f"{name} {family.name}"] = struct.unpack_from("16xH", got)[0] & 0x41  # UP, RUNNING
print(json.dumps({
    "addresses": addresses,
    "names": sorted(name for _, name in socket.if_nameindex()),
    "indexes": {name: number for number, name in socket.if_nameindex()},
    "flags": flags,
    "bound": [binds(address, kind, socket.if_nametoindex(name)) for name, address in addresses
              for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)],
    "routes": json.loads(subprocess.run(["ip", "-j", "route"], capture_output=True, check=True).stdout),
    "links": json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout),
    "proc": sorted(line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]),
}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def protected(mw, unchanged):
    """protected(program) -> the running `mw run` of a Python program, with pipes."""
    running = []

    def begin(program: str, *options: str) -> subprocess.Popen:
        words = [mw, "run", *options, "--", "/usr/bin/python3", "-c", program]
        running.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield begin
    for one in running:
        one.stdin.close()
        assert one.wait(120) == 0
        one.stdout.close()


def stack_of(process: subprocess.Popen) -> list:
    """How to run a command of `ip` in the network namespace of its stack."""
    ins = output("pgrep", "-P", str(process.pid), "-x", "mwins").split()[0]
    return ["nsenter", f"--net=/proc/{ins}/ns/net", "ip", "-j"]


def test_a_program_sees_the_interfaces_that_its_sockets_have(protected):
    one = protected(VIEW)
    seen = json.loads(one.stdout.readline())
    inside = stack_of(one)
    real = json.loads(output(*inside, "address"))
    assert seen["addresses"] == sorted([link["ifname"], address["local"]] for link in real
                                       for address in link["addr_info"])
    assert len(seen["addresses"]) >= 3
    assert seen["bound"] == [True] * 2 * len(seen["addresses"])
    assert seen["indexes"] == {link["ifname"]: link["ifindex"] for link in real}
    assert seen["proc"] == seen["names"] == sorted(link["ifname"] for link in real)
    assert set(seen["flags"].values()) == {0x41} and len(seen["flags"]) == 4
    mine = {link["ifname"]: (link["address"], link["mtu"]) for link in seen["links"]}
    assert mine == {link["ifname"]: (link["address"], link["mtu"]) for link in real}

    def where(routes: list) -> list:
        return sorted((route["dst"], route.get("gateway"), route["dev"]) for route in routes)

    assert where(seen["routes"]) == where(json.loads(output(*inside, "route")))


OUTSIDE = """
import errno, json, socket, sys

def attempt(make):
    try:
        return make()
    except OSError as error:
        return errno.errorcode[error.errno]

ETH_P_ALL = 3
def names():
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as s:
        return attempt(lambda: s.bind((sys.argv[1], 0)))

def abstract(name):
    with socket.socket(socket.AF_UNIX) as s:
        return attempt(lambda: s.connect(name))

print(json.dumps([names(), abstract("\\0" + sys.argv[2]), abstract(sys.argv[3])]), flush=True)
sys.stdin.read()
"""


def test_what_the_shim_does_not_take_reaches_no_network(mw, unchanged, tmp_path):
    """A packet socket finds none of the host's interfaces; local sockets with a path are everybody's."""
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as path:
        abstract.bind("\0mwtest-outside")
        path.bind(str(tmp_path / "socket"))
        for one in (abstract, path):
            one.listen()
        output("ip", "link", "add", "mwtout", "type", "veth", "peer", "name", "mwtout2")
        try:
            done = proc.run([mw, "run", "--", "/usr/bin/python3", "-c", OUTSIDE, "mwtout", "mwtest-outside",
                             str(tmp_path / "socket")], 120, stdin=subprocess.DEVNULL)
        finally:
            output("ip", "link", "delete", "mwtout")
    assert json.loads(done.stdout.splitlines()[0]) == ["ENODEV", "ECONNREFUSED", None]


RAW = """
import ctypes, mmap, socket, struct, sys

# mov $number, %eax; syscall; ret: no library sees it.
code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
def call(number):
    at = code.tell()
    code.write(b"\\xb8" + struct.pack("<I", number) + bytes.fromhex("0f05c3"))
    where = ctypes.addressof(ctypes.c_char.from_buffer(code)) + at
    return ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_long)(where)

SYS_socket, SYS_connect, SYS_bind, SYS_listen = 41, 42, 49, 50
make, connect, bind, listen = call(SYS_socket), call(SYS_connect), call(SYS_bind), call(SYS_listen)
address = struct.pack("<H", socket.AF_INET) + struct.pack("!H", int(sys.argv[1])) + socket.inet_aton(sys.argv[2])
fd = make(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0, 0)
print(fd >= 0, connect(fd, ctypes.c_char_p(address), 16, 0), flush=True)
fd = make(socket.AF_INET, socket.SOCK_STREAM, 0, 0)
own = struct.pack("<H", socket.AF_INET) + struct.pack("!H", int(sys.argv[3])) + bytes(4)
print(bind(fd, ctypes.c_char_p(own + bytes(8)), 16, 0), listen(fd, ctypes.c_void_p(5), 0, 0), flush=True)
sys.stdin.read()
"""


def test_system_calls_around_the_shim_reach_no_network(mw, unchanged, free_port, visitor):
    """Neither a service of the host, on any of its addresses, nor can anybody reach what listens so."""
    with socket.create_server(("0.0.0.0", free_port)) as service:
        service.settimeout(0)
        for address in ("127.0.0.1", visitor.HOST4, visitor.OWN4):
            words = [mw, "run", "--", "/usr/bin/python3", "-c", RAW, str(free_port), address, str(free_port + 1)]
            with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                made, status = process.stdout.readline().split()
                assert made == "True" and int(status) != 0
                assert process.stdout.readline() == "0 0\n", "it may listen, where nobody is"
                for host in ("127.0.0.1", visitor.HOST4):
                    with pytest.raises(ConnectionRefusedError):
                        socket.create_connection((host, free_port + 1), 20)
                process.stdin.close()
                assert process.wait(120) == 0
        with pytest.raises(BlockingIOError):
            service.accept()


def test_settings_that_a_server_looks_at_are_the_hosts(mw, unchanged):
    for name in ("core/somaxconn", "ipv4/ip_local_port_range", "ipv4/tcp_rmem"):
        with open(f"/proc/sys/net/{name}", "rb") as file:
            here = file.read()
        assert proc.run([mw, "run", "--", "cat", f"/proc/sys/net/{name}"], 120).stdout == here


def test_an_adopted_session_still_takes_new_processes(mw, unchanged, start, server, free_port):
    """The driver serves them in their network, a new one too."""
    session = start("-p", f"{free_port}:80", "--", "bash", "-c",
                    f'while :; do {" ".join(server)} 80 x; done')
    old = session.pid("driver")
    os.kill(old, signal.SIGKILL)
    proc.wait_for(lambda: session.pid("driver") not in (0, old), 60, "another driver", session.background)
    adopter = session.adopted(session.lose_front_end())
    for child in output("pgrep", "-P", str(session.pid("application"))).split():
        os.kill(int(child), signal.SIGKILL)
    proc.wait_for(lambda: serves(free_port), 60, "an answer")
    os.kill(adopter, signal.SIGTERM)
    proc.wait_for(lambda: gone(adopter), 60, "the end of the session")
