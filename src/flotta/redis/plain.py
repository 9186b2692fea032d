"""Redis for code without an event loop: WSGI workers, threads, Celery tasks.

Owns: a few connections of redis-py's synchronous client. Invariants:

* Safe for many threads at once; after a fork each process has connections of its own.
* A command is written to one connection at most once: until then its failure is `LinkUnavailable`, from then on
  `AmbiguousOutcome`. While Redis is away a call waits up to ``command_timeout_s`` for it to come back.
* A connection whose reply was not read to its end is never used again.
"""

from __future__ import annotations

import time
from typing import Any, Final, final

from redis import BlockingConnectionPool
from redis import exceptions as driver
from redis._parsers.base import BaseParser
from redis.backoff import NoBackoff
from redis.retry import Retry

from flotta.errors import AmbiguousOutcome, Closed, CommandError, LinkUnavailable
from flotta.redis.connection import Arg
from flotta.redis.endpoint import Endpoint
from flotta.redis.options import LinkOptions

__all__ = ["PlainRedis"]

CONNECTIONS_MAX: Final = 32
"""Threads of one process that may call at once; more wait for one another."""
_LOST: Final = (driver.ConnectionError, driver.TimeoutError, OSError)
_CODES: Final = {kind: code for code, kind in BaseParser.EXCEPTION_CLASSES.items() if isinstance(kind, type)}


@final
class PlainRedis:
    """See the module. Nothing is opened before the first call.

    Raises:
        ConfigError: ``url`` is none.
    """

    def __init__(self, url: str, *, options: LinkOptions | None = None) -> None:
        self._options = options or LinkOptions()
        self._address = Endpoint.from_url(url).address
        self._closed = False
        # RESP2 and no retries: redis-py would repeat what may have run, and with RESP3's notices it does not look
        # whether an idle connection has ended.
        self._pool: Any = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS_MAX,
            timeout=self._options.command_timeout_s,
            socket_timeout=self._options.command_timeout_s,
            socket_connect_timeout=self._options.connect_timeout_s,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
            client_name=self._options.client_name,
            protocol=2,
        )

    def call(self, *args: Arg) -> Any:
        """Send one command and return its reply, strings as bytes. Blocks for at most about twice
        ``command_timeout_s``.

        Raises:
            LinkUnavailable: no connection in time; the command has not run.
            AmbiguousOutcome: the reply is lost; it may have run.
            CommandError: the server answered with an error.
            Closed: after `close`.
        """
        name = str(args[0])
        connection = self._take(name)
        sound = False
        try:
            connection.send_command(*args)
            reply = connection.read_response(disable_decoding=True)
            sound = True
        except driver.ResponseError as error:
            sound = True
            raise CommandError(_text(error), command=name) from error
        except _LOST as error:
            raise AmbiguousOutcome(str(error) or type(error).__name__, command=name) from error
        finally:
            if not sound:
                connection.disconnect()
            self._pool.release(connection)
        return reply

    def _take(self, command: str) -> Any:
        """A connection that is up. Raises LinkUnavailable when there is none in time, CommandError when the server does
        not take what the URL asks for."""
        if self._closed:
            raise Closed("the Redis client")
        ends_at_s = time.monotonic() + self._options.command_timeout_s
        pause_s = self._options.reconnect_min_s
        while True:
            try:
                return self._pool.get_connection()
            except driver.AuthenticationError as error:
                raise LinkUnavailable(self._address, str(error), command=command) from error
            except driver.ResponseError as error:  # the database's number, for one
                raise CommandError(_text(error), command=command) from error
            except _LOST as error:
                if time.monotonic() + pause_s > ends_at_s:
                    reason = str(error) or type(error).__name__
                    raise LinkUnavailable(self._address, reason, command=command) from error
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, self._options.reconnect_max_s)

    def close(self) -> None:
        """Close the connections of this process. Idempotent."""
        self._closed = True
        self._pool.disconnect()


def _text(error: driver.ResponseError) -> str:
    """The server's whole sentence; redis-py takes the code of some away."""
    code = _CODES.get(type(error))
    return f"{code} {error}" if code is not None else str(error)
