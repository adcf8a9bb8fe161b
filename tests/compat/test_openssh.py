"""Debian's sshd with its configuration: a command, a file each way, several sessions at once."""

import concurrent.futures
import hashlib
from pathlib import Path

PORT = 2222


def _start(box):
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # what Debian's service unit makes
    for key in ("host", "user"):
        box.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", box.directory / key])
    (box.directory / "user.pub").rename(box.directory / "authorized")
    (box.directory / "authorized").chmod(0o600)
    server = box.start("sshd", ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/sshd_config",
                                "-o", f"Port={PORT}", "-o", f"PidFile={box.directory}/pid",
                                "-o", f"HostKey={box.directory}/host", "-o", "StrictModes=no",
                                "-o", f"AuthorizedKeysFile={box.directory}/authorized"])
    box.wait_port(PORT, server)


def _options(box) -> list:
    known = f'[127.0.0.1]:{PORT} {(box.directory / "host.pub").read_text()}'
    (box.directory / "known").write_text(known)
    return ["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes",
            "-o", f"UserKnownHostsFile={box.directory}/known", "-i", box.directory / "user",
            "-o", "IdentitiesOnly=yes"]


def test_sshd(box):
    _start(box)
    options = _options(box)
    ssh = ["ssh", *options, "-p", PORT, "root@127.0.0.1"]
    assert box.run([*ssh, "echo $((6*7)); echo $SSH_CONNECTION"]).stdout.decode().split()[0] == "42"
    connection = box.run([*ssh, "echo $SSH_CONNECTION"]).stdout.decode().split()
    assert connection[0] == "127.0.0.1" and connection[2:] == ["127.0.0.1", str(PORT)]
    assert box.run([*ssh, "exit 7"], check=False).returncode == 7

    data = hashlib.sha512(b"scp").digest() * 50000
    (box.directory / "sent").write_bytes(data)
    scp = ["scp", "-q", *options, "-P", PORT]
    box.run([*scp, box.directory / "sent", f"root@127.0.0.1:{box.directory}/there"])
    assert (box.directory / "there").read_bytes() == data
    box.run([*scp, f"root@127.0.0.1:{box.directory}/there", box.directory / "back"])
    assert (box.directory / "back").read_bytes() == data

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda i: box.run([*ssh, f"seq {i} 2000 | sha256sum"]).stdout, range(6))
        for i, answer in enumerate(answers):
            text = "".join(f"{n}\n" for n in range(i, 2001))
            assert answer.decode().split()[0] == hashlib.sha256(text.encode()).hexdigest()


def test_ssh_client(box):
    """The client protected, the server plain."""
    mode, box.mode = box.mode, "native"
    _start(box)
    box.mode = mode
    ssh = ["ssh", *_options(box), "-p", PORT, "root@127.0.0.1"]
    answer = box.run([*ssh, "seq 1 50000"], protected=True).stdout
    assert answer == "".join(f"{n}\n" for n in range(1, 50001)).encode()
