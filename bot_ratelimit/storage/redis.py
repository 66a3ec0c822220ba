"""RedisStorage: counts on a Redis or Valkey server, shared by every instance of the bot."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from importlib import resources
from itertools import chain, islice
from typing import Final, Literal, TypeAlias

from redis import exceptions

from bot_ratelimit.algorithms import Verdict
from bot_ratelimit.errors import StorageError
from bot_ratelimit.limit import Algorithm
from bot_ratelimit.storage import transaction, wire
from bot_ratelimit.storage.base import Charge
from bot_ratelimit.storage.batch import Batcher
from bot_ratelimit.storage.deadline import Deadline
from bot_ratelimit.storage.faults import SCRIPTS_REFUSED, translated
from bot_ratelimit.storage.link import Client, link_to
from bot_ratelimit.storage.wire import Command, Hit

log = logging.getLogger("bot_ratelimit")

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
        self._scripts = True
        self._link = link_to(client)
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
        try:
            with Deadline(asyncio.get_running_loop().time() + timeout):
                # One command for each key: on a cluster they may live on different nodes.
                replies = await self._link.call([(b"DEL", c.key.encode()) for c in charges])
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
        for batcher in self._lanes.values():
            await batcher.close()
        if self._close_client:
            await self._client.aclose()

    def _lane_of(self, hit: Hit) -> Batcher[Hit, list[Verdict]]:
        lane = self._link.lane(hit)
        batcher = self._lanes.get(lane)
        if batcher is None:
            batcher = self._lanes[lane] = Batcher(
                self._send, weigh=_weight, max_weight=MAX_WEIGHT, max_waiting=MAX_WAITING
            )
        return batcher

    async def _send(self, hits: Sequence[Hit]) -> list[Answer]:
        try:
            found = await (self._run_script if self._scripts else self._run_transactions)(hits)
        except Exception as error:
            found = [error] * len(hits)
        answers: list[Answer] = [
            translated(answer) if isinstance(answer, Exception) else answer for answer in found
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
        if not SCRIPTS_REFUSED.search(str(reply)):
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
