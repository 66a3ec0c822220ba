"""RedisBanList: the list of bans on a Redis server."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.banlist import Ban, BanList, BanTarget, member_of, members_of, room_for
from bot_ratelimit.storage.redis.scripts import Execute, script_in, text_of

_SCRIPT: Final = script_in("bans")


class RedisBanList(BanList):
    """The list on a Redis server, as an index, so that no search for keys is needed.

    It is stored in three keys, `<prefix>:ratelimit:{bans}:ends`, `...:details` and `...:hand`. The
    braces keep them in one slot of a cluster.
    """

    def __init__(self, execute: Execute, prefix: str) -> None:
        self.current = None
        self.clock = time.monotonic
        self._execute = execute
        self._keys = [f"{prefix}:ratelimit:{{bans}}:{part}" for part in ("ends", "details", "hand")]

    async def put(self, ban: Ban, seconds: float, *, timeout: float) -> bool:
        length: int | str = "inf" if math.isinf(seconds) else max(1, round(seconds * 1_000))
        details = json.dumps({"reason": ban.reason, "by": ban.by, "key": ban.key})
        member, by_hand = member_of(ban.subject, ban.key), int(not ban.key)
        return bool(
            await self._run("put", member, length, details, by_hand, room_for(ban), timeout=timeout)
        )

    async def drop(self, subject: Subject, *, by_hand: bool = True, timeout: float) -> list[Ban]:
        members = members_of([subject], by_hand)
        dropped = await self._run("drop", *members, timeout=timeout)
        return [_ban(subject, text_of(details), math.inf) for details in dropped]

    async def load(
        self, version: str, *, timeout: float
    ) -> tuple[str, dict[BanTarget, float]] | None:
        # One command that reads one value, unless the list has changed.
        command = [b"HGET", self._keys[2].encode(), b"version"]
        found = await self._execute(command, key=self._keys[2], timeout=timeout)
        if text_of(found or b"") == version:
            return None
        if not found:  # also if scripts are refused
            return "", {}
        asked = self.clock()
        now, loaded, *rest = map(text_of, await self._run("load", timeout=timeout))
        ends = {}
        for member, end in zip(rest[::2], rest[1::2], strict=True):
            subject = _subject(member)
            left = float(end) / 1_000 - float(now) / 1_000
            ends[subject.user, subject.chat, subject.bot] = asked + left
        return loaded, ends

    async def page(self, offset: int, limit: int, *, timeout: float) -> list[Ban]:
        return _listed(await self._run("page", offset, limit, timeout=timeout))

    async def find(self, subjects: Iterable[Subject], *, timeout: float) -> list[Ban]:
        return _listed(await self._run("find", *members_of(subjects), timeout=timeout))

    async def _run(self, *arguments: str | int, timeout: float) -> Any:
        return await _SCRIPT.run(self._execute, self._keys, *arguments, timeout=timeout)


def _subject(member: str) -> Subject:
    *ids, business = member.split(":", 5)[1:]
    numbers = [int(part) if part else None for part in ids]
    return Subject(*numbers)._replace(business=business or None)  # type: ignore[arg-type]  # of four


def _listed(reply: Any) -> list[Ban]:
    """What the script says of bans: the time, and of each member, end and details."""
    _, *rest = map(text_of, reply)
    return [
        _ban(_subject(member), details, float(end) / 1_000)
        for member, end, details in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    ]


def _ban(subject: Subject, details: str, end: float) -> Ban:
    since, _, text = details.partition(" ")
    try:
        said = json.loads(text)
        began = datetime.fromtimestamp(int(since) / 1_000, UTC)
    except ValueError as error:
        raise ConfigError(
            f"the list of bans holds {text!r}, which is not a ban: delete it"
        ) from error
    until = None if math.isinf(end) else datetime.fromtimestamp(end, UTC)
    said = {"reason": "", "by": "", "key": "", **said}  # nothing is known: it was evicted
    return Ban(subject, began, until, said["reason"], said["by"], said["key"])
