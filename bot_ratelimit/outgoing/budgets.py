"""Budgets: what Telegram allows a bot to send, as rules for chats, groups and broadcasts.

========================================  ======================================================
`<prefix>:ratelimit:bot:<bot>:out:...`
========================================  ======================================================
`chat:42`  `chat:@channel`                the permits of a chat
`group:-100123`                           the permits of a group, in addition
`slow:42`                                 the permits of a chat for a while after a 429
`blocked:42`                              a 429 of this chat; the TTL is the rest of the block
`blocked`                                 a 429 that concerns the whole bot
`broadcast`  `paid`                       the permits of broadcasts
========================================  ======================================================
"""

from __future__ import annotations

from functools import lru_cache
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.limit import MAX_PERIOD_MS, Algorithm, Limit
from bot_ratelimit.rules.penalty import Penalty, block_at
from bot_ratelimit.rules.rule import Ids, LimitLike, Rule, Rules, Subject, rule_at

Chat: TypeAlias = "int | str"
PAID: Final = "1000/s"
"""Messages with `allow_paid_broadcast`: https://core.telegram.org/bots/faq#how-can-i-message-all-of-my-bot-39s-subscribers-at-once"""


class Owed(NamedTuple):
    """Permits that are still to be taken."""

    chat: int
    group: int

    def __bool__(self) -> bool:
        return bool(self.chat or self.group)


class Budgets:
    """The rules that a request must satisfy.

    Fixed windows become sliding windows here: two full fixed windows one after the other could let
    twice as much through as Telegram accepts in that time.

    Args:
        per_chat: The limit of one chat; None for no limit.
        per_group: The additional limit of a group; None for no limit.
        broadcast: The common limit of all broadcasts; None for no limit.
        margin: By how much each period is made longer, as a share from 0 to 1. Two requests that
            are sent a second apart arrive 0.98 seconds apart if the first one was slower.

    Raises:
        ConfigError: A limit or the margin is invalid.
    """

    def __init__(
        self,
        per_chat: LimitLike | None,
        per_group: LimitLike | None,
        broadcast: LimitLike | None,
        margin: float,
    ) -> None:
        if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin <= 1:
            raise ConfigError(f"margin={margin!r}: expected a share from 0 to 1, for example 0.02")
        self.chat = _limit("per_chat", per_chat, margin)
        self.group = _limit("per_group", per_group, margin)
        self._broadcast = _rule("out:broadcast", _limit("broadcast", broadcast, margin))
        self._paid = _rule("out:paid", _limit("broadcast", PAID, margin)) if broadcast else None
        self.block: Final = block_at("out:blocked:", attrgetter("chat"))
        self.bot_block: Final = block_at("out:blocked", _no_id)
        self._rules = lru_cache(maxsize=1024)(self._make_rules)

    def broadcast(self, paid: bool) -> tuple[Rule, int] | None:
        """The rule of broadcasts and the most it grants at once; None if there is no rule."""
        return self._paid if paid else self._broadcast

    def owed(self, chat: Chat, cost: int) -> Owed:
        """The permits that a request of this cost takes."""
        return Owed(cost if self.chat else 0, cost if self.group and _is_group(chat) else 0)

    def split(self, owed: Owed) -> tuple[Owed, Owed]:
        """Split permits into what can be taken at once and what is left to take later."""
        now = Owed(
            min(owed.chat, self.chat.capacity) if self.chat else 0,
            min(owed.group, self.group.capacity) if self.group else 0,
        )
        return now, Owed(owed.chat - now.chat, owed.group - now.group)

    def rules(self, chat: Chat, owed: Owed, slow: int) -> Rules:
        """The rules for taking these permits, all together or none.

        Args:
            chat: The chat whose permits are taken.
            owed: How many permits.
            slow: How often the pace is halved.
        """
        return self._rules(chat if isinstance(chat, str) else None, owed, slow)

    def chat_block(self, chat: Chat) -> Penalty:
        """The rule that refuses while the chat is blocked."""
        return self.block if isinstance(chat, int) else block_at("out:blocked:", _fixed_id(chat))

    def was_unused(self, chat: Chat, taken: Owed, remaining: int) -> bool:
        """Whether the chat's permits had not been used for a while before this."""
        unused = self.chat is not None and remaining == self.chat.capacity - taken.chat
        return unused and isinstance(chat, int) and chat > 0

    def _make_rules(self, name: str | None, owed: Owed, slow: int) -> Rules:
        ids: Ids = attrgetter("chat") if name is None else _fixed_id(name)
        rules: list[Rule] = [self.bot_block, block_at("out:blocked:", ids)]
        if self.chat and owed.chat:
            rules.append(rule_at("out:chat:", self.chat, ids, owed.chat))
        if self.group and owed.group:
            rules.append(rule_at("out:group:", self.group, ids, owed.group))
        if slow:
            tightest = max(
                (
                    each.period / each.amount
                    for each, count in ((self.chat, owed.chat), (self.group, owed.group))
                    if each and count
                ),
                default=1.0,
            )
            period = min(tightest * 2**slow, MAX_PERIOD_MS / 1_000)
            pace = Limit(1, period, Algorithm.TOKEN_BUCKET)
            rules.append(rule_at("out:slow:", pace, ids, 1))
        return Rules(rules)


def subject_of(bot: int, chat: Chat, business: str | None) -> Subject:
    """The subject of a request; chats of a business connection count apart from the bot's own."""
    return Subject(chat=chat if isinstance(chat, int) else None, bot=bot, business=business)


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


def _rule(path: str, limit: Limit | None) -> tuple[Rule, int] | None:
    return None if limit is None else (rule_at(path, limit, _no_id, 1), limit.capacity)


def _is_group(chat: Chat) -> bool:
    """Whether this is a group or channel. A user name always is: bots reach users only by id."""
    return chat < 0 if isinstance(chat, int) else chat.startswith("@")


def _fixed_id(name: str) -> Ids:
    return lambda _: name


def _no_id(_: Subject) -> str:
    return ""
