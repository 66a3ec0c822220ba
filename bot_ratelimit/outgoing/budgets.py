"""Budgets: what Telegram allows a bot to send, as rules for each kind of requests.

========================================  ======================================================
`<prefix>:ratelimit:bot:<bot>:out:...`
========================================  ======================================================
`chat:42`  `chat:@channel`                the permits of a chat
`group:-100123`                           the permits of a group, in addition
`drafts:42`  `drafts2:42`                 the permits of the drafts in a chat, for each limit
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

import math
from functools import lru_cache
from operator import attrgetter
from typing import Final, NamedTuple

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.outgoing.methods import Kind, Traffic, is_group
from bot_ratelimit.outgoing.pace import Pace
from bot_ratelimit.rules.limit import MAX_AMOUNT, MAX_PERIOD_MS, Algorithm, Limit
from bot_ratelimit.rules.penalty import Penalty, block_at
from bot_ratelimit.rules.rule import Ids, LimitLike, Rule, Rules, rule_at

PAID: Final = "1000/s"
"""Messages with `allow_paid_broadcast`: https://core.telegram.org/bots/faq#how-can-i-message-all-of-my-bot-39s-subscribers-at-once"""
# Permits of a chat are counted in parts, so that the delay of a request can be charged, too.
_PARTS: Final = 1_000
# Delays are rounded up to this share of a permit, so that few different rules are made.
_STEPS: Final = 100
_IN_TURN: Final = Limit(20, 1.0, Algorithm.TOKEN_BUCKET, 3)
"""Calls of one method in a chat: instances that sent at the same moment would all meet the 429."""
_METHOD_PACE: Final = 0.5
"""Seconds for one call of a method; doubled by each 429."""


class Owed(NamedTuple):
    """Permits that are still to be taken; those of the chat in parts, see `Budgets.parts`.

    A call of a method that may wait takes one of the group, which keeps calls apart.
    """

    chat: int
    group: int = 0

    def __bool__(self) -> bool:
        return bool(self.chat or self.group)

    def plus(self, other: Owed) -> Owed:
        """Both together."""
        return Owed(self.chat + other.chat, self.group + other.group)


NOTHING: Final = Owed(0)
ONE: Final = Owed(1)


class Budgets:
    """The rules that a request must satisfy.

    Fixed windows become sliding windows here: two full fixed windows one after the other could let
    twice as much through as Telegram accepts in that time.

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
        if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin <= 1:
            raise ConfigError(f"margin={margin!r}: expected a share from 0 to 1, for example 0.02")
        self.chat = _limit("per_chat", per_chat, margin)
        self.group = _limit("per_group", per_group, margin)
        parts = drafts.split(";") if isinstance(drafts, str) else [drafts]
        found = [_limit("drafts", each, margin) for each in parts]
        self.drafts = [limit for limit in found if limit is not None]
        self.draft_gap: Final = min((each.period / each.amount for each in self.drafts), default=0)
        """Seconds between two texts of one draft, so that a stream is shown evenly."""
        self.parts: Final = _parts(self.chat)
        """Into how many parts a permit of a chat is divided."""
        self._chat_parts = _in_parts(self.chat, self.parts)
        self._broadcast = _rule("out:broadcast", _limit("broadcast", broadcast, margin))
        self._paid = _rule("out:paid", _limit("broadcast", PAID, margin)) if broadcast else None
        self.bot_block: Final = block_at("out:blocked", _no_id)
        self._rules = lru_cache(maxsize=1024)(self._make_rules)

    def broadcast(self, paid: bool) -> tuple[Rule, int] | None:
        """The rule of broadcasts and the most it grants at once; None if there is no rule."""
        return self._paid if paid else self._broadcast

    def owed(self, pace: Pace, traffic: Traffic, cost: int, may_wait: bool) -> Owed:
        """The permits that a request of this cost takes."""
        if pace.key.kind is not Kind.MESSAGE:
            return Owed(self.parts, int(may_wait and pace.key.chat != ""))
        messages = cost if self.chat and traffic.kind is not Kind.SERVICE else 0
        return Owed(messages * self.parts, cost if self.group and is_group(pace.chat) else 0)

    def split(self, owed: Owed, slow: int) -> tuple[Owed, Owed]:
        """Split permits into what can be taken at once and what is left to take later."""
        capacity = self._chat_parts.capacity if self._chat_parts and not slow else self.parts
        now = Owed(
            min(owed.chat, capacity),
            min(owed.group, self.group.capacity) if self.group else owed.group,
        )
        return now, Owed(owed.chat - now.chat, owed.group - now.group)

    def rules(self, pace: Pace, owed: Owed, slow: int) -> Rules:
        """The rules for taking these permits, all together or none."""
        chat = pace.chat if isinstance(pace.chat, str) else 0  # ids share their rules
        return self._rules(pace.key.kind, pace.key.method, chat, owed, slow)

    def block(self, pace: Pace) -> Penalty:
        """The rule that refuses while these requests are blocked."""
        return _block(pace.key.kind, pace.key.method, _ids(pace.chat))

    def lasts(self, owed: Owed, rule: Rule | None = None) -> float | None:
        """Seconds in which a bucket refills these permits; None if the rule is not of a bucket.

        Args:
            owed: The permits.
            rule: The rule that was decided; None for that of a chat.
        """
        limit = self._chat_parts if rule is None else rule.limit
        if not isinstance(limit, Limit) or limit.burst is None or limit is self.group:
            return None
        return owed.chat * limit.period / limit.amount

    def was_unused(self, pace: Pace, taken: Owed, decision: Decision) -> bool:
        """Whether the permits of a private chat had not been used for a while before this."""
        limit, chat = self._chat_parts, pace.chat
        if limit is None or decision.rule.limit is not limit:
            return False
        private = isinstance(chat, int) and chat > 0
        return private and decision.remaining == limit.capacity - taken.chat

    def late(self, seconds: float, lasts: float) -> Owed:
        """The permits that make up for a request that arrived late, for at most one permit.

        Args:
            seconds: How late it was.
            lasts: Seconds in which one permit is refilled.
        """
        share = min(1.0, seconds / lasts) if seconds > 0 and lasts else 0.0
        return Owed(math.ceil(share * _STEPS) * self.parts // _STEPS)

    def _make_rules(self, kind: Kind, method: str, chat: int | str, owed: Owed, slow: int) -> Rules:
        ids = _ids(chat)
        rules: list[Rule] = [_block(kind, method, ids)]
        if kind is Kind.MESSAGE:
            rules.insert(0, self.bot_block)
            if self._chat_parts and owed.chat:
                rules.append(rule_at("out:chat:", self._chat_parts, ids, owed.chat))
            if self.group and owed.group:
                rules.append(rule_at("out:group:", self.group, ids, owed.group))
        elif kind is Kind.DRAFT:
            for number, limit in enumerate(self.drafts, 1):
                rules.append(rule_at(f"out:drafts{number if number > 1 else ''}:", limit, ids, 1))
        elif kind is Kind.METHOD and owed.group:
            rules.append(rule_at(f"out:methods:{method}:", _IN_TURN, ids, 1))
        elif kind is Kind.ACTION and self.chat:
            rules.append(rule_at("out:actions:", self.chat, ids, 1))
        if slow and owed.chat:
            path = f"out:slow:method:{method}:" if kind is Kind.METHOD else "out:slow:"
            rules.append(rule_at(path, self._slow_limit(kind, owed, slow), ids, owed.chat))
        return Rules(rules)

    def _slow_limit(self, kind: Kind, owed: Owed, slow: int) -> Limit:
        both = ((self.chat, owed.chat), (self.group, owed.group))
        paces = [each.period / each.amount for each, count in both if each and count]
        normal = max(paces, default=1.0) if kind is Kind.MESSAGE else _METHOD_PACE
        period = min(normal * 2**slow, MAX_PERIOD_MS / 1_000)
        return Limit(self.parts, period, Algorithm.TOKEN_BUCKET)


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
    if algorithm is Algorithm.FIXED_WINDOW:
        algorithm = Algorithm.SLIDING_WINDOW
    return Limit(limit.amount, period, algorithm, limit.burst)


def _parts(limit: Limit | None) -> int:
    if limit is None or limit.algorithm is not Algorithm.TOKEN_BUCKET:
        return 1
    return max(1, min(_PARTS, MAX_AMOUNT // max(limit.amount, limit.capacity)))


def _in_parts(limit: Limit | None, parts: int) -> Limit | None:
    """The same limit, counted in parts of a permit."""
    if limit is None or parts == 1:
        return limit
    return Limit(limit.amount * parts, limit.period, limit.algorithm, limit.capacity * parts)


def _rule(path: str, limit: Limit | None) -> tuple[Rule, int] | None:
    return None if limit is None else (rule_at(path, limit, _no_id, 1), limit.capacity)


def _ids(chat: int | str) -> Ids:
    """Counts by the id of a chat, or by the name that it has instead."""
    return attrgetter("chat") if isinstance(chat, int) else lambda _: chat


def _no_id(_: object) -> str:
    return ""
