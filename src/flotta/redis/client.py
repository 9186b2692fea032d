"""``redis.asyncio.Redis`` whose commands travel over a ``Link``: the same methods and types, a shared write per tick.

Owns: which commands may share the one connection and which must not, and the repeats. Invariants:

* What blocks, or changes the state of its connection, never goes over the shared link.
* A command runs twice only if its first run certainly did not happen, or a second run ends in the same state.
* Everything raised is a Flotta error and the exception that redis-py raises for the same event.
"""

from __future__ import annotations

import codecs
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Self

from redis._parsers.response_callbacks import get_response_callbacks
from redis.asyncio import Redis as DriverRedis
from redis.asyncio.connection import ConnectionPool
from redis.client import EMPTY_RESPONSE, NEVER_DECODE, CaseInsensitiveDict

from flotta.errors import Closed, CommandError, RedisError
from flotta.redis.driver_errors import DriverClosed, to_driver_error
from flotta.redis.effects import effect_of
from flotta.redis.endpoint import Endpoint
from flotta.redis.hub import Hub
from flotta.redis.link import Link
from flotta.redis.options import LinkOptions
from flotta.redis.pipeline import Pipeline
from flotta.redis.repeating import call_repeating, repeating
from flotta.redis.routing import Route, block_limit_s, is_special, route_of

__all__ = ["Redis"]

_PLANS_MAX: Final = 2_000
_IDLE_BLOCKING_LINKS_MAX: Final = 16


class _Plan:
    """What has to be known about a command name, looked up once."""

    __slots__ = ("callback", "special", "words")

    def __init__(self, words: tuple[bytes | str, ...], callback: Callable[..., Any] | None, *, special: bool) -> None:
        self.words = words
        self.callback = callback
        self.special = special


class Redis(DriverRedis):  # not final: redis-py's own client() and users' typing subclass it
    """The ordinary asyncio client of redis-py over a ``Link``.

    ``link`` carries the commands, ``hub`` the subscriptions; ``namespace`` goes before every name made by ``key``.
    """

    def __init__(
        self, *, namespace: str = "", options: LinkOptions | None = None, logger: Any = None, **driver_kwargs: Any
    ) -> None:
        super().__init__(**driver_kwargs)
        self.namespace = namespace
        self.options = options or LinkOptions()
        self._logger = logger
        kwargs = self.connection_pool.connection_kwargs
        if self.options.client_name is not None:
            kwargs.setdefault("client_name", self.options.client_name)  # redis-py's own connections bear it too
        if str(kwargs.get("protocol")) == "2":
            # The wire is always RESP3. Without a protocol redis-py gives the old shapes, by converting.
            del kwargs["protocol"]
        endpoint = Endpoint.from_driver(self.connection_pool.connection_class, kwargs)
        self.link = Link(endpoint, options=self.options, logger=logger)
        self.hub = Hub(endpoint, options=self.options, logger=logger)
        self._idle_blocking: list[Link] = []
        self._plans: dict[Any, _Plan] = {}
        self._encoder = self.connection_pool.get_encoder()  # type: ignore[no-untyped-call]
        self._decodes = bool(self._encoder.decode_responses)
        # The link writes str as UTF-8, without a detour over redis-py's encoder.
        self._encodes = codecs.lookup(self._encoder.encoding).name != "utf-8"
        callbacks = get_response_callbacks(kwargs.get("protocol"), kwargs.get("legacy_responses", True))
        self.response_callbacks = CaseInsensitiveDict(callbacks)  # type: ignore[arg-type]

    @classmethod
    def from_url(  # type: ignore[override]
        cls,
        url: str,
        *,
        namespace: str = "",
        options: LinkOptions | None = None,
        logger: Any = None,
        single_connection_client: bool = False,
        **driver_kwargs: Any,
    ) -> Self:
        """A client for ``url``; nothing is opened yet. Raises ``ConfigError``."""
        Endpoint.from_url(url)
        pool = ConnectionPool.from_url(url, **driver_kwargs)
        client = cls(
            namespace=namespace,
            options=options,
            logger=logger,
            connection_pool=pool,
            single_connection_client=single_connection_client,
        )
        client.auto_close_connection_pool = True
        return client

    def key(self, name: str) -> str:
        """``name`` with the namespace before it: for every key and channel that Flotta makes."""
        return self.namespace + name

    async def connect(self) -> Self:
        """Return when connected. Raises ``LinkUnavailable`` or ``ServerTooOld``, also redis-py's ConnectionError."""
        try:
            await self.link.start()
        except RedisError as error:
            raise to_driver_error(error) from error
        return self

    def dedicated(self, name: str) -> Link:
        """A new connection of its own, opened by its first call; ``name`` is added to its client name.

        For commands that block. You owe it ``aclose``.
        """
        endpoint = self.link.endpoint
        whole = f"{endpoint.client_name}:{name}" if endpoint.client_name else name
        options = replace(self.options, client_name=whole)
        return Link(endpoint, options=options, logger=self._logger)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001 - redis-py's signature
        """Close the link, the hub and every connection. Again: harmless."""
        idle, self._idle_blocking = self._idle_blocking, []
        await self.hub.aclose()
        await self.link.aclose()
        for link in idle:
            await link.aclose(drain_s=0.0)
        await super().aclose(close_connection_pool)

    def client(self) -> DriverRedis:
        """redis-py's client on one connection of its own: for SELECT, CLIENT TRACKING and other session state."""
        return DriverRedis(connection_pool=self.connection_pool, single_connection_client=True)

    def set_response_callback(self, command: str, callback: Callable[..., Any]) -> None:
        """As in redis-py."""
        super().set_response_callback(command, callback)
        self._plans.clear()

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: FBT001, FBT002
        """As in redis-py; without WATCH it is one contiguous write on the link."""
        return Pipeline(self, transaction=transaction, shard_hint=shard_hint)

    # --- commands -----------------------------------------------------------------------------------------------

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command and parse its reply as redis-py does.

        Repeats what is safe to repeat, up to ``options.retries`` times. Raises what ``Link.call`` raises; each is also
        the redis-py exception of that event. Cancelling is harmless to others; the command may have run.
        """
        plan = self._plans.get(args[0])
        if plan is None:
            plan = self.plan(args[0])
        if plan.special or self.single_connection_client:
            return await self._execute_special(plan, args, options)
        words = plan.words
        if words:
            args = (*words, *args[1:])
        if self._encodes:
            args = self.encoded(args)
        try:
            reply = await self.link.call(*args)
        except (RedisError, TypeError, UnicodeEncodeError, Closed) as error:
            reply = await self._recover(self.encoded(args), options, error)
        return self.parsed(plan, reply, options)

    def encoded(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """``args`` as redis-py sends them. Raises its ``DataError``."""
        return tuple(self._encoder.encode(arg) for arg in args)

    def parsed(self, plan: _Plan, reply: Any, options: dict[str, Any]) -> Any:
        """``reply`` decoded and shaped as redis-py does it."""
        if options:
            options.pop("keys", None)
            never_decode = options.pop(NEVER_DECODE, None) is not None
            options.pop(EMPTY_RESPONSE, None)
        else:
            never_decode = False
        if self._decodes and not never_decode:
            reply = self._decoded(reply)
        if plan.callback is None:
            return reply
        return plan.callback(reply, **options)

    async def _recover(self, args: tuple[Any, ...], options: dict[str, Any], error: Exception) -> Any:
        """The reply after all, or what the caller should see."""
        try:
            return await call_repeating(self.link, args, self.options, first_error=error)
        except RedisError as last:
            if EMPTY_RESPONSE in options and isinstance(last, CommandError):
                return options[EMPTY_RESPONSE]
            raise to_driver_error(last) from None
        except Closed as closed:
            raise DriverClosed(closed.what) from None

    async def _execute_special(self, plan: _Plan, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        words = (*(plan.words or (args[0],)), *args[1:])
        route = Route.SESSION if self.single_connection_client else route_of(words)
        if route is Route.SESSION:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        if route is Route.LINK:
            reply = await self._call_plain(self.encoded(words), options)
        else:
            reply = await self._call_blocking(self.encoded(words))
        reply = self.parsed(plan, reply, options)
        return await reply if inspect.isawaitable(reply) else reply

    async def _call_plain(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            return await self.link.call(*args)
        except (RedisError, Closed) as error:
            return await self._recover(args, options, error)

    async def _call_blocking(self, args: tuple[Any, ...]) -> Any:
        try:
            return await repeating(lambda: self._block(args), effect_of(args), self.options)
        except RedisError as error:
            raise to_driver_error(error) from None
        except Closed as closed:
            raise DriverClosed(closed.what) from None

    async def _block(self, args: tuple[Any, ...]) -> Any:
        """On a connection of its own. If it does not end by itself the connection is closed, so that nothing is taken
        from a list for a caller who has gone."""
        if self.link.closed:
            raise Closed(f"the link to {self.link.endpoint.address}")
        link = self._idle_blocking.pop() if self._idle_blocking else self.dedicated("blocking")
        limit_s = block_limit_s(args) or 0.0
        try:
            reply = await link.call(*args, timeout_s=limit_s + self.options.command_timeout_s)
        except CommandError:
            await self._put_back(link)
            raise
        except BaseException:
            await link.aclose(drain_s=0.0)
            raise
        await self._put_back(link)
        return reply

    async def _put_back(self, link: Link) -> None:
        if self.link.closed or len(self._idle_blocking) >= _IDLE_BLOCKING_LINKS_MAX:
            await link.aclose(drain_s=0.0)
        else:
            self._idle_blocking.append(link)

    def plan(self, name: Any) -> _Plan:
        """What ``name`` ("XINFO STREAM", b"get") needs, kept for the next call."""
        text = name.decode() if isinstance(name, bytes) else str(name)
        words = tuple(text.split()) or (text,)
        callback = self.response_callbacks.get(text)
        special = is_special(words[0].upper()) or inspect.iscoroutinefunction(callback)
        plan = _Plan(words if len(words) > 1 else (), callback, special=special)
        if len(self._plans) < _PLANS_MAX:
            self._plans[name] = plan
        return plan

    def _decoded(self, reply: Any) -> Any:
        if isinstance(reply, bytes):
            return reply.decode(self._encoder.encoding, self._encoder.encoding_errors)
        if isinstance(reply, list):
            return [self._decoded(item) for item in reply]
        if isinstance(reply, dict):
            return {self._decoded(key): self._decoded(value) for key, value in reply.items()}
        return reply
