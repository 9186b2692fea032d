"""What of a socket goes along when its session moves, and how features that keep more for it take part.

A feature that keeps something per socket (a user, an expiry, presence) has a `Traveller`: its value must be plain
data, as everything that goes along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, final

import msgpack  # type: ignore[import-untyped]  # it has no types

from flotta.errors import FlottaError, WireError
from flotta.realtime.adapters.wire import unpack
from flotta.realtime.client import Socket
from flotta.realtime.people import People
from flotta.realtime.recovery.keeper import Keeper
from flotta.realtime.recovery.kept import Kept
from flotta.realtime.recovery.session import read_session, write_session
from flotta.realtime.relay.wire import MovedSocket

__all__ = ["Traveller", "Travelling", "TravellingPeople", "TravellingRecovery", "Unpackable"]


class Unpackable(FlottaError):
    """A session holds what MessagePack cannot carry."""


class Traveller(Protocol):
    """A feature that keeps something per socket."""

    @property
    def name(self) -> str:
        """Under which its value travels; the same on every instance."""
        ...

    def leave(self, socket: Socket) -> Any:
        """What the next instance needs; called without effect, perhaps several times, before the socket goes."""
        ...

    def left(self, socket: Socket) -> None:
        """The socket has gone to another instance: forget it, without a word to anybody."""
        ...

    def arrive(self, socket: Socket, value: Any) -> None:
        """The socket has come; ``value`` is what `leave` gave there. It is in its rooms already."""
        ...


@final
class Travelling:
    """Packs and unpacks; the travellers' part goes along."""

    def __init__(self, *travellers: Traveller) -> None:
        self._travellers = travellers

    def pack(self, socket: Socket, rooms: Iterable[str]) -> MovedSocket:
        """A socket as it travels. Raises Unpackable."""
        return MovedSocket(
            sid=socket.sid,
            namespace=socket.namespace,
            rooms=sorted(room for room in rooms if room != socket.sid),
            session=None if socket.session is None else _pack(socket.session, "the session"),
            since=socket.since,
            last_ack=socket.last_ack,
            is_awaited=socket.is_awaited,
            facts={one.name: _pack(one.leave(socket), one.name) for one in self._travellers},
        )

    def left(self, socket: Socket) -> None:
        """A socket has gone."""
        for one in self._travellers:
            one.left(socket)

    def arrive(self, socket: Socket, moved: MovedSocket) -> None:
        """A socket has come. Raises WireError."""
        for one in self._travellers:
            if one.name in moved.facts:
                one.arrive(socket, unpack(moved.facts[one.name]))

    def unpack_session(self, moved: MovedSocket) -> dict[str, Any] | None:
        """The user's data. Raises WireError."""
        if moved.session is None:
            return None
        session = unpack(moved.session)
        if not isinstance(session, dict):
            raise WireError("moved session", "no map", moved.session)
        return session

    def pack_args(self, args: list[Any]) -> bytes:
        """The arguments of an acknowledgement. Raises Unpackable."""
        return _pack(args, "an acknowledgement")

    def unpack_args(self, packed: bytes) -> list[Any]:
        """And back. Raises WireError."""
        args = unpack(packed)
        if not isinstance(args, list):
            raise WireError("moved acknowledgement", "no list", packed)
        return args


@final
class TravellingPeople:
    """Users, their expiry and their presence; a `Traveller`."""

    name = "person"

    def __init__(self, people: People) -> None:
        self._people = people

    def leave(self, socket: Socket) -> Any:
        """Who it is."""
        return self._people.facts(socket.sid)

    def left(self, socket: Socket) -> None:
        """Not here any more; what is written of its presence is the next instance's to take over."""
        self._people.moved(socket)

    def arrive(self, socket: Socket, value: Any) -> None:
        """The user goes on here."""
        if value is not None:
            try:
                self._people.restore(socket, value)
            except (KeyError, TypeError, ValueError) as error:
                raise WireError("moved session", f"no user: {error}") from error


@final
class TravellingRecovery:
    """What a socket needs to be recovered; a `Traveller`."""

    name = "recovery"

    def __init__(self, keeper: Callable[[], Keeper | None]) -> None:
        self._keeper = keeper

    def leave(self, socket: Socket) -> Any:
        """Its private id, who may write its session, how far the client has come."""
        kept = socket.kept
        if kept is None:
            return None
        kept.settle(socket.client.heard)
        session = kept.session(socket.sid, socket.namespace, (), None, live=True, user=kept.user)
        return [write_session(session), kept.recovered]

    def left(self, socket: Socket) -> None:
        """Its session is the other instance's to keep."""
        keeper = self._keeper()
        if keeper is not None:
            keeper.release(socket)

    def arrive(self, socket: Socket, value: Any) -> None:
        """Keep its session from now on."""
        keeper = self._keeper()
        if keeper is None or value is None:
            return
        if not isinstance(value, list) or len(value) != 2:
            raise WireError("moved session", "no recovery")
        session = read_session(value[0])
        if session.seen is None:
            raise WireError("moved session", "no position")
        kept = Kept.of(session, session.owner, session.seen)
        kept.recovered = bool(value[1])
        keeper.adopt(socket, kept)


def _pack(value: Any, what: str) -> bytes:
    """Only what comes back as it was, but for tuples, which come back as lists: no dates, no sets, no huge integers."""
    try:
        return bytes(msgpack.packb(value, use_bin_type=True, unicode_errors="surrogatepass"))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Unpackable(f"{what}: {error}") from error
