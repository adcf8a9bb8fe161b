"""amqp.py PORT - publishes messages of many sizes with confirmation, consumes them, and compares."""

import sys
from pathlib import Path

import pika

sys.path.insert(0, str(Path(__file__).parent))

from closing import body  # noqa: E402  (needs the path above)

SIZES = [*range(0, 20000, 200), 3_000_000]
connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", int(sys.argv[1])))
channel = connection.channel()
channel.confirm_delivery()
channel.queue_declare("queue", durable=True)
for size in SIZES:
    channel.basic_publish("", "queue", body(size), pika.BasicProperties(delivery_mode=2))
got = []
for method, _, message in channel.consume("queue", inactivity_timeout=60):
    assert method is not None, f"{len(got)} of {len(SIZES)} messages came"
    channel.basic_ack(method.delivery_tag)
    got.append(message)
    if len(got) == len(SIZES):
        break
channel.cancel()
connection.close()
assert got == [body(size) for size in SIZES]
print(f"{len(got)} messages")
