"""Plays a script of raw packets against a Socket.IO server and writes down what comes back, in a form that two servers
can be compared in.

A script is a list of steps. After each, the server is asked to do all that it has to do (``/control``), so what a step
brings is known without waiting for a time. Session ids, ids of acknowledgements and the way in which packets are put
into bodies are masked; what is left is the order of packets in each namespace of each connection, statuses, and ends.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import struct
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from differential_net import Answer, frame, request

__all__ = ["Case", "Server", "Step", "Transcript", "difference"]

Step: TypeAlias = tuple[Any, ...]
Transcript: TypeAlias = list[dict[str, list[Any]]]
"""For each step what came to each connection; under ``""`` what the handlers saw."""

WAIT_S: Final = 10.0
TURNS: Final = 8
SEPARATOR: Final = "\x1e"
_PACKET = re.compile(r"(\d)(?:(\d+)-)?(?:(/[^,]*),?)?(\d+)?(.*)", re.DOTALL)


_CODES: Final = {
    **dict.fromkeys((b"", *(struct.pack("!H", code) for code in (1000, 1001, 1002, 1008))), "politely"),
    **{struct.pack("!H", code): code for code in (1007, 1009)},
}
"""Node closes without a code; whatever it is, to the client it is ``transport close``."""
_REASONS: Final = dict.fromkeys(("forced close", "forced server close", "parse error", "transport error"), "broken")
"""What the handler of ``disconnect`` hears if the client did something wrong."""


class Case(NamedTuple):
    """A script with a name."""

    name: str
    steps: tuple[Step, ...]


@dataclass
class _Wire:
    """One connection, whatever its transport: what came since the last step, and what scripts refer to."""

    name: str
    sid: str = ""
    asked: str = ""
    """The id of the last question."""
    attachments: int = 0
    """How many of the last message are still to come."""
    announced: list[str] = field(default_factory=list)
    came: list[Any] = field(default_factory=list)
    over: bool = False
    pausing: bool = False
    sending: bool = False
    """A GET is about to leave."""
    writer: asyncio.StreamWriter | None = None
    reading: asyncio.Task[None] | None = None
    polling: asyncio.Task[None] | None = None

    def take(self, packet: str | bytes) -> None:
        """An Engine.IO packet."""
        if isinstance(packet, bytes):
            self._attachment(base64.b64encode(packet).decode())
        elif packet[:1] == "b":
            self._attachment(packet[1:])
        elif packet[:1] == "0":
            facts = json.loads(packet[1:])
            self.sid = facts.pop("sid")
            self.came.append(["open", facts])
        elif packet[:1] == "4":
            self.came.append(self._message(packet[1:]))
        elif packet[:1] != "6":  # what a noop is for is the transport's own affair
            self.came.append(["packet", packet])

    def _attachment(self, data: str) -> None:
        if self.attachments:
            self.attachments -= 1
            self.announced.append(data)
        else:
            self.came.append(["binary", data])

    def _message(self, text: str) -> list[Any]:
        found = _PACKET.fullmatch(text)
        assert found is not None, text
        kind, attachments, namespace, ack_id, body = found.groups()
        data = json.loads(body) if body else None
        if kind == "0":
            data = dict.fromkeys(data or {}, "masked")
        if kind in "25" and ack_id is not None:
            self.asked, ack_id = ack_id, "masked"
        self.attachments, self.announced = int(attachments or 0), []
        return ["message", kind, self.announced, namespace or "/", ack_id, data]

    def end(self, how: Any) -> None:
        if not self.over:
            self.over = True
            self.came.append(["end", how])


class _Player:
    """Plays one case."""

    def __init__(self, server: Server) -> None:
        self._port = server.port
        self._control = server
        self._moves = 0
        """GETs that were sent or answered."""
        self._wires: dict[str, _Wire] = {}
        self._begun: list[asyncio.StreamWriter] = []

    async def run(self, case: Case) -> Transcript:
        transcript = []
        try:
            for step in case.steps:
                await getattr(self, f"_{step[0]}")(*step[1:])
                transcript.append(await self._settle(release=step[0] == "release"))
        finally:
            await self._leave()
        return [*transcript, await self._settle(release=True)]

    async def _settle(self, *, release: bool = False) -> dict[str, list[Any]]:
        """What the last step has brought."""
        seen: list[Any] = []
        while True:
            moves = self._moves
            seen += await asyncio.wait_for(self._control.ask(release=release), WAIT_S)
            release = False
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if self._moves == moves and not any(wire.sending for wire in self._wires.values()):
                break
        found: dict[str, list[Any]] = {}
        for name, wire in self._wires.items():
            came, wire.came = wire.came, []
            if came:
                found[name] = _sorted(came)
        for entry in seen:
            if entry[2] == "disconnect":
                entry[3] = [_REASONS.get(entry[3][0], entry[3][0])]
        if seen:
            found[""] = sorted(seen, key=lambda entry: (str(entry[0]), str(entry[1])))
        return found

    async def _leave(self) -> None:
        """End what is left, in an orderly way."""
        tasks = [task for wire in self._wires.values() for task in (wire.reading, wire.polling) if task is not None]
        for wire in self._wires.values():
            if wire.writer is not None:
                wire.writer.close()
            elif wire.sid:
                await request(self._port, "POST", self._target(wire), {}, b"1")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._begun:
            writer.close()
        self._wires.clear()

    def _target(self, wire: _Wire, transport: str = "polling") -> str:
        return f"/socket.io/?EIO=4&transport={transport}&sid={wire.sid}"

    # --- steps ---

    async def _ws(self, who: str, query: str = "", headers: dict[str, str] | None = None) -> None:
        """Open a WebSocket; ``query`` is appended."""
        await self._open_ws(who, f"/socket.io/?EIO=4&transport=websocket&who={who}{query}", headers or {})

    async def _upgrade(self, who: str, name: str = "") -> None:
        """Open a WebSocket for a session that polls; it is called ``<who>+``."""
        await self._open_ws(name or f"{who}+", self._target(self._wires[who], "websocket"), {})

    async def _raw_ws(self, who: str, target: str, headers: dict[str, str] | None = None) -> None:
        """Open a WebSocket at any address; ``{sid}`` is that of a connection: ``{a}``."""
        await self._open_ws(who, self._filled(target), headers or {})

    async def _open_ws(self, who: str, target: str, headers: dict[str, str]) -> None:
        wire = self._wires[who] = _Wire(who)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        wire.writer = writer
        fields = {
            "Host": f"127.0.0.1:{self._port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version": "13",
            **headers,
        }
        head = "".join(f"{key}: {value}\r\n" for key, value in fields.items())
        writer.write(f"GET {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1"))
        try:
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
        except (asyncio.IncompleteReadError, ConnectionError):
            wire.end("refused")
            return
        status = int(answer.split(b" ")[1])
        if status != 101:
            wire.end(["refused", status])
            return
        wire.reading = asyncio.create_task(self._read(wire, reader))

    async def _read(self, wire: _Wire, reader: asyncio.StreamReader) -> None:
        assert wire.writer is not None
        try:
            while True:
                first, second = await reader.readexactly(2)
                size = second & 0x7F
                if size >= 126:
                    form, length = ("!H", 2) if size == 126 else ("!Q", 8)
                    size = struct.unpack(form, await reader.readexactly(length))[0]
                payload = await reader.readexactly(size)
                if first & 0x0F == 8:
                    wire.end(["closed", _CODES.get(payload[:2], payload[:2].hex())])
                    wire.writer.write(frame(8, payload[:2]))
                    wire.writer.close()
                    return
                assert first & 0x0F in {1, 2}, first
                wire.take(payload.decode() if first & 0x0F == 1 else payload)
        except (asyncio.IncompleteReadError, ConnectionError):
            wire.end(["closed", 1006])

    async def _poll(self, who: str, query: str = "", headers: dict[str, str] | None = None) -> None:
        """Open a polling session and poll from then on, as clients do."""
        await self._open_quietly(who, query, headers)
        self._go_on(who)

    async def _open_quietly(self, who: str, query: str = "", headers: dict[str, str] | None = None) -> None:
        """Open a polling session and do not poll."""
        wire = self._wires[who] = _Wire(who)
        target = f"/socket.io/?EIO=4&transport=polling&who={who}{query}"
        self._polled(wire, await request(self._port, "GET", target, headers or {}))

    def _go_on(self, who: str) -> None:
        wire = self._wires[who]
        if not wire.over:
            wire.polling = asyncio.create_task(self._keep_polling(wire))

    def _sent(self, wire: _Wire) -> None:
        wire.sending = False
        self._moves += 1

    async def _keep_polling(self, wire: _Wire) -> None:
        while not wire.over:
            wire.sending = True
            answer = await request(self._port, "GET", self._target(wire), {}, on_sent=partial(self._sent, wire))
            wire.sending = False
            self._moves += 1
            self._polled(wire, answer)
            if wire.pausing:
                return

    def _polled(self, wire: _Wire, answer: Answer) -> None:
        if answer.status != 200:
            wire.end(["poll", _refusal(answer)])
            return
        for packet in answer.body.decode().split(SEPARATOR):
            wire.take(packet)
            if packet == "1":
                wire.end("told")

    async def _pause(self, who: str) -> None:
        """Poll no more after the GET that is under way, as clients do before they upgrade."""
        wire = self._wires[who]
        wire.pausing = True
        assert wire.polling is not None
        await asyncio.wait({wire.polling}, timeout=WAIT_S)

    async def _send(self, who: str, *packets: str | bytes) -> None:
        """Engine.IO packets: a frame for each, or one body for all. ``<ack>``: the id of the last question."""
        wire = self._wires[who]
        filled = [packet.replace("<ack>", wire.asked) if isinstance(packet, str) else packet for packet in packets]
        if wire.writer is not None:
            for packet in filled:
                wire.writer.write(frame(1, packet.encode()) if isinstance(packet, str) else frame(2, packet))
            return
        texts = [p if isinstance(p, str) else "b" + base64.b64encode(p).decode() for p in filled]
        await self._post(who, SEPARATOR.join(texts).encode())

    async def _post(self, who: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        """A body as it is."""
        wire = self._wires[who]
        fields = {"Content-Type": "text/plain;charset=UTF-8", **(headers or {})}
        answer = request(self._port, "POST", self._target(wire), fields, body)
        wire.came.append(["post", _outcome(await asyncio.wait_for(answer, WAIT_S))])

    async def _get(self, who: str) -> None:
        """One GET of its own."""
        answer = await request(self._port, "GET", self._target(self._wires[who]), {})
        self._wires[who].came.append(["get", answer.status])
        if answer.status == 200:
            self._polled(self._wires[who], answer)

    async def _begin_post(self, who: str, part: bytes) -> None:
        """A POST whose body never ends."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        target = self._target(self._wires[who])
        writer.write(f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n".encode() + part)
        self._begun.append(writer)

    async def _http(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """One request at any address."""
        answer = await request(self._port, method, self._filled(target), headers or {}, body)
        kept = {
            name: answer.headers[name] for name in sorted(_TOLD & set(answer.headers)) if "Origin" in (headers or ())
        }
        wire = self._wires.setdefault("http", _Wire("http"))
        if answer.status == 200 and answer.body[:1] == b"0":
            wire.take(answer.body.decode())
        wire.came.append(["http", _refusal(answer), kept])

    def _filled(self, target: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: self._wires[found[1]].sid, target)

    async def _frame(self, who: str, data: bytes) -> None:
        """Bytes as they are."""
        writer = self._wires[who].writer
        assert writer is not None
        writer.write(data)
        await writer.drain()

    async def _close(self, who: str, code: int = 1000) -> None:
        """Close the WebSocket."""
        writer = self._wires[who].writer
        assert writer is not None
        writer.write(frame(8, struct.pack("!H", code)))
        reading = self._wires[who].reading
        assert reading is not None
        await asyncio.wait({reading}, timeout=WAIT_S)

    async def _cut(self, who: str) -> None:
        """End the connection, or the GET that is under way, without a word."""
        wire = self._wires[who]
        wire.over = True
        wire.sending = False
        for task in (wire.reading, wire.polling):
            if task is not None:
                task.cancel()
        if wire.writer is not None:
            wire.writer.transport.abort()
        await asyncio.sleep(0)

    async def _release(self) -> None:
        """Let in who waits at the gate."""


_TOLD = {"access-control-allow-origin", "access-control-allow-credentials", "access-control-allow-headers"}


def difference(one: Transcript, other: Transcript) -> tuple[str, str]:
    """What only the one and only the other holds, in a few words: kinds of packets, statuses, what handlers saw."""
    left, right = _words(one), _words(other)
    while left and right and left[0] == right[0]:
        left, right = left[1:], right[1:]
    while left and right and left[-1] == right[-1]:
        left, right = left[:-1], right[:-1]
    return " ".join(left), " ".join(right)


def _words(transcript: Transcript) -> list[str]:
    words: list[str] = []
    for step in transcript[:-1]:
        for name, entries in step.items():
            words += [
                _word(entry) if name else f"({' '.join(map(str, (entry[2], *entry[3][:1])))})" for entry in entries
            ]
    return [word for word in words if word]


def _word(entry: list[Any]) -> str:
    if entry[0] == "message":
        return str(entry[1])
    if entry[0] == "end":
        return "ends"
    if entry[0] in {"http", "get", "post"}:
        return "" if entry[1] == "ok" else str(entry[1])
    return str(entry[0])


def _refusal(answer: Answer) -> Any:
    """The status, and Engine.IO's code if the body holds one."""
    try:
        return [answer.status, json.loads(answer.body)["code"]]
    except (ValueError, KeyError, TypeError):
        return answer.status


def _outcome(answer: Answer) -> str:
    """What a client makes of the answer to a POST: all that is not 200 is an error to it."""
    return "ok" if answer.status == 200 and answer.body == b"ok" else f"failed {answer.status}"


def _sorted(came: list[Any]) -> list[Any]:
    """Packets of different namespaces may come in any order, and so may the answers to requests."""
    found: list[Any] = []
    rest = [entry for entry in came if entry[0] not in {"get", "post"}]
    for is_message, run in itertools.groupby(rest, key=lambda entry: entry[0] == "message"):
        found += sorted(run, key=lambda entry: str(entry[3]) if is_message else "")
    return found + [entry for entry in came if entry[0] in {"get", "post"}]


class Server:
    """A server that plays along: its port, and the connection over which it tells what its handlers saw."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, *, release: bool = False) -> list[Any]:
        """What the handlers have seen since the last time, once everything is done that was to do."""
        if self._streams is None or self._streams[0].at_eof():
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        target = "/control?release" if release else "/control"
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert found is not None, head
        return list(json.loads(await reader.readexactly(int(found[1]))))

    def close(self) -> None:
        """Ask no more."""
        if self._streams is not None:
            self._streams[1].close()

    async def play(self, case: Case) -> Transcript:
        """What the server makes of a script. Ends all connections."""
        return await asyncio.wait_for(_Player(self).run(case), 60)
