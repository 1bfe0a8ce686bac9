"""paho-mqtt; the command line is that of every driver, see test_interop.py."""

import queue
import ssl
import sys
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

SECONDS = 60  # on a busy machine
scenario, version, qos, url, ca, client_id, topic = sys.argv[1:]
qos, v5, resume, url = int(qos), version == "5", scenario == "resume", urlsplit(url)
protocol = mqtt.MQTTv5 if v5 else mqtt.MQTTv311
transport = "websockets" if url.scheme in ("ws", "wss") else "tcp"
arguments = {} if v5 else {"clean_session": not resume}
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id, protocol=protocol, transport=transport, **arguments)
connected, answered, messages = queue.Queue(), queue.Queue(), queue.Queue()
client.on_connect = lambda _c, _u, flags, code, _p: connected.put((flags.session_present, code))
client.on_subscribe = lambda *_: answered.put(True)
client.on_message = lambda _c, _u, message: messages.put(message)
if url.scheme in ("tls", "wss"):
    client.tls_set(ca, tls_version=ssl.PROTOCOL_TLS_CLIENT)
if transport == "websockets":
    client.ws_set_options(path=url.path)
if scenario == "will":
    client.will_set(topic, "gone", qos)
arguments = {}
if v5:
    arguments = {"clean_start": not resume, "properties": Properties(PacketTypes.CONNECT)}
    arguments["properties"].SessionExpiryInterval = 3600 if resume else 0
client.connect(url.hostname, url.port, 60, **arguments)
client.loop_start()
present, code = connected.get(timeout=SECONDS)
assert not code.is_failure, code


def subscribe():
    client.subscribe(topic, qos)
    answered.get(timeout=SECONDS)


def publish(payload, retain):
    client.publish(topic, payload, qos, retain).wait_for_publish(SECONDS)


def show():
    message = messages.get(timeout=SECONDS)
    print("message", message.qos, int(message.retain), message.payload.decode(), flush=True)


if scenario == "will":
    print("ready", flush=True)
    sys.stdin.read()
elif resume and not present:
    subscribe()
    print("ready", flush=True)
elif resume:
    print("present", flush=True)
    show()
elif scenario == "retained":
    publish("kept", True)
    subscribe()
    show()
else:
    subscribe()
    publish("hello", False)
    show()
client.disconnect()
client.loop_stop()
