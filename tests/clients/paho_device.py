"""paho-mqtt with a password, another address, properties, and every reason code shown, for tests of what is refused.

MQTT 3.1.1 has fewer codes; paho shows those of 5.0 that mean the same.
"""

import json
import queue

from paho_client import ANSWER_SECONDS, V5, Properties, mqtt
from paho_client import PacketTypes as packet
from support import unique


class Device:
    """`connack` is the reason code of the answer to CONNECT; a device that was let in is used in a `with` block."""

    def __init__(self, address, password=None, protocol=V5, name=None):
        self._connected, self._answers = queue.Queue(), queue.Queue()
        self.messages = queue.Queue()
        clean = {} if protocol == V5 else {"clean_session": True}
        self.paho = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            name or unique("device"),
            protocol=protocol,
            reconnect_on_failure=False,
            **clean,
        )
        if password is not None:
            self.paho.username_pw_set("any", password)
        self.paho.on_connect = lambda _c, _u, _flags, code, _p: self._connected.put(code.value)
        self.paho.on_publish = lambda _c, _u, _mid, code, _p: self._answers.put(code.value)
        self.paho.on_subscribe = lambda _c, _u, _mid, codes, _p: self._answers.put(codes[0].value)
        self.paho.on_message = lambda _c, _u, message: self.messages.put(message)
        self.paho.connect(*address, keepalive=60)
        self.paho.loop_start()
        self.connack = self._connected.get(timeout=ANSWER_SECONDS)

    def __enter__(self):
        assert self.connack == 0, f"CONNACK: 0x{self.connack:02x}"
        return self

    def __exit__(self, *_):
        self.paho.disconnect()
        self.paho.loop_stop()

    def publish(self, topic, payload, qos=1, **properties):
        """The reason code of the PUBACK; of 3.1.1, 0. `properties` are those of the PUBLISH, by paho's names."""
        if isinstance(payload, dict | list):
            payload = json.dumps(payload)
        sent = Properties(packet.PUBLISH) if properties else None
        for name, value in properties.items():
            setattr(sent, name, value)
        self.paho.publish(topic, payload, qos, properties=sent)
        return self._answers.get(timeout=ANSWER_SECONDS)

    def subscribe(self, topic_filter, qos=1):
        """The reason code of the SUBACK: what was granted, or why not."""
        self.paho.subscribe(topic_filter, qos)
        return self._answers.get(timeout=ANSWER_SECONDS)


def refusal(address, password=None, protocol=V5):
    """The reason code of the CONNACK; the connection ends."""
    device = Device(address, password, protocol)
    device.__exit__()
    return device.connack
