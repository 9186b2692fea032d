"""Scripts for the differential test: those in which Flotta does what Node does, and those in which it does not.

`DIFFERENT` is what "What is different on the wire" of ``docs/howto/moving-from-node.md`` says, in packets.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from differential_net import frame
from differential_wire import Case, Step

__all__ = ["AGREED", "DIFFERENT", "MALFORMED", "Difference"]

PART: Final = '{"_placeholder":true,"num":%d}'
PART_AND_A_HALF: Final = '{"_placeholder":true,"num":0.5}'
ONE: Final = "[" + PART % 0 + "]"
LIMIT: Final = 1_000_000
ALIVE: Final = '4277["echo","alive"]'


class Difference(NamedTuple):
    """A script of which the two make something else, and what only one of them does (`differential_wire.difference`).
    ``why``: the words by which the documentation tells of it."""

    why: str
    case: Case
    node: str
    flotta: str


def _script(
    transport: str, name: str, *packets: Any, first: tuple[str, ...] = ("40",), last: tuple[str, ...] = (ALIVE,)
) -> Case:
    """Open, join, send each of ``packets`` (a tuple: several at once), and look whether the connection still lives."""
    sent = [packet if isinstance(packet, tuple) else (packet,) for packet in (*first, *packets, *last)]
    return Case(f"{transport}: {name}", ((transport, "a"), *(("send", "a", *packet) for packet in sent)))


def _on_both(scripts: dict[str, tuple[Any, ...]], **options: Any) -> list[Case]:
    """Those that a machine has to be told of are the same over both transports: each takes half of them, in turn, so
    that neighbours, which are alike, are tried on both."""
    return [
        _script("ws" if number % 2 else "poll", name, *packets, **options)
        for number, (name, packets) in enumerate(scripts.items())
    ]


_JOINED: Final[dict[str, tuple[Any, ...]]] = {
    "echo": ('427["echo",1,"é\\ud83d\\ude00\\u2028",{"a":[null,true,1.5e300]}]',),
    "echo with nothing": ('427["echo"]',),
    "event with nothing to say": ('42["echo",1]',),
    "answer with bytes both ways": (('452-7["echo",{"a":[' + PART % 1 + "]}," + PART % 0 + "]", b"\x01", b""),),
    "bytes come later": ("451-7[" + '"echo",' + PART % 0 + "]", "3", b"\xff"),
    "bytes in another namespace": ("40/second,", ("451-/second," + '["back",' + PART % 0 + "]", b"\x01")),
    "bytes as base64": ("451-7[" + '"echo",' + PART % 0 + "]", "bAQI="),
    "empty bytes as base64": ("451-7[" + '"echo",' + PART % 0 + "]", "b"),
    "more bytes than places": (("452-7[" + '"echo",' + PART % 0 + "]", b"\x01", b"\x02"),),
    "ten attachments": (
        ("4510-7[" + '"echo",' + ",".join(PART % n for n in range(10)) + "]", *(bytes([n]) for n in range(10))),
    ),
    "placeholder in a text event": ('427["echo",' + PART % 0 + "]",),
    "placeholder that is none": (('451-7["echo",{"_placeholder":1,"num":0}]', b"x"),),
    "placeholder without its bytes": (('451-7["echo",' + PART % 1 + "]", b"x"),),
    "placeholder without number": (('451-7["echo",{"_placeholder":true}]', b"x"),),
    "placeholder with a text as number": (('451-7["echo",{"_placeholder":true,"num":"0"}]', b"x"),),
    "bytes as name": (("451-7" + ONE, b"echo"),),
    "text between bytes": ("451-7[" + '"echo",' + PART % 0 + "]", '427["echo"]'),
    "text of another namespace between bytes": ("40/second,", '451-["echo",' + PART % 0 + "]", '42/second,["echo"]'),
    "bytes that nobody announced": (b"x",),
    "bytes for a namespace that there is none of": (('451-/nope,7["echo",' + PART % 0 + "]", b"x"),),
    "attachments without number": ('457["echo"]',),
    "attachments without digits": ('45-7["echo"]',),
    "minus one attachments": ('45-1-7["echo"]',),
    "a thousand attachments": ('451000-7["echo"]',),
    "reserved name with bytes": (('451-["connect",' + PART % 0 + "]", b"x"),),
    "question and answer": ('42["ask",1]', '43<ack>["yes",2]', '43<ack>["again"]'),
    "answer with nothing": ('42["ask"]', "43<ack>[]"),
    "answer with bytes": ('42["ask",1]', ("461-<ack>" + ONE, b"\x01")),
    "answer in another namespace": ("40/second,", '42["ask",1]', '43/second,<ack>["no"]', '43<ack>["yes"]'),
    "answer that nobody asked for": ('43999["x"]', ("461-999" + ONE, b"x")),
    "answer that is no list": ("431{}",),
    "connect twice": ("40",),
    "connect twice elsewhere": ("40/second,", "40/second,"),
    "connect without the comma": ("40/second", '42/second,1["echo"]', "41/second", "40/second,"),
    "connect to the root by its name": ("40/second,", "41", "40/,", '42/,1["echo"]'),
    "leave and come back": ("41", '40{"token":"x"}'),
    "leave one of two": ("40/second,", "41", '42/second,1["echo"]', "40"),
    "unknown namespace": ("40/nope,", "40/nope,"),
    "strange namespace": ("40//second,", "40/SECOND,", "40/second/,", "40/__proto__,", "40/dyn-*,", "40/x/dyn-1,"),
    "dynamic namespace": ("40/dyn-1,", '42/dyn-1,1["echo",1]', '42/dyn-1,["kick"]'),
    "refused": ("40/guarded,", '40/guarded,{"token":"no"}', '40/guarded,{"token":"yes"}', '42/guarded,1["echo"]'),
    "event after a refusal": ("40/guarded,", '42/guarded,1["echo"]'),
    "event of a namespace not joined": ('42/second,1["echo"]',),
    "event of an unknown namespace": ('42/nope,1["echo"]',),
    "kicked": ('42["kick"]', "40"),
    "kicked from one of two": ("40/second,", '42/second,["kick"]', '42["back",1]', "40/second,"),
    "many at once": (('421["echo",1]', '42["back",2]', '423["echo",3]', '42["back",4]'),),
    "many at once in two": ("40/second,", ('421["echo",1]', '42/second,2["echo",2]', '423["echo",3]')),
    "told and kicked at once": (('42["back",1]', '42["kick"]'), "40"),
    "volatile": ('42["maybe",1]',),
    "unknown event": ('427["nobody",1]', '42["",1]', '427["*",1]', '42["connection"]', '42["error"]'),
    "names of JavaScript's": ('427["__proto__",1]', '427["toString",1]', '427["constructor"]'),
    "number as name": ('427[1,"x"]', "42[-7]"),
    "id with zeros": ('420007["echo",1]', '420["echo"]', '42999999999999999["echo"]'),
    "error of the client": ('44{"message":"x"}',),
    "error of the client without data": ("44",),
    "pong that nobody asked for": ("3", "3probe", "6", "6x"),
    "ping of the client": ("2",),
    "probe without upgrade": ("2probe",),
    "unknown packet of Engine.IO": ("47", "4x"),
}

MALFORMED: Final = (
    "42[]", "42{}", '42"x"', "42null", "42[null]", '42[["x"]]', "42[true]", '42["x"', '42["x"]]', '427["echo",NaN]',
    '427["echo",]', '427["echo",01]', '427["echo",+1]', '427["echo","a\x01"]', "427['echo']", '42-1["echo"]',
    '421.5["echo"]', '420x1["echo"]', '42\u0661["echo"]', '42["connect",1]', '42["disconnect"]', '42["disconnecting"]',
    '42["connect_error"]', '42["newListener"]', '42["removeListener"]', "41{}", '41"x"', "40/second,[]",
    '40/second,"x"', "40/second,{", '47["x"]', "49", "4x", "4", '4 ["echo"]', "4-1", '42["echo"]42["echo"]',
    '43"x"', '431["x"', '42,["echo"]', "43{",
)  # fmt: skip

_HUNG_UP: Final[dict[str, tuple[Any, ...]]] = {
    "hung up": ('42["hangup"]',),
    "hung up in two": ("40/second,", '42/second,["hangup"]'),
    "told and hung up at once": (('42["back",1]', '42["hangup"]'),),
    "told in two and hung up": ("40/second,", ('42["back",1]', '42/second,["hangup"]')),
}

_UNJOINED: Final[dict[str, tuple[Any, ...]]] = {
    "event before connect": ('421["echo"]',),
    "answer before connect": ("431[]",),
    "leave before connect": ("41",),
    "error before connect": ('44{"message":"x"}',),
    "bytes before connect": (b"x",),
    "unknown namespace only": ("40/nope,",),
    "ping before connect": ("2",),
    "unknown packet before connect": ("4x",),
}


def _rooms(one: str, other: str) -> Case:
    """Who hears what in which room of which namespace."""
    packets: list[tuple[str, str]] = [
        *(("a", "40"), ("b", "40"), ("c", "40"), ("a", "40/second,"), ("b", "40/second,")),
        *(("a", '421["join","r"]'), ("b", '421["join","r"]'), ("b", '421["join","s"]'), ("c", '421["join","s"]')),
        ("a", '42/second,1["join","r"]'),
        ("a", '422["say",{"to":["r"],"args":[1]}]'),
        ("a", '422["tell",{"to":["r","s"],"args":[2]}]'),
        ("a", '422["tell",{"to":["r","s"],"except":["s"],"args":[3]}]'),
        ("c", '422["say",{"except":["r"],"args":[4]}]'),
        ("b", '42/second,2["tell",{"to":["r"],"args":[5]}]'),
        ("b", '422["leave","r"]'),
        ("c", '422["tell",{"to":["r","nobody"],"args":[6]}]'),
        ("a", "41"),
        ("c", '422["tell",{"to":["r"],"args":[7]}]'),
        ("b", '42["kick"]'),
        ("c", '422["tell",{"args":[8]}]'),
    ]
    steps: list[Step] = [(one, "a"), (other, "b"), ("ws", "c"), *(("send", who, packet) for who, packet in packets)]
    steps.append(("send", "c", '451-2["tell",{"args":[' + PART % 0 + "]}]", b"bytes"))
    return Case(f"rooms: {one}, {other}", tuple(steps))


_GATE: Final = (
    Case("ws: gate", (("ws", "a"), ("send", "a", "40/gated,"), ("release",), ("send", "a", '42/gated,1["echo"]'))),
    Case("poll: gate", (("poll", "a"), ("send", "a", "40"), ("send", "a", "40/gated,"), ("release",))),
    Case("ws: gate, then gone", (("ws", "a"), ("send", "a", "40/gated,"), ("close", "a"), ("release",))),
)

_OPEN: Final[tuple[Step, ...]] = (("poll", "a"), ("send", "a", "40"), ("upgrade", "a"))
_PROBED: Final[tuple[Step, ...]] = (*_OPEN, ("send", "a+", "2probe"))
_UPGRADED: Final[tuple[Step, ...]] = (*_PROBED, ("pause", "a"), ("send", "a+", "5"))
_STILL: Final[Step] = ("send", "a", ALIVE)
_NEW: Final[Step] = ("send", "a+", ALIVE)
_JOIN: Final[Step] = ("send", "a", "40")
_Q: Final = "/socket.io/?EIO=4&transport="

_UPGRADES: Final = (
    Case("upgrade", (*_UPGRADED, _NEW, ("http", "GET", _Q + "polling&sid={a}"), _NEW)),
    Case("upgrade, then a POST", (*_UPGRADED, ("http", "POST", _Q + "polling&sid={a}", {}, b"42"), _NEW)),
    Case("upgrade, then a probe", (*_UPGRADED, ("send", "a+", "2probe"))),
    Case("upgrade with a POST meanwhile", (*_PROBED, ("pause", "a"), _STILL, ("send", "a+", "5"), _NEW)),
    Case(
        "upgrade with packets that wait",
        (
            *(*_PROBED, ("pause", "a")),
            ("send", "a", '42["back",1]', '451-["back",' + PART % 0 + "]", b"\x01"),
            *(("send", "a+", "5"), ("send", "a+", ALIVE)),
        ),
    ),
    Case(
        "upgrade between a packet and its bytes",
        (*_OPEN, ("send", "a", '451-7["echo",' + PART % 0 + "]"), *_PROBED[3:], ("pause", "a"), ("send", "a+", "5"),
         ("send", "a+", b"x")),
    ),
    Case("upgrade given up", (*_PROBED, ("close", "a+"), _STILL)),
    Case("upgrade cut, then another one", (*_PROBED, ("cut", "a+"), _STILL, *_UPGRADED[2:], ("send", "a+", ALIVE))),
    Case("upgrade twice at once", (*_OPEN, ("upgrade", "a", "b"), ("send", "a+", "2probe"), _STILL)),
    Case("upgrade while the session ends", (*_PROBED, ("send", "a", "1"))),
    *(
        Case(f"upgrade begins with {packet!r}", (*_OPEN, ("send", "a+", packet), _STILL))
        for packet in ("2", ALIVE, "3", "1", "6", "x", "", b"2probe", "2probe2")
    ),
    *(
        Case(f"upgrade goes on with {packet!r}", (*_PROBED, ("send", "a+", packet), _STILL))
        for packet in ("2", ALIVE, "3", "1", "6", b"5")
    ),
)  # fmt: skip

_QUIET: Final[tuple[Step, ...]] = (("open_quietly", "a"), ("post", "a", b"40"), ("get", "a"))

_POLLING: Final = (
    Case("a GET takes all", (*_QUIET, ("post", "a", b'421["echo"]\x1e42["back",2]\x1e423["echo"]'), ("get", "a"))),
    Case("hung up without a GET", (*_QUIET, ("post", "a", b'42["hangup"]'), ("get", "a"))),
    Case("kicked without a GET", (*_QUIET, ("post", "a", b'42["kick"]'), ("get", "a"), ("post", "a", b"40"))),
    Case("kicked before the next event", (("poll", "a"), _JOIN, ("send", "a", '42["kick"]', '421["echo"]'), _JOIN)),
    Case("junk without a GET", (*_QUIET, ("post", "a", b"2"), ("get", "a"), ("post", "a", b"40"))),
    Case("close", (("poll", "a"), ("post", "a", b"40"), ("post", "a", b"1"), ("post", "a", b"40"))),
    Case("close and more", (("poll", "a"), ("post", "a", b"40"), ("post", "a", b'1\x1e421["echo"]'))),
    Case("two GETs at once", (("poll", "a"), _JOIN, ("get", "a"), ("post", "a", b"42"))),
    Case("two POSTs at once", (("poll", "a"), _JOIN, ("begin_post", "a", b"42"), ("post", "a", b"40"), ("get", "a"))),
    Case("GET given up", (("poll", "a"), ("send", "a", "40"), ("cut", "a"), ("get", "a"))),
    Case("as large as may be", (("poll", "a"), ("post", "a", b'40/guarded,{"a":"' + b"x" * (LIMIT - 19) + b'"}'))),
    *(
        Case(f"content type {kind!r}", (("poll", "a"), ("post", "a", b"40", {"Content-Type": kind}), _STILL))
        for kind in ("application/json", "", "application/x-www-form-urlencoded")
    ),
)  # fmt: skip

_LISTED: Final = {"Origin": "https://app.example.com"}
_HTTP: Final[dict[str, tuple[Any, ...]]] = {
    "no version": ("GET", "/socket.io/?transport=polling"),
    "version 3": ("GET", "/socket.io/?EIO=3&transport=polling"),
    "version 5": ("GET", "/socket.io/?EIO=5&transport=polling"),
    "version 04": ("GET", "/socket.io/?EIO=04&transport=polling"),
    "versions 3 and 4": ("GET", "/socket.io/?EIO=3&EIO=4&transport=polling"),
    "no transport": ("GET", "/socket.io/?EIO=4"),
    "unknown transport": ("GET", _Q + "abc"),
    "webtransport": ("GET", _Q + "webtransport"),
    "transport of JavaScript's": ("GET", _Q + "__proto__"),
    "WebSocket without an upgrade": ("GET", _Q + "websocket"),
    "POST": ("POST", _Q + "polling", {}, b"40"),
    "PUT": ("PUT", _Q + "polling"),
    "HEAD": ("HEAD", _Q + "polling"),
    "unknown session": ("GET", _Q + "polling&sid=abc"),
    "POST to an unknown session": ("POST", _Q + "polling&sid=abc", {}, b"40"),
    "session of JavaScript's": ("GET", _Q + "polling&sid=__proto__"),
    "empty session": ("GET", _Q + "polling&sid="),
    "unknown names in the query": ("GET", _Q + "polling&b64=1&t=abc&x[]=1&=&&%"),
    "GET with a body": ("GET", _Q + "polling", {}, b"40"),
    "two slashes": ("GET", "/socket.io//?EIO=4&transport=polling"),
    "another path": ("GET", "/other/?EIO=4&transport=polling"),
    "cookie": ("GET", _Q + "polling", {"Cookie": "io=abc; x=y"}),
    "listed origin": ("GET", _Q + "polling", _LISTED),
    "refusal for a listed origin": ("GET", _Q + "polling&sid=abc", _LISTED),
    "preflight": (
        "OPTIONS",
        _Q + "polling",
        {**_LISTED, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-y"},
    ),
    "OPTIONS without origin": ("OPTIONS", _Q + "polling"),
}

_FRAMES: Final[dict[str, bytes]] = {
    "in pieces": frame(1, b'427["ec', whole=False) + frame(9, b"hi") + frame(0, b'ho"]'),
    "unmasked": b"\x81\x01x",
    "reserved bits": b"\xf1\x80aaaa",
    "unknown opcode": frame(3, b""),
    "continuation of nothing": frame(0, b"x"),
    "no UTF-8": frame(1, b"\xff\xff"),
    "long ping": frame(9, b"x" * 126),
    "close of one byte": frame(8, b"x"),
    "close code 1005": frame(8, b"\x03\xed"),
    "too large": frame(1, b"4" * (LIMIT + 1)),
    "too large bytes": frame(2, b"4" * (LIMIT + 1)),
}

_SOCKETS: Final = (
    *(Case(f"frame: {name}", (("ws", "a"), _JOIN, ("frame", "a", data), _STILL)) for name, data in _FRAMES.items()),
    *(Case(f"ws: closes with {code}", (("ws", "a"), _JOIN, ("close", "a", code))) for code in (1000, 3000)),
    Case("ws: cut", (("ws", "a"), _JOIN, ("send", "a", "40/second,"), ("cut", "a"))),
    Case("ws: unknown session", (("raw_ws", "a", _Q + "websocket&sid=abc"),)),
    Case("ws: unknown transport", (("raw_ws", "a", _Q + "abc"),)),
    Case("ws: empty session", (("raw_ws", "a", _Q + "websocket&who=a&sid="), _JOIN)),
    Case("ws: polled", (("ws", "a"), _JOIN, ("http", "GET", _Q + "polling&sid={a}"), _STILL)),
    Case("ws: posted to", (("ws", "a"), _JOIN, ("http", "POST", _Q + "polling&sid={a}", {}, b"42"), _STILL)),
    Case("session asked for as a WebSocket", (("poll", "a"), ("http", "GET", _Q + "websocket&sid={a}"), _JOIN)),
    Case("session asked for as something else", (("poll", "a"), ("http", "GET", _Q + "abc&sid={a}"), _JOIN)),
)  # fmt: skip

AGREED: Final[tuple[Case, ...]] = (
    *_on_both(_JOINED),
    *_on_both({f"malformed {packet!r}": (packet,) for packet in MALFORMED}, last=("43",)),
    *_on_both(_UNJOINED, first=()),
    *_on_both(_HUNG_UP, last=()),
    *(_rooms("ws", "poll"), _rooms("poll", "poll")),
    *_GATE,
    *_UPGRADES,
    *_POLLING,
    *_SOCKETS,
    *(Case(f"http: {name}", (("http", *request),)) for name, request in _HTTP.items()),
)
"""Scripts of which both servers make the same."""


_ENDS: Final = "ends (disconnect broken)"
_ENDS_POLL: Final = "packet ends (disconnect broken) failed 400"
_LIVES: Final = "3 (event echo)"
_DOES: Final = "3 (event echo) 3 (event echo)"
_DOES_BYTES: Final = "6 (event echo) 3 (event echo)"


def _different(why: str, *rows: tuple[Case, str, str]) -> list[Difference]:
    return [Difference(why, *row) for row in rows]


def _ws(packet: Any, node: str, flotta: str, *before: Any) -> tuple[Case, str, str]:
    return _script("ws", repr(packet)[:60], *before, packet), node, flotta


def _poll(packets: tuple[Any, ...], node: str, flotta: str, last: str = ALIVE) -> tuple[Case, str, str]:
    return _script("poll", repr(packets), packets, last=(last,)), node, flotta


def _request(name: str, node: str, flotta: str, *request: Any) -> tuple[Case, str, str]:
    return Case(name, (("http", *request),)), node, flotta


def _from_evil(
    name: str, node: str, flotta: str, step: Step, origin: str = "https://evil.example"
) -> tuple[Case, str, str]:
    return Case(name, (("poll", "a"), (*step, {"Origin": origin}))), node, flotta


DIFFERENT: Final[tuple[Difference, ...]] = (
    *_different(
        "a namespace that has been left",
        _ws('421["echo"]', "ends", "", "41"),
        _ws('421["echo"]', "ends", "", '42["kick"]'),
        _ws("41", "ends", "", "41"),
        _ws("430[]", "ends", "", '42["kick"]'),
        _ws(('451-/second,7["echo",' + PART % 0 + "]", b"x"), _ENDS, _LIVES, "40/second,", "41/second,"),
    ),
    *_different(
        "before the answer to CONNECT",
        _ws("41/gated,", _ENDS, _LIVES, "40/gated,"),
        _ws("40/gated,", _LIVES, _ENDS, "40/gated,"),
        _ws('42/gated,1["echo"]', _ENDS, _LIVES, "40/gated,"),
        _ws('43/gated,1["echo"]', _ENDS, _LIVES, "40/gated,"),
        _poll(("40/second,", '42/second,1["echo"]'), _ENDS_POLL, "0 3 (connect) (event echo) 3 (event echo)"),
        _poll(("40/guarded,", '42/guarded,1["echo"]'), _ENDS_POLL, "4 3 (event echo)"),
        (
            Case("gate, an event waits", (("ws", "a"), ("send", "a", "40/gated,", '42/gated,1["echo"]'), ("release",))),
            *("ends", "0 3 (connect) (event echo)"),
        ),
        _poll(
            ("40/second,", "41/second,"),
            _ENDS_POLL,
            "(connect) (disconnect client namespace disconnect) 3 (event echo)",
        ),
    ),
    *_different(
        "events before the end",
        _poll(('421["echo"]', "41"), "", "(event echo)", last="40"),
        _poll(('421["echo"]', "4x"), "", "(event echo)"),
    ),
    *_different("the query of a namespace", _ws("40/second?x=1,", "4", "0 (connect)")),
    *_different(
        "packets that no official client sends",
        *(_ws(packet, _LIVES, _ENDS) for packet in ('43["x"]', "431", "0", "5", ("461-" + ONE, b"x"))),
        *(_ws(packet, "(event None) 3 (event echo)", _ENDS) for packet in ("42", "421", ("451-7", b"x"))),
        _ws('427\ufeff["echo"]', _DOES, _ENDS),
        _ws(('451-7["echo",' + PART_AND_A_HALF + "]", b"x"), _DOES, _ENDS),
        _ws(("45+1-7" + '["echo",' + PART % 0 + "]", b"x"), _DOES_BYTES, _ENDS),
        _ws("b!", _DOES_BYTES, _ENDS, '451-7["echo",' + PART % 0 + "]"),
        _ws('42 ["echo"]', "3", ""),
        _ws("415", "(disconnect client namespace disconnect) ends", _ENDS),
        _ws("40/second,5", "0 (connect) 3 (event echo)", _ENDS),
        _ws("1", _LIVES, "ends (disconnect transport close)"),
        _ws("41null", _ENDS, "(disconnect client namespace disconnect)"),
        _ws("40/second,null", _ENDS, "0 (connect) 3 (event echo)"),
        _ws('450-7["echo",1]', _ENDS, _DOES),
    ),
    *_different(
        "limits",
        _ws('429007199254740991["echo"]', _DOES, _ENDS),
        _ws("40/" + "n" * 300 + ",", "4 3 (event echo)", _ENDS),
        _ws(('4511-7["echo",' + ",".join(PART % n for n in range(11)) + "]", *[b"x"] * 11), _ENDS, _DOES_BYTES),
        _ws(('451-7["echo",' + PART % 0 + "," + PART % 0 + "]", b"x"), _DOES_BYTES, _ENDS),
        _ws('427["echo",1e999]', "3", ""),
        (Case("too large a POST", (("poll", "a"), ("post", "a", b"4" * (LIMIT + 1)))), "", "packet ends"),
    ),
    *_different(
        "upgrades",
        (Case("without a probe", (*_OPEN, ("send", "a+", "5"), _NEW)), "packet ends 3 (event echo)", "ends"),
        (Case("two probes", (*_PROBED, ("send", "a+", "2probe"), _STILL)), "packet", "ends"),
        (
            Case("a second WebSocket", (("ws", "a"), ("raw_ws", "b", _Q + "websocket&sid={a}"), ("send", "a", "40"))),
            *("", "ends"),
        ),
    ),
    *_different(
        "ends over polling",
        _poll(('42["hangup"]',), "failed 400", ""),
        (Case("after junk", (*_QUIET, ("post", "a", b"40"), ("get", "a"))), "packet ends 200", "400"),
        (Case("junk of Engine.IO", (("poll", "a"), ("post", "a", b"x"))), "", "failed 400"),
        (
            Case("binary body", (("poll", "a"), ("post", "a", b"40", {"Content-Type": "application/octet-stream"}))),
            *("packet ends failed 400", "0 (connect)"),
        ),
    ),
    *_different(
        "paths, methods, codes",
        _request("no slash", "404", "open 200", "GET", "/socket.io?EIO=4&transport=polling"),
        _request("below", "open 200", "404", "GET", "/socket.io/x?EIO=4&transport=polling"),
        _request("the client", "200", "404", "GET", "/socket.io/socket.io.js"),
        _request("JSONP", "", "open", "GET", _Q + "polling&j=0"),
        _request("several faults", "[400, 0]", "[400, 5]", "GET", "/socket.io/?EIO=3&transport=abc"),
        (Case("PUT", (("poll", "a"), ("http", "PUT", _Q + "polling&sid={a}"))), "500", "[400, 2]"),
    ),
    *_different(
        "origins",
        _from_evil("foreign", "open 200", "[403, 4]", ("http", "GET", _Q + "polling")),
        _from_evil("none", "open 200", "[403, 4]", ("http", "GET", _Q + "polling"), "null"),
        _from_evil("of a session", "packet ends 200", "[403, 4]", ("http", "POST", _Q + "polling&sid={a}")),
        _from_evil("preflight", "204", "403", ("http", "OPTIONS", _Q + "polling")),
        _from_evil("WebSocket", "open", "ends", ("raw_ws", "b", _Q + "websocket&who=b")),
    ),
)  # fmt: skip
"""Scripts of which they do not, with what comes of each."""
