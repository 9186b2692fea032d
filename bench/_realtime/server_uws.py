"""The same broadcast with uWebSockets (C++) by its Python binding socketify: plain WebSocket, ``publish`` to a topic.

It speaks no Socket.IO; the frames have the same size, so it shows what the kernel and a native loop leave possible.
"""

from __future__ import annotations

import json
import os

from socketify import App, OpCode

app = App()


def opened(ws: object) -> None:
    ws.subscribe("all")  # type: ignore[attr-defined]
    ws.send('0{"sid":"x"}', OpCode.TEXT)  # type: ignore[attr-defined]


def message(ws: object, text: str, _opcode: object) -> None:
    if text == "40":
        ws.send('40{"sid":"x"}', OpCode.TEXT)  # type: ignore[attr-defined]
    elif text.startswith('42["go"'):
        _, event, times = json.loads(text[2:])
        packet = "42" + json.dumps(["tick", event], separators=(",", ":"))
        for _ in range(times):
            app.publish("all", packet, OpCode.TEXT)
    elif text.startswith('421["enter"'):
        ws.subscribe(json.loads(text[3:])[1])  # type: ignore[attr-defined]
        ws.send("431[]", OpCode.TEXT)  # type: ignore[attr-defined]
    elif text.startswith('42["goroom"'):
        _, event, room = json.loads(text[2:])
        app.publish(room, "42" + json.dumps(["tick", event], separators=(",", ":")), OpCode.TEXT)
    elif text.startswith('421["echo"'):
        ws.send("431" + json.dumps(json.loads(text[3:])[1:], separators=(",", ":")), OpCode.TEXT)  # type: ignore[attr-defined]


app.ws("/*", {"open": opened, "message": message, "max_backpressure": 1 << 24, "idle_timeout": 960})
app.listen(int(os.environ["PORT"]), lambda _config: None)
app.run()
