"""paho-mqtt, step by step: connecting, subscribing and publishing return when the broker has answered."""

import json
import queue
import socket
import threading

import pytest
from support import unique

mqtt = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
from paho.mqtt.packettypes import PacketTypes  # noqa: E402
from paho.mqtt.properties import Properties  # noqa: E402

V311, V5 = mqtt.MQTTv311, mqtt.MQTTv5
ANSWER_SECONDS = 20


class Client:
    """One connected client. `durable`: its session outlives the connection, in either version of the protocol.
    `acknowledges`: it answers messages, as clients do. `receive_maximum` is that of 5.0. `door` is
    what it connects to, `tls` an `ssl.SSLContext`."""

    def __init__(
        self,
        server,
        protocol=V5,
        name=None,
        durable=False,
        will=None,
        token=None,
        acknowledges=True,
        receive_maximum=None,
        door="mqtt",
        tls=None,
    ):
        self.name, self.protocol = name or unique("client"), protocol
        self.messages = queue.Queue()
        self._connected, self._closed = queue.Queue(), threading.Event()
        self._answers = queue.Queue()
        clean = {} if protocol == V5 else {"clean_session": not durable}
        self.paho = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            self.name,
            protocol=protocol,
            reconnect_on_failure=False,
            transport="websockets" if door in ("mqtt_ws", "mqtt_wss") else "tcp",
            manual_ack=not acknowledges,
            **clean,
        )
        if token is not None:
            self.paho.username_pw_set("any", token)
        if tls:
            self.paho.tls_set_context(tls)
        self.paho.on_connect = lambda _c, _u, flags, code, _p: self._connected.put((flags, code))
        self.paho.on_disconnect = lambda *_: self._closed.set()
        self.paho.on_message = lambda _c, _u, message: self.messages.put(message)
        self.paho.on_subscribe = lambda _c, _u, _mid, codes, _p: self._answers.put(codes)
        self.paho.on_unsubscribe = self.paho.on_subscribe
        if will:
            topic, payload = will
            self.paho.will_set(topic, payload, qos=1)
        arguments = {}
        if protocol == V5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 3600 if durable else 0
            if receive_maximum:
                properties.ReceiveMaximum = receive_maximum
            arguments = {"clean_start": not durable, "properties": properties}
        self.paho.connect(*server.address(door), keepalive=60, **arguments)
        self.paho.loop_start()
        flags, code = self._connected.get(timeout=ANSWER_SECONDS)
        assert not code.is_failure, f"CONNACK: {code}"
        self.session_present = flags.session_present

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.disconnect()

    def publish(self, topic, payload, qos=1, retain=False):
        """Returns when the message is acknowledged (QoS 0: sent)."""
        if isinstance(payload, dict):
            payload = json.dumps(payload)
        info = self.paho.publish(topic, payload, qos, retain)
        info.wait_for_publish(ANSWER_SECONDS)
        assert info.is_published(), f"no acknowledgement of a QoS {qos} message to {topic}"

    def subscribe(self, topic_filter, qos=1, identifier=None, no_local=False):
        """The reason code of the SUBACK. The identifier and no local are of 5.0."""
        if self.protocol == V5:
            options, properties = mqtt.SubscribeOptions(qos=qos, noLocal=no_local), None
            if identifier:
                properties = Properties(PacketTypes.SUBSCRIBE)
                properties.SubscriptionIdentifier = identifier
            self.paho.subscribe(topic_filter, options=options, properties=properties)
        else:
            self.paho.subscribe(topic_filter, qos)
        (code,) = self._answers.get(timeout=ANSWER_SECONDS)
        assert not code.is_failure, f"SUBACK for {topic_filter}: {code}"
        return code.value

    def unsubscribe(self, topic_filter):
        self.paho.unsubscribe(topic_filter)
        self._answers.get(timeout=ANSWER_SECONDS)

    def next(self):
        """The next message that arrives."""
        try:
            return self.messages.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            pytest.fail(f"{self.name} received nothing for {ANSWER_SECONDS} s")

    def next_is(self, topic, payload):
        """Says more than that `payload` arrives: nothing else has arrived before it."""
        message = self.next()
        assert (message.topic, message.payload.decode()) == (topic, payload)
        return message

    def break_off(self):
        """Ends the connection without a DISCONNECT."""
        self.paho.socket().shutdown(socket.SHUT_RDWR)
        self.wait_closed()

    def wait_closed(self):
        assert self._closed.wait(ANSWER_SECONDS), f"{self.name} is still connected"
        self.paho.loop_stop()

    def disconnect(self):
        if not self._closed.is_set():
            self.paho.disconnect()
            self.wait_closed()
