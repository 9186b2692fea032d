"""Random scripts for the differential test, of which Flotta and Node should make the same.

The author of a script knows who is connected to what, so that nobody does what the two are known to answer differently.
"""

from __future__ import annotations

import json
import random
from typing import Any, Final

from differential_cases import MALFORMED
from differential_wire import Case, Step

__all__ = ["random_case"]

_NAMESPACES: Final = ("/", "/second", "/dyn-1", "/dyn-2")
_ROOMS: Final = ("r", "s", "t")
_TEXTS: Final = ("", "x", "\u00e9\U0001f600", 'q"\\/', "\u2028", "a" * 300, "_placeholder")
_NUMBERS: Final = (0, 1, -1, 2**53, 0.5, -1e-7, 1.5e300)


class _Author:
    """Writes one script."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.steps: list[Step] = []
        self._joined: dict[str, set[str]] = {}
        self._polling: set[str] = set()
        """Whoever may still upgrade."""

    def open(self, who: str) -> None:
        transport = self._chance.choice(("ws", "poll"))
        self.steps.append((transport, who))
        self._joined[who] = set()
        if transport == "poll":
            self._polling.add(who)

    def go_on(self) -> None:
        """One more step, of somebody who is connected."""
        if not self._joined:
            return
        who = self._chance.choice(sorted(self._joined))
        if not self._joined[who] or self._chance.random() < 0.15:
            self._join(who)
            return
        acts = [self._events] * 8 + [
            self._ask,
            self._leave,
            self._kick,
            self._refused,
            self._rooms,
            self._rooms,
            self._spread,
        ]
        acts += [self._spread, self._spread, self._bytes, self._bytes, self._end]
        self._chance.choice(acts)(who, self._chance.choice(sorted(self._joined[who])))
        if who in self._polling and self._joined[who] and self._chance.random() < 0.1:
            self._upgrade(who)

    def _send(self, who: str, *packets: str | bytes) -> None:
        self.steps.append(("send", who, *packets))

    def _packet(self, kind: str, namespace: str, *data: Any) -> str:
        """An event; every second one wants to be acknowledged."""
        number = str(self._chance.randrange(1000)) if self._chance.random() < 0.5 and data[0] in _ANSWERED else ""
        text = json.dumps(data, ensure_ascii=self._chance.random() < 0.5, separators=(",", ":"))
        return f"4{kind}{_prefix(namespace)}{number}{text}"

    def _value(self, depth: int = 2) -> Any:
        kind = self._chance.randrange(7 if depth else 4)
        if kind == 0:
            return self._chance.choice(_TEXTS)
        if kind == 1:
            return self._chance.choice(_NUMBERS)
        if kind < 4:
            return self._chance.choice((None, True, False, []))
        items = [self._value(depth - 1) for _ in range(self._chance.randrange(3))]
        return items if kind == 4 else {self._chance.choice(_TEXTS): item for item in items}

    def _values(self) -> list[Any]:
        return [self._value() for _ in range(self._chance.randrange(3))]

    def _join(self, who: str) -> None:
        free = [name for name in _NAMESPACES if name not in self._joined[who]]
        if free:
            namespace = self._chance.choice(free)
            self._joined[who].add(namespace)
            self._send(who, f"40{_prefix(namespace)}" + self._chance.choice(("", "{}", '{"token":"yes"}')))

    def _events(self, who: str, _namespace: str) -> None:
        events = []
        for _ in range(self._chance.choice((1, 1, 2, 5))):
            namespace = self._chance.choice(sorted(self._joined[who]))
            events.append(self._packet("2", namespace, self._chance.choice(("echo", "back")), *self._values()))
        self._send(who, *events)

    def _bytes(self, who: str, namespace: str) -> None:
        count = self._chance.choice((1, 2, 10))
        parts = [self._chance.randbytes(self._chance.choice((0, 1, 40))) for _ in range(count)]
        places = self._chance.sample(range(count), count)
        event = self._chance.choice(("echo", "back"))
        data = [event, *self._values(), *({"_placeholder": True, "num": place} for place in places)]
        packets: list[str | bytes] = [self._packet(f"5{count}-", namespace, *data), *parts]
        if self._chance.random() < 0.5:
            self._send(who, *packets)
        else:
            for packet in packets:
                self._send(who, packet)

    def _ask(self, who: str, namespace: str) -> None:
        self._send(who, self._packet("2", namespace, "ask", *self._values()))
        answer = json.dumps(self._values())
        self._send(who, f"43{_prefix(namespace)}<ack>{answer}")

    def _rooms(self, who: str, namespace: str) -> None:
        self._send(
            who,
            self._packet("2", namespace, self._chance.choice(("join", "join", "leave")), self._chance.choice(_ROOMS)),
        )

    def _spread(self, who: str, namespace: str) -> None:
        to, spared = ([room for room in _ROOMS if self._chance.random() < 0.4] for _ in range(2))
        what = {"to": to, "except": spared if self._chance.random() < 0.5 else [], "args": self._values()}
        self._send(who, self._packet("2", namespace, self._chance.choice(("say", "tell")), what))

    def _refused(self, who: str, _namespace: str) -> None:
        self._send(who, self._chance.choice(("40/guarded,", '40/guarded,{"token":"no"}', "40/nope,", "40/dyn-*,")))

    def _leave(self, who: str, namespace: str) -> None:
        self._send(who, f"41{_prefix(namespace)}")
        self._joined[who].discard(namespace)

    def _kick(self, who: str, namespace: str) -> None:
        self._send(who, self._packet("2", namespace, "kick"))
        self._joined[who].discard(namespace)

    def _upgrade(self, who: str) -> None:
        self._polling.discard(who)
        new = f"{who}+"
        self.steps += [("upgrade", who), ("send", new, "2probe"), ("pause", who)]
        if self._chance.random() < 0.5:
            self._events(who, "")
        self.steps.append(("send", new, "5"))
        self._joined[new] = self._joined.pop(who)

    def _end(self, who: str, namespace: str) -> None:
        """The connection is over, in one way or another."""
        left = self._chance.choice(("hangup", "junk", "again", "stranger", "leave"))
        if left == "hangup":
            self._send(who, self._packet("2", namespace, "hangup"))
        elif left == "junk":
            self._send(who, self._chance.choice([packet for packet in MALFORMED if packet != "4"]))
        elif left == "again":
            self._send(who, f"40{_prefix(namespace)}")
        elif left == "stranger":
            self._send(who, self._packet("2", "/third", "echo"))
        elif who in self._polling:
            self._send(who, "1")
        else:
            self.steps.append(("close", who))
        del self._joined[who]
        self._polling.discard(who)


_ANSWERED: Final = {"echo", "join", "leave", "say", "tell"}


def _prefix(namespace: str) -> str:
    return "" if namespace == "/" else namespace + ","


def random_case(seed: int) -> Case:
    """A long script of three clients, the same one for the same seed."""
    author = _Author(random.Random(seed))
    for who in "abc":
        author.open(who)
    for _ in range(25):
        author.go_on()
    return Case(f"seed {seed}", tuple(author.steps))
