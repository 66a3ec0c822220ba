"""RedisStorage: counts on a Redis or Valkey server, shared by every instance of the bot."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Coroutine, Sequence
from importlib import resources
from itertools import chain, islice
from typing import Any, Final, Literal, TypeAlias

from redis import exceptions

from bot_ratelimit.algorithms import Verdict
from bot_ratelimit.errors import StorageError
from bot_ratelimit.limit import Algorithm
from bot_ratelimit.storage import transaction, wire
from bot_ratelimit.storage.base import Charge
from bot_ratelimit.storage.batch import Batcher
from bot_ratelimit.storage.carrier import Line
from bot_ratelimit.storage.deadline import Deadline
from bot_ratelimit.storage.faults import SCRIPTS_REFUSED, translated
from bot_ratelimit.storage.link import Client, Link, link_to
from bot_ratelimit.storage.wire import Command, Hit

log = logging.getLogger("bot_ratelimit")

Answer: TypeAlias = "list[Verdict] | Exception"

SCRIPT: Final = resources.files(__package__).joinpath("decide.lua").read_bytes()
_SHA: Final = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()
_CACHED: Final = (b"EVALSHA", _SHA)
_WHOLE: Final = (b"EVAL", SCRIPT)

# A lone fixed window takes the script about 3 us, any other rule up to 25 us (measured with Redis 7
# on a slow core): a batch of this weight holds the server for less than a millisecond.
MAX_WEIGHT: Final = 256
_HEAVY: Final = 8
_LIGHT: Final = Algorithm.FIXED_WINDOW
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

    source: Literal["redis"] = "redis"

    def __init__(self, client: Client, *, close_client: bool = False) -> None:
        self._client = client
        self._close_client = close_client
        self._link = link_to(client)
        self._carrier = _Decisions(self._link)
        self._lanes: dict[int, Batcher[Hit, list[Verdict]]] = {}

    def hit(
        self, charges: Sequence[Charge], *, once: str | None = None, timeout: float
    ) -> Coroutine[Any, Any, list[Verdict]]:
        """Decide and charge; see `Storage.hit`."""
        return self._submit(Hit(charges, once), timeout)

    def peek(
        self, charges: Sequence[Charge], *, timeout: float
    ) -> Coroutine[Any, Any, list[Verdict]]:
        """Look without charging; see `Storage.peek`."""
        return self._submit(Hit(charges, look=True), timeout)

    async def reset(self, charges: Sequence[Charge], *, timeout: float) -> int:
        """Forget these keys; see `Storage.reset`."""
        try:
            with Deadline(asyncio.get_running_loop().time() + timeout):
                line = await self._link.connect()
                try:
                    # One command for each key: on a cluster they may live on different nodes.
                    await line.send([(b"DEL", wire.name(charge.key)) for charge in charges])
                    replies = await line.receive(len(charges))
                finally:
                    await line.release()
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        except Exception as error:
            raise translated(error) from error
        return sum(map(int, replies))

    async def close(self) -> None:
        """Stop what is under way; the client stays open unless `close_client` was given.

        Like the client itself, the storage can be used again, as when a dispatcher is restarted.
        """
        for batcher in list(self._lanes.values()):
            await batcher.close()
        await self._link.close()
        if self._close_client:
            await self._client.aclose()

    def _submit(self, hit: Hit, timeout: float) -> Coroutine[Any, Any, list[Verdict]]:
        lane = self._link.lane(hit)
        batcher = self._lanes.get(lane)
        if batcher is None:
            batcher = self._lanes[lane] = Batcher(
                self._carrier, max_weight=MAX_WEIGHT, max_waiting=MAX_WAITING
            )
        return batcher.submit(hit, timeout)


class _Decisions:
    """Hits in the words of Redis: one call of the script, or transactions where it is refused."""

    def __init__(self, link: Link) -> None:
        self.depth = link.depth
        self._link = link
        self._script: Command | None = _CACHED

    def connect(self) -> Awaitable[Line]:
        return self._link.connect()

    def explain(self, error: Exception) -> Exception:
        return translated(error)

    def weigh(self, hit: Hit) -> int:
        charges, once, _ = hit
        if len(charges) == 1 and once is None and charges[0].limit.algorithm is _LIGHT:
            return 1
        return _HEAVY * (len(charges) + (once is not None))

    def pack(self, hits: Sequence[Hit]) -> list[Command]:
        if self._script is None:
            return list(chain.from_iterable(map(transaction.commands, hits)))
        return [[*self._script, *wire.script_arguments(hits)]]

    async def unpack(
        self, line: Line, hits: Sequence[Hit], replies: Sequence[Any]
    ) -> Sequence[Answer] | None:
        if len(replies) != 1:  # a transaction has more, or none if only the script can decide
            return self._marked(line, await self._transacted(line, hits, replies))
        (reply,) = replies
        if not isinstance(reply, Exception):
            self._script = _CACHED
            answers = wire.script_answers(reply, hits)
            return answers if isinstance(reply, (bytes, str)) else self._marked(line, answers)
        if isinstance(reply, exceptions.NoScriptError):  # a server that just started
            self._script = _WHOLE
            return None
        if not SCRIPTS_REFUSED.search(str(reply)):
            return self._marked(line, [reply] * len(hits))
        if self._script is not None:
            log.warning(
                "Redis refuses scripts (%s): using MULTI/EXEC, which can decide one fixed window "
                "and nothing else; allow EVALSHA and EVAL (ACL SETUSER <user> +@scripting)",
                reply,
            )
        self._script, self.depth = None, 1
        return None

    async def _transacted(
        self, line: Line, hits: Sequence[Hit], replies: Sequence[Any]
    ) -> list[Answer]:
        rest = iter(replies)
        received = [list(islice(rest, len(transaction.commands(hit)))) for hit in hits]
        mends = list(chain.from_iterable(map(transaction.mends, hits, received)))
        # Nothing else is under way on this line: without scripts, its depth is 1.
        await line.send(mends)
        await line.receive(len(mends))
        return list(map(transaction.answer, hits, received))

    def _marked(self, line: Line, answers: Sequence[Answer]) -> Sequence[Answer]:
        """The answers with their errors in this package's words."""
        marked = [translated(each) if isinstance(each, Exception) else each for each in answers]
        if any("READONLY" in str(each) for each in marked if isinstance(each, StorageError)):
            line.moved = True  # the server became a replica; a new connection may find the primary
        return marked
