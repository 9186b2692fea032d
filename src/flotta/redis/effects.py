"""What a second run of a command would do, and what an error reply says about the first. Pure: decides, never waits.

Owns: the two tables by which commands are repeated. Invariants: a command that is not listed is NEVER repeated after a
lost reply; an error that is not listed counts as the server's answer (APP). Both mistakes then cost an error, not data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from flotta.errors import Outcome

__all__ = ["Effect", "effect_of", "effect_of_batch", "is_repeatable", "outcome_of"]


class Effect(IntEnum):
    """What a second run does to the data, from harmless to forbidden."""

    READ = 0
    """Changes nothing."""
    CHECKED = 1
    """The second run sees that the first has happened and changes nothing: XACK, XDEL, XGROUP DESTROY."""
    LAST_WRITE_WINS = 2
    """Ends in the same state: SET, HSET, DEL, SADD. Only a count in the reply may differ."""
    ACCUMULATING = 3
    """Every run adds or takes: INCR, LPUSH, XADD, LPOP."""
    NEVER = 4
    """Unknown, a script, or the reply itself decides something: SET NX, GETSET, EVAL."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_READ: Final = _words(
    """
    BITCOUNT BITFIELD_RO BITPOS COMMAND DBSIZE DUMP ECHO EVALSHA_RO EVAL_RO EXISTS EXPIRETIME FCALL_RO GEODIST
    GEOHASH GEOPOS GEORADIUS_RO GEORADIUSBYMEMBER_RO GEOSEARCH GET GETBIT GETRANGE HEXISTS HEXPIRETIME HGET
    HGETALL HKEYS HLEN HMGET HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSTRLEN HTTL HVALS INFO KEYS LASTSAVE LCS
    LINDEX LLEN LOLWUT LPOS LRANGE MGET PEXPIRETIME PFCOUNT PING PTTL RANDOMKEY ROLE SCAN SCARD SDIFF SINTER
    SINTERCARD SISMEMBER SMEMBERS SMISMEMBER SORT_RO SRANDMEMBER SSCAN STRLEN SUBSTR SUNION TIME TTL TYPE XINFO
    XLEN XPENDING XRANGE XREAD XREVRANGE ZCARD ZCOUNT ZDIFF ZINTER ZINTERCARD ZLEXCOUNT ZMSCORE ZRANDMEMBER
    ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE
    ZUNION
    """
)
_CHECKED: Final = frozenset(("XACK", "XDEL", "XTRIM"))
_LAST_WRITE_WINS: Final = _words(
    """
    BITOP DEL EXPIRE EXPIREAT FLUSHALL FLUSHDB GEOADD GEOSEARCHSTORE HDEL HEXPIRE HEXPIREAT HMSET HPERSIST
    HPEXPIRE HPEXPIREAT HSET LSET MSET PERSIST PEXPIRE PEXPIREAT PFADD PFMERGE PSETEX SADD
    SDIFFSTORE SET SETEX SETRANGE SINTERSTORE SREM SUNIONSTORE TOUCH UNLINK ZADD ZDIFFSTORE ZINTERSTORE
    ZRANGESTORE ZREM ZREMRANGEBYLEX ZREMRANGEBYSCORE ZUNIONSTORE
    """
)
_ACCUMULATING: Final = _words(
    """
    APPEND DECR DECRBY HINCRBY HINCRBYFLOAT INCR INCRBY INCRBYFLOAT LINSERT LMOVE LMPOP LPOP LPUSH LPUSHX LREM LTRIM
    PUBLISH RPOP RPOPLPUSH RPUSH RPUSHX SPOP SPUBLISH XADD XAUTOCLAIM XCLAIM XREADGROUP ZINCRBY ZMPOP ZPOPMAX
    ZPOPMIN ZREMRANGEBYRANK
    """
)
_TABLE: Final[dict[str, Effect]] = {
    **dict.fromkeys(_READ, Effect.READ),
    **dict.fromkeys(_CHECKED, Effect.CHECKED),
    **dict.fromkeys(_LAST_WRITE_WINS, Effect.LAST_WRITE_WINS),
    **dict.fromkeys(_ACCUMULATING, Effect.ACCUMULATING),
}
_SUBCOMMANDS: Final[dict[str, Effect]] = {
    **dict.fromkeys(
        (
            "ACL GETUSER", "ACL LIST", "ACL USERS", "ACL WHOAMI", "CLIENT GETNAME", "CLIENT ID", "CLIENT INFO",
            "CLIENT LIST", "CLUSTER INFO", "CLUSTER KEYSLOT", "CLUSTER NODES", "CLUSTER SHARDS", "CLUSTER SLOTS",
            "CONFIG GET", "FUNCTION LIST", "LATENCY LATEST", "MEMORY STATS", "MEMORY USAGE", "OBJECT ENCODING",
            "OBJECT FREQ", "OBJECT IDLETIME", "OBJECT REFCOUNT", "PUBSUB CHANNELS", "PUBSUB NUMPAT", "PUBSUB NUMSUB",
            "PUBSUB SHARDCHANNELS", "PUBSUB SHARDNUMSUB", "SCRIPT EXISTS", "SLOWLOG GET", "SLOWLOG LEN",
        ),
        Effect.READ,
    ),
    **dict.fromkeys(("XGROUP DESTROY", "XGROUP DELCONSUMER", "XGROUP CREATECONSUMER"), Effect.CHECKED),
    **dict.fromkeys(("CONFIG SET", "SCRIPT LOAD", "SCRIPT FLUSH", "XGROUP SETID"), Effect.LAST_WRITE_WINS),
}  # fmt: skip
# Arguments that make the reply decide (who set it, what was there): a repeat after a lost reply would answer wrongly.
_EXPIRING: Final = _words("EXPIRE EXPIREAT HEXPIRE HEXPIREAT HPEXPIRE HPEXPIREAT PEXPIRE PEXPIREAT")
_DECIDING: Final[dict[str, frozenset[str]]] = {
    "SET": _words("NX GET IFEQ IFNE IFDEQ IFDNE"),
    "ZADD": frozenset(("INCR", "NX")),
    "GEOADD": frozenset(("NX",)),
    **dict.fromkeys(_EXPIRING, frozenset(("NX",))),
}
# Where the options of these commands begin; a value or member before that may read "NX" too.
_OPTIONS_FROM: Final[dict[str, int]] = {"SET": 3, "ZADD": 2, "GEOADD": 2, **dict.fromkeys(_EXPIRING, 3)}
# Commands that write what they compute from other keys, and where their destination stands. If it is among its own
# sources, a second run computes from the first one's result.
_DESTINATION: Final[dict[str, int]] = {
    "BITOP": 2,
    **dict.fromkeys(
        _words("GEOSEARCHSTORE SDIFFSTORE SINTERSTORE SUNIONSTORE ZDIFFSTORE ZINTERSTORE ZRANGESTORE ZUNIONSTORE"), 1
    ),
}


def effect_of(args: Sequence[object]) -> Effect:
    """The effect of the command ``args`` (its name first, as str or bytes). What is not known is ``NEVER``."""
    if not args:
        return Effect.NEVER
    name = _text(args[0])
    effect = _TABLE.get(name)
    if effect is None:
        return _SUBCOMMANDS.get(name if " " in name or len(args) < 2 else f"{name} {_text(args[1])}", Effect.NEVER)
    if name in _OPTIONS_FROM and _has_deciding_option(name, args):
        return Effect.NEVER
    if name in _DESTINATION and _reads_its_destination(name, args):
        return Effect.NEVER
    return effect


def effect_of_batch(commands: Sequence[Sequence[object]]) -> Effect:
    """The effect of ``commands`` run in order: that of the riskiest, and ``NEVER`` if one reads before another writes.

    ``LRANGE q; DEL q`` takes all of a list. Each of the two may be repeated, both together may not: the second run
    would answer that the list was empty.
    """
    has_read = False
    riskiest = Effect.READ
    for command in commands:
        effect = effect_of(command)
        if effect is not Effect.READ and has_read:
            return Effect.NEVER
        has_read = has_read or effect is Effect.READ or _text(command[0]) in _DESTINATION
        riskiest = max(riskiest, effect)
    return riskiest


def is_repeatable(outcome: Outcome, effect: Effect, ceiling: Effect = Effect.LAST_WRITE_WINS) -> bool:
    """Whether a command with ``effect`` may run again after it failed with ``outcome``."""
    if outcome is Outcome.NOT_APPLIED:
        return True
    return outcome is Outcome.AMBIGUOUS and effect <= ceiling


# First words of error replies after which the command has certainly not run: it may be tried again.
_NOT_APPLIED: Final = _words("ASK BUSY CLUSTERDOWN LOADING MASTERDOWN MISCONF MOVED NOREPLICAS READONLY TRYAGAIN")
_NOT_APPLIED_SENTENCES: Final = (
    "ERR max number of clients",
    "ERR max number of connected clients",
    "UNBLOCKED force unblock from blocking operation",  # the server has become a replica
)
_SCRIPTS: Final = _words("EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO EXEC")
# A script may answer with an error of its own after it has written ("BUSY queue full"). Only the server's own
# sentences, said before a script runs or at its first write, count there.
_SERVER_SENTENCES: Final = re.compile(
    r"(LOADING|BUSY) \w+ is |READONLY You can't write against a read only |MASTERDOWN Link with "
    r"|(MOVED|ASK) \d+ \S+:\d+$|CLUSTERDOWN The cluster is down|CLUSTERDOWN Hash slot not served"
    r"|TRYAGAIN Multiple keys |NOREPLICAS Not enough good replicas|MISCONF \w+ is configured to save"
)


def outcome_of(text: str, command: str = "") -> Outcome:
    """What the error reply ``text`` to ``command`` says about it. Never AMBIGUOUS: the server has answered."""
    code = text.partition(" ")[0]
    if text.startswith(_NOT_APPLIED_SENTENCES):
        return Outcome.NOT_APPLIED
    if code not in _NOT_APPLIED:
        return Outcome.APP
    if command.upper() in _SCRIPTS and _SERVER_SENTENCES.match(text) is None:
        return Outcome.APP
    return Outcome.NOT_APPLIED


def _has_deciding_option(name: str, args: Sequence[object]) -> bool:
    options = args[_OPTIONS_FROM[name] :]
    deciding = _DECIDING[name]
    return any(_text(option) in deciding for option in options if isinstance(option, bytes | str))


def _reads_its_destination(name: str, args: Sequence[object]) -> bool:
    place = _DESTINATION[name]
    return len(args) > place and _text(args[place]) in map(_text, args[place + 1 :])


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").upper()
    return str(value).upper()
