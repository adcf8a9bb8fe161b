"""Message brokers: RabbitMQ (Erlang, with its port mapper) and Mosquitto."""

import pytest

import transfer

MESSAGES = 300
# The port mapper outlives the server, and the session with it.
RABBITMQ = 'trap : TERM; "$0" & server=$!; wait $server; kill $server; wait $server; epmd -kill'


@pytest.mark.slow
@pytest.mark.isolated
def test_rabbitmq(box):
    home = box.directory / "home"
    home.mkdir()
    server = box.start("rabbitmq", ["bash", "-c", RABBITMQ, "/usr/lib/rabbitmq/bin/rabbitmq-server"], ports=[5672], env={
        "HOME": str(home), "RABBITMQ_NODENAME": "test@localhost", "RABBITMQ_MNESIA_BASE": str(home),
        "RABBITMQ_LOG_BASE": str(home), "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"), "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins")})
    (home / "rabbitmq.conf").write_text("listeners.tcp.default = 5672\nloopback_users = none\n")
    box.wait_port(5672, server)
    answer = box.run(["/usr/bin/python3", transfer.PROGRAMS / "amqp.py", 5672])
    assert answer.stdout.decode() == "101 messages\n"


@pytest.mark.rotating
@pytest.mark.isolated
def test_mosquitto(box):
    (box.directory / "mosquitto.conf").write_text("listener 1883 0.0.0.0\nallow_anonymous true\n")
    server = box.start("mosquitto", ["mosquitto", "-c", box.directory / "mosquitto.conf"], ports=[1883])
    box.wait_port(1883, server)
    large = box.directory / "large"
    large.write_bytes(transfer.body(transfer.LARGE))
    box.run(["mosquitto_pub", "-t", "large", "-q", 1, "-r", "-f", large])
    kept = box.run(["mosquitto_sub", "-t", "large", "-q", 1, "-C", 1, "-W", 60, "-N"]).stdout
    assert transfer.digest(kept) == transfer.digest(large.read_bytes())
    subscriber = ["mosquitto_sub", "-i", "subscriber", "-c", "-t", "lines", "-q", 2]
    box.run([*subscriber, "-E"])
    box.run(["bash", "-c", f"seq 1 {MESSAGES} | mosquitto_pub -t lines -q 2 -l"])
    lines = box.run([*subscriber, "-C", MESSAGES, "-W", 60]).stdout.decode().split()
    assert lines == [str(i) for i in range(1, MESSAGES + 1)]
