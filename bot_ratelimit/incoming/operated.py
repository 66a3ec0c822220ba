"""Operated: what operators and the bot's own code can ask of a middleware, besides updates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any
from weakref import WeakSet

from aiogram import Dispatcher

from bot_ratelimit.config.live import Live
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.config.settings import Origin
from bot_ratelimit.incoming.event_filter import EventFilter
from bot_ratelimit.incoming.flags import Flags
from bot_ratelimit.incoming.inventory import inventory
from bot_ratelimit.incoming.live_limits import LiveLimits
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.rule import Rules, Scope, Subject, notice_rules


class Operated:
    """Resets, exemptions and the inventory of a middleware, which are methods of it."""

    limiter: Limiter
    rules: Rules
    live: Live | None
    _bots: Rules
    _event_filter: EventFilter
    _flags: Flags
    _origins: dict[str, Origin]
    _dispatchers: WeakSet[Dispatcher]
    _live_limits: LiveLimits | None

    async def reset(self, subject: Subject | int) -> bool:
        """Delete all counts of a user in this middleware; return True if there were any.

        This includes the middleware's rules, a ban by a penalty, the limits of all handlers, also
        those that operators gave, and the record that the user was notified. Counts of a chat or a
        topic are deleted if the subject names it. Counts of all users together (`Scope.GLOBAL`)
        stay, and those of the second and further limits that a function returns.

        Args:
            subject: A user's id, for the counts of the user in the private chat; or a `Subject`
                with the chat (for `Scope.CHAT` and `Scope.MEMBER`), the topic or the business
                connection, and with `per_bot` the bot.

        Raises:
            StorageError: The storage is unreachable; some of the counts may be deleted.
            ConfigError: The subject is neither an id nor a Subject, or does not name the bot with
                `per_bot`.
        """
        subject = self._event_filter.subject_of_counts(subject)
        flags = [rules for each in self._dispatchers for rules in self._rules_of_flags(each)]
        live = () if self._live_limits is None else self._live_limits.added(self._dispatchers)
        every = chain(live, notice_rules(), *flags, self.rules)
        by_path = {rule.path: rule for rule in every}
        rules = [rule for rule in by_path.values() if rule.scope is not Scope.GLOBAL]
        return await self.limiter.reset(rules, subject)

    def exempt(self, ids: Iterable[int]) -> None:
        """Exempt more users and chats, in addition to the argument `exempt`.

        What operators change live (`bot-ratelimit exempt ID --not`) wins, as always.

        Raises:
            ConfigError: These are not ids.
        """
        self._event_filter.exempt_for_good(ids)

    def inventory(self) -> dict[str, Any]:
        """Describe this middleware for operators, as JSON: its rules and exemptions."""
        overrides = Overrides() if self.live is None else self.live.overrides
        rules = (*self.rules, *self._bots[:1])
        found = inventory(
            overrides, rules, self._origins, self._flags, self._dispatchers, self._live_limits
        )
        return found | {
            "exempt": sorted(self._event_filter.exempt_ids)[:1_000],
            "per_bot": self._event_filter.per_bot,
            "statistics": self.limiter.keeps_statistics,
        }

    @property
    def per_bot(self) -> bool:
        """Whether it counts apart for each bot."""
        return self._event_filter.per_bot

    def _rules_of_flags(self, dispatcher: Dispatcher) -> Iterator[Rules]:
        return (rules for _, rules, _ in self._flags.by_handler(dispatcher))
