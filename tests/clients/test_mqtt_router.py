"""What many subscriptions weigh, and that they come and go without a trace."""

import contextlib

from mqtt_packet import SUBACK, V311, subscribe
from mqtt_wire import connected
from paho_client import Client
from support import unique, wait_until

CLIENTS, PACKETS, FILTERS = 20, 10, 100  # a session has at most 1,024 subscriptions
BYTES = 1024  # of memory for a subscription, in all structures together


def subscriber(server, prefix, number):
    """A connection that has subscribed to a thousand filters, every other one with wildcards."""
    wire = connected(server.address("mqtt"), V311, f"{prefix}-{number}")
    for packet_id in range(1, PACKETS + 1):
        devices = range((number * PACKETS + packet_id) * FILTERS, (number * PACKETS + packet_id + 1) * FILTERS)
        filters = [f"acme/siteA/pump/d{n}/reading" if n % 2 else f"acme/+/pump/d{n}/#" for n in devices]
        wire.send(subscribe(V311, packet_id, [(it, 1) for it in filters]))
    for packet_id in range(1, PACKETS + 1):
        assert wire.next_is(SUBACK, packet_id).reasons == [1] * FILTERS
    return wire


def resident(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def test_a_subscription_takes_less_than_a_kilobyte(make_server):
    server, prefix = make_server(), unique("many")
    count = f"SELECT count(*) FROM system.subscriptions WHERE client LIKE '{prefix}-%'"
    assert server.sql(count) == [[0]]
    before, total = resident(server), CLIENTS * PACKETS * FILTERS
    with contextlib.ExitStack() as stack:
        for number in range(CLIENTS):
            stack.enter_context(subscriber(server, prefix, number))
        each = (resident(server) - before) / total
        assert server.sql(count) == [[total]]
        assert each < BYTES, f"{each:.0f} bytes for each subscription"
        with Client(server) as other:
            other.subscribe("acme/siteA/pump/+/reading")
            other.publish("acme/siteA/pump/d150/reading", "1")
            other.next_is("acme/siteA/pump/d150/reading", "1")
    wait_until(lambda: server.sql(count) == [[0]], "the end of all subscriptions")
