"""Live limits: operators give handlers without a limit of their own one, while the bot runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from aiogram.dispatcher.event.handler import HandlerObject
from aiogram.dispatcher.router import Router

from bot_ratelimit.config.live import Live
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.config.tables import penalty_of
from bot_ratelimit.incoming.flags import Flags
from bot_ratelimit.incoming.handler_names import handlers_of, shorten_name
from bot_ratelimit.rules.rule import Rule, Rules, rules_of


class LiveLimits:
    """The limits of handlers whose flags bring no rules, by the handler's name."""

    def __init__(self, live: Live, penalty: Iterable[Rule], flags: Flags) -> None:
        self._live, self._penalty, self._flags = live, tuple(penalty), flags
        self._overrides: Overrides | None = None
        self._found: dict[int, tuple[HandlerObject, Rules | None]] = {}

    def use(self, flags: Flags) -> None:
        """Name handlers as these flags do."""
        self._flags, self._overrides = flags, None

    def rules_for(self, handler: HandlerObject | None, router: Router | None) -> Rules | None:
        """The rules that operators gave a handler; None if they gave none."""
        if handler is None or not self._live.overrides.rules:
            return None
        if self._overrides is not self._live.overrides:
            self._overrides, self._found = self._live.overrides, {}
        known = self._found.get(id(handler))
        if known is None:
            rule = self.rule_of(self._name_of(handler, router))
            rules = None if rule is None else rules_of((rule, *self._penalty))
            known = self._found[id(handler)] = (handler, rules)
        return known[1]

    def rule_of(self, name: str) -> Rule | None:
        """The rule that operators gave the handler of this name, before its other changes."""
        limit = self._live.overrides.rules.get(name, {}).get("limit")
        return None if limit is None else Rule(str(limit), name=name)

    def added(self, roots: Iterable[Router]) -> Iterator[Rule]:
        """The rules that operators added: a penalty, and the limits of handlers."""
        if self._live.overrides.penalty is not None:
            yield penalty_of(self._live.overrides.penalty)
        rules = (self.rule_of(name) for root in roots for name in self.names(root))
        yield from (rule for rule in rules if rule is not None)

    def names(self, root: Router) -> Iterator[str]:
        """The names of all handlers that may be given a limit."""
        # The dispatcher's own pass updates on.
        others = {
            id(each) for name in ("update", "error") for each in root.observers[name].handlers
        }
        others |= {id(each) for each, read in self._flags.readable(root) if read.rules is not True}
        for handler in handlers_of(root):
            if id(handler) not in others:
                yield self._name_of(handler, root)

    def _name_of(self, handler: HandlerObject, router: Router | None) -> str:
        return shorten_name(self._flags.names.name_of(handler, router))
