"""Budgets: what Telegram allows a bot to send, as rules for each kind of requests.

========================================  ======================================================
`<prefix>:ratelimit:bot:<bot>:out:...`
========================================  ======================================================
`chat:42`  `chat:@channel`                the permits of a chat
`group:-100123`                           the permits of a group, in addition
`drafts:42`                               the permits of the drafts in a chat
`actions:42`                              the permits of chat actions
`methods:<method>:-100123`                the calls of one method in a chat, one after the other
`slow:42`                                 the permits of a chat for a while after 429s
`slow:method:<method>:-100123`            the same for one method in a chat
`blocked:42`                              a 429 of this chat; the TTL is the rest of the block
`blocked:draft:42`  `blocked:action:42`   a 429 of a draft, of a chat action
`blocked:method:<method>`                 a 429 of a method, for all chats
`blocked`                                 a 429 that concerns all messages of the bot
`broadcast`  `paid`                       the permits of broadcasts
========================================  ======================================================
"""

from __future__ import annotations

from functools import lru_cache
from operator import attrgetter
from typing import Final

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.outgoing.methods import Kind, is_group
from bot_ratelimit.outgoing.pace import Pace, PaceKey
from bot_ratelimit.rules.checks import number
from bot_ratelimit.rules.limit import MAX_AMOUNT, MAX_PERIOD_MS, Algorithm, Limit
from bot_ratelimit.rules.penalty import Penalty, block_at
from bot_ratelimit.rules.rule import Ids, LimitLike, Rule, Rules, Subject, changed, rule_at

PAID: Final = "1000/s"
"""Messages with `allow_paid_broadcast`: https://core.telegram.org/bots/faq#how-can-i-message-all-of-my-bot-39s-subscribers-at-once"""
# Permits of a bucket are counted in parts, so that the delay of a request can be charged, too.
_PARTS: Final = 100
_MOST: Final = MAX_AMOUNT // _PARTS
_IN_TURN: Final = Limit(20, 1.0, Algorithm.TOKEN_BUCKET, 3)
"""Calls of one method in a chat: instances that sent at the same moment would all meet the 429."""
_METHOD_PACE: Final = 0.5
"""Seconds for one call of a method, which a 429 doubles."""


class BroadcastRule(Rule):
    """The common limit of broadcasts, last of the rules."""

    tells_left = False  # the decision tells what is left of the chat's

    def key(self, prefix: str, subject: Subject, limit: Limit | None = None) -> str | None:
        """The key of a bot: its business connections share it."""
        return Rule.key(self, prefix, subject._replace(business=None), limit)


class Budgets:
    """The rules that a request must satisfy.

    Fixed windows become sliding windows here: two full fixed windows one after the other could let
    twice as much through as Telegram accepts in that time. A window of one becomes the same as a
    bucket, which also knows what an album owes.

    Each period is made longer by the margin, a share of it: two requests that are sent a second
    apart arrive 0.98 seconds apart if the first one was slower.

    Raises:
        ConfigError: A limit or the margin is invalid.
    """

    def __init__(
        self,
        per_chat: LimitLike | None,
        per_group: LimitLike | None,
        broadcast: LimitLike | None,
        drafts: LimitLike | None,
        margin: float,
    ) -> None:
        if not 0 <= number(margin) <= 1:
            raise ConfigError(f"margin={margin!r}: expected a share from 0 to 1, for example 0.02")
        self.chat = _limit("per_chat", per_chat, margin)
        self.group = _limit("per_group", per_group, margin)
        self.drafts = _limit("drafts", drafts, margin)
        self.draft_gap: Final = _gap(self.drafts) if self.drafts else 0.0
        self.refill, self.parts, self._chat = 0.0, 1, self.chat
        burst = (self.chat and self.chat.burst) or 1  # of 1, each answer would be late
        if self.chat and burst > 1 and max(self.chat.amount, burst) <= _MOST:
            self.refill, self.parts = _seconds(self.chat), _PARTS
            amounts = self.chat.amount * _PARTS, burst * _PARTS
            self._chat = Limit(amounts[0], self.chat.period, self.chat.algorithm, amounts[1])
        self._broadcast = _limit("broadcast", broadcast, margin)
        self._paid = _limit("broadcast", PAID, margin) if broadcast else None
        self.bot_block: Final = block_at("out:blocked", _no_id)
        self._rules = lru_cache(maxsize=1024)(self._make_rules)

    def most(self, pace: Pace, slow: bool, *, service: bool = False) -> int:
        """How many parts of permits of a chat can be taken at once."""
        limits = [self.group if is_group(pace.key.chat) else None, None if service else self.chat]
        found = [limit.capacity for limit in limits if limit is not None]
        most = 1 if slow and not service else min(found, default=MAX_AMOUNT)
        return most * self.parts

    def rules(
        self,
        pace: Pace,
        parts: int,
        slow: bool = False,
        whole: int = 0,
        paid: bool | None = None,
        *,
        service: bool = False,
    ) -> Rules:
        """The rules for taking parts of permits, all together or none.

        Args:
            pace: The pace of the request.
            parts: How many; for a method, 0 if its calls are not kept apart.
            slow: Whether the pace is halved.
            whole: How many a group and a broadcast count, which is the whole request at once: they
                have no debt, unless a group is the only limit.
            paid: Whether a broadcast pays for it; None if it is not part of one.
            service: Whether it makes a service message, which only a group counts.
        """
        key = pace.key
        what = key.kind, key.method, _name(key), is_group(key.chat)
        return self._rules(*what, parts, slow, whole, paid, service)

    def block(self, pace: Pace) -> Penalty:
        """The rule that refuses while these requests are blocked."""
        return _block(pace.key.kind, pace.key.method, _ids(_name(pace.key)))

    def was_unused(self, pace: Pace, parts: int, decision: Decision) -> bool:
        """Whether the permits of a private chat had not been used for a while before this."""
        chat, limit = pace.key.chat, self._chat
        if isinstance(chat, str) or chat < 0 or limit is None or decision.rule.limit is not limit:
            return False
        return decision.remaining == limit.capacity - parts

    def begins(self, decision: Decision, asked: float, parts: int) -> float | None:
        """When the refill of granted parts begins; None if the bucket of the chat is not known."""
        if not self.refill or decision.rule.limit is not self._chat:
            return None
        return asked + decision.reset_after - parts / self.parts * self.refill

    def _make_rules(
        self,
        kind: Kind,
        method: str,
        name: str | None,
        in_group: bool,
        parts: int,
        slow: bool,
        whole: int,
        paid: bool | None,
        service: bool,
    ) -> Rules:
        ids, items = _ids(name), whole // self.parts
        counted: list[tuple[str, Limit | None, int]]
        if kind is Kind.DRAFT:
            counted = [("drafts:", self.drafts, 1)]
        elif kind is Kind.ACTION:
            counted = [("actions:", self.chat, 1)]
        elif kind is Kind.METHOD:
            counted = [(f"methods:{method}:", _IN_TURN, parts)]
            if slow:
                counted.append((f"slow:method:{method}:", _half(_METHOD_PACE, 1), 1))
        else:
            group = self.group if in_group else None
            most = group.capacity if group else 0
            counted = [("group:", group, min(items if self.chat else parts, most))]
            if not service:
                counted.insert(0, ("chat:", self._chat, parts))
                normal = max((_seconds(each) for each in (self.chat, group) if each), default=1.0)
                counted.append(("slow:", _half(normal, self.parts), parts if slow else 0))
        rules = [rule_at(f"out:{p}", limit, ids, n) for p, limit, n in counted if limit and n]
        common, path = (self._paid, "out:paid") if paid else (self._broadcast, "out:broadcast")
        if paid is not None and items and common and name != "":  # a method of no chat never waits
            rule = BroadcastRule(common, cost=min(items, common.capacity))
            rules.append(changed(rule, path=path, ids=_no_id))
        blocks = [self.bot_block] if kind is Kind.MESSAGE else []
        return Rules([*blocks, _block(kind, method, ids), *rules])


def _half(seconds: float, parts: int) -> Limit:
    """Half of the pace of a permit in so many seconds."""
    period = min(max(2 * seconds, 0.001), MAX_PERIOD_MS / 1_000)
    return Limit(parts, period, Algorithm.TOKEN_BUCKET)


def _block(kind: Kind, method: str, ids: Ids) -> Penalty:
    if kind is Kind.METHOD:
        return block_at(f"out:blocked:method:{method}", _no_id)
    return block_at("out:blocked:" if kind is Kind.MESSAGE else f"out:blocked:{kind.value}:", ids)


def _limit(name: str, value: LimitLike | None, margin: float) -> Limit | None:
    if value is None:
        return None
    try:
        limit = Limit.of(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    period = min(limit.period * (1 + margin), MAX_PERIOD_MS / 1_000)
    algorithm = limit.algorithm
    if algorithm is not Algorithm.TOKEN_BUCKET:
        algorithm = Algorithm.SLIDING_WINDOW if limit.amount > 1 else Algorithm.TOKEN_BUCKET
    return Limit(limit.amount, period, algorithm, limit.burst)


def _seconds(limit: Limit) -> float:
    """Seconds for one permit."""
    return limit.period / limit.amount


def _gap(limit: Limit) -> float:
    """Seconds between two texts of one draft, so that a stream is shown evenly.

    The burst of a bucket lets its first texts be shown twice as often.
    """
    return _seconds(limit) / (2 if (limit.burst or 1) > 1 else 1)


def _name(key: PaceKey) -> str | None:
    """What stands for a chat without an id; None if it has one, so that ids share their rules."""
    return key.chat if isinstance(key.chat, str) else None


def _ids(name: str | None) -> Ids:
    return attrgetter("chat") if name is None else lambda _: name


def _no_id(_: object) -> str:
    return ""
