"""RedisStorage: counts on a Redis or Valkey server, shared by every instance of the bot."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Sequence
from importlib import resources
from itertools import chain, islice
from typing import Any, Final, Literal, Protocol, TypeAlias, cast

import redis.asyncio as aioredis
from redis import exceptions
from redis.asyncio.cluster import RedisCluster

from bot_ratelimit.algorithms import Verdict
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError
from bot_ratelimit.limit import Algorithm
from bot_ratelimit.storage import transaction, wire
from bot_ratelimit.storage.base import Charge
from bot_ratelimit.storage.batch import Batcher
from bot_ratelimit.storage.wire import Command, Hit

log = logging.getLogger("bot_ratelimit")

Client: TypeAlias = "aioredis.Redis | RedisCluster"
Answer: TypeAlias = "list[Verdict] | Exception"

SCRIPT: Final = resources.files(__package__).joinpath("decide.lua").read_bytes()
_SHA: Final = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()

# A lone fixed window takes the script about 4 us, any other rule up to 25 us (measured with Redis 7
# on a slow core): a batch of this weight holds the server for less than a millisecond.
MAX_WEIGHT: Final = 192
MAX_WAITING: Final = 10_000


class RedisStorage:
    """Decides on the server, in one round trip, with the server's clock.

    Args:
        client: A `redis.asyncio.Redis` of any kind (from_url, Sentinel, any pool, with or without
            decode_responses), or a `redis.asyncio.RedisCluster`. Its connections are used, but
            not its retries: a repeated hit could be charged twice.
        close_client: Whether `close` closes the client too.

    Raises:
        ConfigError: The client is synchronous, or no client at all.
    """

    source: Final[Literal["redis"]] = "redis"

    def __init__(self, client: Client, *, close_client: bool = False) -> None:
        self._client = client
        self._close_client = close_client
        self._closed = False
        self._scripts = True
        self._link = _link_to(client)
        self._lanes: dict[int, Batcher[Hit, list[Verdict]]] = {}

    async def hit(
        self, charges: Sequence[Charge], *, once: str | None = None, timeout: float
    ) -> list[Verdict]:
        """Decide and charge; see `Storage.hit`."""
        hit = Hit(charges, once)
        return await self._lane_of(hit).submit(hit, timeout)

    async def peek(self, charges: Sequence[Charge], *, timeout: float) -> list[Verdict]:
        """Look without charging; see `Storage.peek`."""
        hit = Hit(charges, look=True)
        return await self._lane_of(hit).submit(hit, timeout)

    async def reset(self, charges: Sequence[Charge], *, timeout: float) -> int:
        """Forget these keys; see `Storage.reset`."""
        self._check_open()
        try:
            async with asyncio.timeout(timeout):
                # One command for each key: on a cluster they may live on different nodes.
                replies = await self._link.call([(b"DEL", c.key.encode()) for c in charges])
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        except Exception as error:
            raise _translated(error) from error
        return sum(map(int, replies))

    async def close(self) -> None:
        """Stop; the client stays open unless `close_client` was given."""
        self._closed = True
        for batcher in self._lanes.values():
            await batcher.close()
        if self._close_client:
            await self._client.aclose()

    def _lane_of(self, hit: Hit) -> Batcher[Hit, list[Verdict]]:
        self._check_open()
        lane = self._link.lane(hit)
        batcher = self._lanes.get(lane)
        if batcher is None:
            batcher = self._lanes[lane] = Batcher(
                self._send, weigh=_weight, max_weight=MAX_WEIGHT, max_waiting=MAX_WAITING
            )
        return batcher

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError("the storage was closed")

    async def _send(self, hits: Sequence[Hit]) -> list[Answer]:
        try:
            found = await (self._run_script if self._scripts else self._run_transactions)(hits)
        except Exception as error:
            found = [error] * len(hits)
        answers: list[Answer] = [
            _translated(answer) if isinstance(answer, Exception) else answer for answer in found
        ]
        if any("READONLY" in str(answer) for answer in answers if isinstance(answer, StorageError)):
            # The server became a replica: a new connection may find the new primary.
            await self._link.reconnect()
        return answers

    async def _run_script(self, hits: Sequence[Hit]) -> list[Answer]:
        arguments = wire.script_arguments(hits)
        (reply,) = await self._link.call([(b"EVALSHA", _SHA, *arguments)])
        if isinstance(reply, exceptions.NoScriptError):  # a server that just started: nothing ran
            (reply,) = await self._link.call([(b"EVAL", SCRIPT, *arguments)])
        if not isinstance(reply, Exception):
            return wire.script_answers(reply, hits)
        if not _SCRIPTS_REFUSED.search(str(reply)):
            raise reply
        log.warning(
            "Redis refuses scripts (%s): using MULTI/EXEC, which can decide one fixed window and "
            "nothing else; allow EVALSHA and EVAL (ACL SETUSER <user> +@scripting)",
            reply,
        )
        self._scripts = False
        return await self._run_transactions(hits)

    async def _run_transactions(self, hits: Sequence[Hit]) -> list[Answer]:
        refusals = [transaction.needs_script(hit) for hit in hits]
        commands = [
            [] if refusal else transaction.commands(hit)
            for hit, refusal in zip(hits, refusals, strict=True)
        ]
        replies = iter(await self._link.call(list(chain.from_iterable(commands))))
        answers: list[Answer] = []
        mends: list[Command] = []
        for hit, refusal, own in zip(hits, refusals, commands, strict=True):
            received = list(islice(replies, len(own)))
            answers.append(refusal or transaction.answer(hit, received))
            mends.extend(transaction.mends(hit, received))
        await self._link.call(mends)
        return answers


def _weight(hit: Hit) -> int:
    lone = len(hit.charges) == 1 and hit.once is None
    if lone and hit.charges[0].limit.algorithm is Algorithm.FIXED_WINDOW:
        return 1
    return 6 * (len(hit.charges) + (hit.once is not None))


class _Link(Protocol):
    """One attempt at some commands on one connection, whatever the client."""

    def lane(self, hit: Hit) -> int:
        """Hits of one lane may travel in one command."""

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """The reply to each command; errors of the server are replies too."""

    async def reconnect(self) -> None:
        """Connect anew from now on."""


class _Connection(Protocol):
    """What we need of a redis-py connection."""

    async def send_packed_command(self, command: bytes) -> None: ...
    async def read_response(self) -> Any: ...
    async def connect(self) -> None: ...
    async def disconnect(self, nowait: bool = False) -> None: ...


class _ConnectionPool(Protocol):
    """What we need of a redis-py connection pool; the same from redis-py 6.4 to 8."""

    async def get_connection(self) -> _Connection: ...
    async def release(self, connection: _Connection) -> None: ...
    async def disconnect(self, inuse_connections: bool = True) -> None: ...


class _Pool:
    """Speaks on a pool's connections directly, since the client's own commands may be retried."""

    def __init__(self, pool: _ConnectionPool) -> None:
        self._pool = pool

    def lane(self, hit: Hit) -> int:
        return 0

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []
        connection = await self._pool.get_connection()
        try:
            if _is_stale(connection):
                await connection.disconnect(nowait=True)
                await connection.connect()
            await connection.send_packed_command(b"".join(map(wire.encode, commands)))
            replies: list[Any] = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except exceptions.ResponseError as error:
                    replies.append(error)
        except BaseException:  # also when cancelled: a late reply must not meet the next command
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)
        return replies

    async def reconnect(self) -> None:
        await self._pool.disconnect(inuse_connections=False)


def _is_stale(connection: _Connection) -> bool:
    """Whether the server has closed the connection while it was idle.

    The pool looks for that too, but redis-py 8 leaves it be if it speaks RESP3.
    """
    reader = getattr(connection, "_reader", None)
    return isinstance(reader, asyncio.StreamReader) and reader.at_eof()


class _Cluster:
    """Speaks to the node that has the key, since the client's own commands are retried."""

    def __init__(self, client: RedisCluster) -> None:
        self._client = client
        self._lost = False

    def lane(self, hit: Hit) -> int:
        # Only keys of one slot can be decided together.
        return int(self._client.keyslot(hit.charges[0].key))

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = []
        for command in commands:
            if command[0] == b"MULTI":
                raise ConfigError("a Redis Cluster needs scripts: allow EVALSHA and EVAL on it")
            try:
                replies.append(await self._attempt(command))
            except (exceptions.ClusterError, exceptions.AskError, exceptions.TryAgainError):
                # Nothing has run on that node. The client follows the slot to where it is now.
                name, *arguments = command
                replies.append(await self._client.execute_command(name.decode(), *arguments))
            except exceptions.ResponseError as error:
                replies.append(error)
        return replies

    async def reconnect(self) -> None:
        """Ask the cluster who has which slots before the next command."""
        self._lost = True

    async def _attempt(self, command: Command) -> Any:
        await self._client.initialize()
        if self._lost:
            await cast(Any, self._client.nodes_manager).initialize()
            self._lost = False
        key = command[1] if command[0] == b"DEL" else command[3]
        node = cast(Any, self._client.get_node_from_key(key.decode()))
        try:
            return await node.execute_command(command[0].decode(), *command[1:])
        except BaseException as error:
            # Whoever was answered, if only by an error, still has its node.
            self._lost = not isinstance(error, exceptions.ResponseError)
            raise


def _link_to(client: object) -> _Link:
    if isinstance(client, RedisCluster):
        return _Cluster(client)
    if isinstance(client, aioredis.Redis):
        return _Pool(cast(_ConnectionPool, client.connection_pool))
    name = f"{type(client).__module__}.{type(client).__qualname__}"
    if isinstance(client, str):
        # The text is not repeated: a URL may hold a password.
        raise ConfigError("redis_client is a text: pass redis.asyncio.Redis.from_url(...)")
    if name.startswith("redis."):
        raise ConfigError(
            f"redis_client is a synchronous {name}, which would block the bot: "
            "pass a redis.asyncio.Redis (from redis.asyncio import Redis)"
        )
    raise ConfigError(f"redis_client is a {name}: pass a redis.asyncio.Redis, or None for memory")


_SCRIPTS_REFUSED: Final = re.compile(
    r"(unknown command|no permissions to run).*\beval", re.IGNORECASE | re.DOTALL
)

_BY_CLASS: Final[dict[type[Exception], str]] = {
    exceptions.BusyLoadingError: "LOADING",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.ClusterCrossSlotError: "CROSSSLOT",
}
_OUTAGES: Final = frozenset(
    {"LOADING", "READONLY", "OOM", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"}
    | {"BUSY", "UNKILLABLE", "MISCONF", "NOREPLICAS"}
)
_FIXES: Final = {
    "WRONGTYPE": "something else is stored under this key: choose another key_prefix, or delete it",
    "NOPERM": "the Redis user lacks a permission: ACL SETUSER <user> ~<prefix>:ratelimit:* "
    "+@read +@write +@scripting +@transaction +time",
    "CROSSSLOT": "keys decided together must live in one slot: put a hash tag into key_prefix, "
    "for example '{bot}'",
}


def _translated(error: Exception) -> RateLimitError:
    """The error in this package's words: StorageError for an outage, ConfigError for a fault."""
    if isinstance(error, RateLimitError):
        return error
    text = str(error)
    if isinstance(error, (exceptions.AuthenticationError, exceptions.AuthorizationError)):
        return StorageError(f"{text} (check REDIS_PASSWORD, or the password in REDIS_URL)")
    code = _BY_CLASS.get(type(error)) or _code_in(text)
    if code in _OUTAGES:
        return StorageError(text if code in text else f"{code} {text}")
    if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError, OSError)):
        return StorageError(f"{type(error).__name__}: {text}")
    if isinstance(error, exceptions.RedisClusterException):
        if "same" not in text:  # no node can be reached, or none has the slot
            return StorageError(text)
        code = "CROSSSLOT"
    fix = _FIXES.get(code, "the server cannot decide; see the error it gives")
    return ConfigError(f"{text if code in text else f'{code} {text}'} - {fix}")


def _code_in(text: str) -> str:
    """The code that an error begins with; inside a script, Redis 6 puts other text before it."""
    if "executing the script can't" in text:  # how Redis 7 words NOPERM there
        return "NOPERM"
    match = re.search(r"(?:^|[-\s])([A-Z]{3,})\b", text)
    return match[1] if match else ""
