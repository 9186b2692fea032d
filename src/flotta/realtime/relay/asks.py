"""Polling requests of sessions that another instance holds: sent there whole, answered here. Both sides.

The holder serves such a request exactly as one of its own, with its own checks; here only the rules of the handshake
are applied. A request waits for its answer no longer than a session may be silent, and less if its holder ends: then
the client is told that its session is unknown and begins a new one.

A proxy whose upstream dies sends a GET again, to the next one: the same request gets the same answer then, so nothing
is lost with an instance that had an answer and died. Official clients, like most, put something new into each request's
query (``t``), so that the same one can be told from the next; who does not is not helped.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Protocol, TypeAlias, final

from flotta.realtime.engine.client import Reason
from flotta.realtime.engine.request import Request
from flotta.realtime.engine.sessions import AnyEngine
from flotta.realtime.engineio.handshake import INSTANCE_LENGTH, Facts, Refusal, Refused
from flotta.realtime.engineio.packet import PacketType
from flotta.realtime.relay.budget import Budget
from flotta.realtime.relay.post import Post
from flotta.realtime.relay.wire import Answer, Ask, Left, Release, Seen
from flotta.realtime.transports.polling import RELAYED, PollingTransport, client_left, read_body, serve_http

__all__ = ["AskStats", "Asks", "HttpAnswer", "seen"]

PENDING_MAX = 50_000
"""Requests that wait here for other instances, and those of others that wait here."""
BODIES_BYTES_MAX = 4_194_304
"""Bodies on their way to one other instance and not answered yet; more wait."""
ANSWERS_BYTES_MAX = 4_194_304
"""Answers on their way to one other instance that has not said yet that it has them; more wait."""
ANSWER_FREE_BYTES = 1_024
"""Answers up to this size are not counted, and nothing is said of them."""
ANSWER_TIMEOUT_S = 2.0
"""Then an answer is taken for arrived."""
GRACE_S = 2.0
REPEAT_S = 2.0
"""For how long a GET whose answer nobody heard may be sent again."""
GONE_CHECKS = 4
GONE_CHECK_S = 0.01
"""The kernel closes the connections of a killed process one after the other: to the proxy, to Redis."""
HEADERS_ASKED = frozenset({b"origin", b"host"})

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]


class HttpAnswer(Protocol):
    """The response to a request that came in here."""

    async def send(self, status: int, body: bytes, *, kind: bytes) -> None:
        """Send it."""
        ...

    async def refuse(self, refusal: Refusal, status: int | None = None) -> None:
        """Send a refusal."""
        ...


class AskStats(NamedTuple):
    """Counters since the start."""

    sent: int
    served: int
    pending: int


class _Pending(NamedTuple):
    owner: str
    answer: asyncio.Future[Answer | Refused]


def seen(request: Request, names: frozenset[bytes] | None = None) -> Seen:
    """The request for another instance, with all headers or those of ``names``."""
    scope = request.scope()
    client = scope.get("client")
    return Seen(
        method=scope.get("method", "GET"),
        scheme=scope.get("scheme", "http"),
        path=scope["path"],
        query=bytes(scope["query_string"]),
        headers=[(bytes(name), bytes(value)) for name, value in scope["headers"] if names is None or name in names],
        http_version=scope.get("http_version", "1.1"),
        client=None if not client else (str(client[0]), int(client[1] or 0)),
    )


@final
class Asks:
    """The requests of one server."""

    def __init__(self, engine: AnyEngine, post: Post) -> None:
        self._engine = engine
        self._post = post
        self._pending: dict[str, _Pending] = {}
        self._serving: dict[str, _Served] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent = self._served = 0
        self._releasing = False
        self._budget = Budget(BODIES_BYTES_MAX)
        self._answers = Budget(ANSWERS_BYTES_MAX)

    @property
    def stats(self) -> AskStats:
        """Counters."""
        return AskStats(sent=self._sent, served=self._served, pending=len(self._pending))

    # --- requests that came in here ---

    def owners(self) -> Iterator[str]:
        """The instances that something is expected of."""
        return (pending.owner for pending in self._pending.values())

    async def serve(self, facts: Facts, request: Request, receive: Receive, answer: HttpAnswer) -> None:
        """Serve an admitted request of a session that another instance holds. Cancelled: the holder is told."""
        if len(self._pending) >= PENDING_MAX:
            await answer.refuse(Refusal(Refused.AT_CAPACITY))
            return
        options = self._engine.options
        limit_s = options.ping_interval_s + options.ping_timeout_s
        body: bytearray | None = bytearray()
        found: Answer | Refused | None
        try:
            async with AsyncExitStack() as sending:
                async with asyncio.timeout(limit_s):
                    if facts.method == "POST":
                        body = await read_body(receive, options.payload_bytes_max)
                    if body is None:
                        await answer.refuse(Refusal(Refused.BAD_REQUEST), status=413)
                        return
                    await sending.enter_async_context(self._budget.spend(facts.sid[:INSTANCE_LENGTH], len(body)))
                found = await self._ask(facts, request, bytes(body), receive, limit_s + GRACE_S)
        except TimeoutError:
            await answer.refuse(Refusal(Refused.BAD_REQUEST), status=408)
            return
        except EOFError:
            return  # nobody is there to be answered
        if isinstance(found, Answer):
            await answer.send(found.status, found.body, kind=found.kind)
        elif found is not None:
            await answer.refuse(Refusal(found))

    async def _ask(
        self, facts: Facts, request: Request, body: bytes, receive: Receive, limit_s: float
    ) -> Answer | Refused | None:
        """What the holder answers, or why it does not; None: the client has gone."""
        owner, ask_id = facts.sid[:INSTANCE_LENGTH], secrets.token_urlsafe(9)
        waiting: asyncio.Future[Answer | Refused] = asyncio.get_running_loop().create_future()
        self._pending[ask_id] = _Pending(owner, waiting)
        self._sent += 1
        # GETs wait; a POST is answered at once, and its body has been read.
        leaving = asyncio.ensure_future(client_left(receive)) if facts.method == "GET" else None
        try:
            ask = Ask(ask_id, self._engine.instance, seen(request, HEADERS_ASKED), body)
            self._post.send(owner, ask, lambda: self._settle(ask_id, Refused.SESSION_UNKNOWN))
            if self._releasing:
                self._post.send(owner, Release(ask_id), _nothing)
            waits: set[asyncio.Future[Any]] = {waiting} if leaving is None else {waiting, leaving}
            await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            return None if leaving is not None and leaving.done() else Refused.OUT_OF_REACH
        finally:
            del self._pending[ask_id]
            if not waiting.done():
                self._post.send(owner, Left(ask_id), _nothing)
            if leaving is not None:
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)

    def _settle(self, ask_id: str, found: Answer | Refused) -> None:
        pending = self._pending.get(ask_id)
        if pending is not None and not pending.answer.done():
            pending.answer.set_result(found)

    def on_answer(self, answer: Answer) -> None:
        """A holder has answered."""
        pending = self._pending.get(answer.id)
        if pending is not None and len(answer.body) > ANSWER_FREE_BYTES:
            self._post.send(pending.owner, Left(answer.id), _nothing)
        self._settle(answer.id, answer)

    def on_gone(self, owner: str | None, why: Refused) -> None:
        """Nothing comes from ``owner`` (None: from anybody) for what it was asked before."""
        for ask_id, pending in list(self._pending.items()):
            if owner is None or pending.owner == owner:
                self._settle(ask_id, why)

    def release_all(self) -> None:
        """This instance stops: let the waiting requests come back, so that their clients ask elsewhere."""
        self._releasing = True
        for ask_id, pending in self._pending.items():
            self._post.send(pending.owner, Release(ask_id), _nothing)

    # --- requests of other instances ---

    def on_ask(self, ask: Ask) -> None:
        """Another instance got a request of a session that should be here."""
        if len(self._serving) >= PENDING_MAX or ask.id in self._serving:
            self._refuse(ask, Refused.AT_CAPACITY)
            return
        served = self._serving[ask.id] = _Served(ask, self._post, self.on_release)
        task = asyncio.get_running_loop().create_task(self._serve(served), name=f"relayed {ask.request.method}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, served: _Served) -> None:
        ask, engine = served.ask, self._engine
        try:
            if served.facts is None or not engine.awaits(served.facts):
                self._refuse(ask, Refused.SESSION_UNKNOWN)  # never handed on: that could go in circles
                return
            self._served += 1
            await serve_http(engine, served.scope, served.receive, served.send)
            if served.status:
                await self._answer(served)
        finally:
            served.finished.set()
            del self._serving[ask.id]

    async def _answer(self, served: _Served) -> None:
        ask, counted = served.ask, len(served.body) > ANSWER_FREE_BYTES
        async with self._answers.spend(ask.asker, len(served.body) if counted else 0):
            answer = Answer(ask.id, served.status, served.kind, served.body)
            self._post.send(ask.asker, answer, lambda: self._unheard(served))
            served.finished.set()
            if counted:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_TIMEOUT_S):
                        await served.left.wait()

    def _refuse(self, ask: Ask, why: Refused) -> None:
        refusal = Refusal(why)
        self._post.send(ask.asker, Answer(ask.id, refusal.status, b"application/json", refusal.body), _nothing)

    def _unheard(self, served: _Served) -> None:
        """What the answer held is lost, unless the request comes again: the session cannot go on."""
        served.left.set()
        if served.is_repeatable:
            asyncio.get_running_loop().call_later(REPEAT_S, self._end, served)
        else:
            self._end(served)

    def _end(self, served: _Served) -> None:
        assert served.facts is not None
        client = self._engine.clients.get(served.facts.sid)
        if client is None:
            return
        transport = client.transport
        if not served.is_repeatable or (isinstance(transport, PollingTransport) and transport.relayed is served):
            client.close(Reason.TRANSPORT_ERROR)

    def on_left(self, left: Left) -> None:
        """Whoever asked expects nothing more."""
        served = self._serving.get(left.id)
        if served is not None:
            served.left.set()

    def on_release(self, release: Release) -> None:
        """The instance that waits for this answer is about to stop."""
        served = self._serving.get(release.id)
        facts = None if served is None else served.facts
        client = None if facts is None else self._engine.clients.get(facts.sid)
        if client is not None and isinstance(client.transport, PollingTransport):
            client.transport.write_control(PacketType.NOOP.value)

    async def aclose(self) -> None:
        """Let nothing wait any more. Idempotent."""
        self.on_gone(None, Refused.OUT_OF_REACH)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@final
class _Served:
    """One request of another instance, as the ASGI scope and channels that a web server would give."""

    __slots__ = ("_begun", "_post", "_release", "ask", "body", "facts", "finished", "kind", "left", "scope", "status")

    def __init__(self, ask: Ask, post: Post, release: Callable[[Release], None]) -> None:
        request = ask.request
        self.ask = ask
        self._post = post
        self._release = release
        self.scope: dict[str, Any] = {
            "type": "http",
            "http_version": request.http_version,
            "method": request.method,
            "scheme": request.scheme,
            "path": request.path,
            "raw_path": b"",
            "root_path": "",
            "query_string": request.query,
            "headers": request.headers,
            "client": request.client,
            RELAYED: self,
        }
        self.facts: Facts | None
        try:
            self.facts = Request(scope=self.scope).facts()
        except ValueError:
            self.facts = None
        self.left = asyncio.Event()
        """Whoever asked has the answer, or wants none."""
        self.finished = asyncio.Event()
        """Its answer has been given to the post."""
        self._begun = False
        self.status, self.kind, self.body = 0, b"", b""

    @property
    def is_repeatable(self) -> bool:
        """The same request is told from the next one."""
        return self.ask.request.method == "GET" and b"&t=" in b"&" + self.ask.request.query

    async def again(self, query: bytes) -> bytes | None:
        """See `Relayed`."""
        if query != self.ask.request.query or not self.is_repeatable or not await self._is_lost():
            return None
        if not self.finished.is_set():
            self._release(Release(self.ask.id))
            await self.finished.wait()
        return self.body if self.status == 200 else None

    async def _is_lost(self) -> bool:
        """Whoever waits for the answer is gone."""
        for check in range(GONE_CHECKS):
            if check:
                await asyncio.sleep(GONE_CHECK_S)
            if not await self._post.is_there(self.ask.asker):
                return True
        return False

    async def receive(self) -> MutableMapping[str, Any]:
        """ASGI's: the body, then the end."""
        if not self._begun:
            self._begun = True
            return {"type": "http.request", "body": self.ask.body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI's: keeps the response; it travels when it is whole."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.kind = dict(message["headers"]).get(b"content-type", b"")
        else:
            self.body += message.get("body", b"")


def _nothing() -> None:
    pass
