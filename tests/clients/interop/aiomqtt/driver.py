"""aiomqtt, with its TLS parameters; the command line is that of every driver, see test_interop.py."""

import asyncio
import sys
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

SECONDS = 60  # on a busy machine
scenario, version, qos, url, ca, client_id, topic = sys.argv[1:]
qos, v5, resume, url = int(qos), version == "5", scenario == "resume", urlsplit(url)


def client():
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600 if resume else 0
    web = url.scheme in ("ws", "wss")
    return aiomqtt.Client(
        url.hostname,
        url.port,
        identifier=client_id,
        timeout=SECONDS,
        protocol=aiomqtt.ProtocolVersion.V5 if v5 else aiomqtt.ProtocolVersion.V311,
        transport="websockets" if web else "tcp",
        websocket_path=url.path if web else None,
        tls_params=aiomqtt.TLSParameters(ca_certs=ca) if url.scheme in ("tls", "wss") else None,
        will=aiomqtt.Will(topic, "gone", qos) if scenario == "will" else None,
        **({"clean_start": not resume, "properties": properties} if v5 else {"clean_session": not resume}),
    )


async def show(session):
    async with asyncio.timeout(SECONDS):
        message = await anext(aiter(session.messages))
    print("message", message.qos, int(message.retain), message.payload.decode(), flush=True)


async def main():
    async with client() as session:
        if scenario == "will":
            print("ready", flush=True)
            await asyncio.Event().wait()
        elif resume:
            # Whether there is a session is not told, so the test does, on standard input.
            if not sys.stdin.readline().startswith("again"):
                await session.subscribe(topic, qos)
                print("ready", flush=True)
                return
            print("present", flush=True)
        elif scenario == "retained":
            await session.publish(topic, "kept", qos, retain=True)
            await session.subscribe(topic, qos)
        else:
            await session.subscribe(topic, qos)
            await session.publish(topic, "hello", qos)
        await show(session)


asyncio.run(main())
