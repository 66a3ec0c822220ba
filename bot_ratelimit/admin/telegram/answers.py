"""Answers: messages to operators, short enough for Telegram, with their buttons."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from bot_ratelimit.admin.telegram.buttons import Answer, Buttons, page_of, rows
from bot_ratelimit.admin.telegram.texts import Html, Words, clipped
from bot_ratelimit.admin.views import (
    ConfigView,
    CountView,
    HealthView,
    HourTotal,
    RuleView,
    SubjectView,
)
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.incoming.inventory import EVERYWHERE
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.statistics import Refusals
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.banlist import Ban

_NAME: Final = 100
_IN_A_LIST: Final = 80


class Writer:
    """Writes answers to one operator.

    Args:
        words: The texts in the operator's language.
        buttons: Buttons in the same language.
    """

    def __init__(self, words: Words, buttons: Buttons) -> None:
        self._words, self._buttons = words, buttons

    # --- messages -----------------------------------------------------------------------------

    def limits(self, view: ConfigView, live: bool, page: int, commands: Iterable[str]) -> Answer:
        """All rules, and their live changes."""
        words = self._words
        blocks = [self._rule(each) for each in view.rules] or [words("no_limits")]
        listed, page, more = page_of(blocks, page, "\n\n")
        foot = [self._live(view) if live else words("live_off")]
        if view.problem:
            foot.append(words("not_well", problem=view.problem))
        if view.live.off_until > time.time():
            foot.append(words("paused", until=words.moment(view.live.off_until)))
        foot.append(words("commands", commands=" ".join(commands)))
        text = "\n\n".join([words("limits"), listed, "\n".join(foot)])
        return Answer(text, self._buttons.paging("limits", page, more))

    def subject(self, view: SubjectView, subject: Subject, page: int) -> Answer:
        """What a user or chat has left of each rule, with buttons to act."""
        words = self._words
        head = [words("who", who=self.who(subject), verdict=self._verdict(view))]
        if view.off_until:
            head.append(words("paused", until=words.moment(view.off_until)))
        if view.banned is not None:
            head.append(self.ban(view.banned))
        if view.refused is not None:
            head.append(words("refused_today", count=view.refused))
        listed, page, more = page_of(map(self._count, view.counts), page)
        paging = self._buttons.subject_paging(subject, page, more)
        actions = self._buttons.actions(subject, view.banned is not None, page)
        return Answer("\n\n".join(filter(None, ["\n".join(head), listed])), [*paging, *actions])

    def tried(self, subject: Subject, found: Decision | None) -> Answer:
        """Whether an update would be handled."""
        words, who = self._words, self.who(subject)
        if found is None:
            return Answer(words("try_free", who=who))
        if found.allowed:
            return Answer(words("try_allowed", who=who, rule=found.rule, left=found.remaining))
        if found.banned:
            return Answer(words("try_banned", who=who))
        wait = words.duration(found.retry_after)
        return Answer(words("try_refused", who=who, rule=found.rule, wait=wait))

    def bans(self, found: Sequence[Ban], page: int, size: int) -> Answer:
        """A page of bans; `found` has one more than the page if there is another page."""
        here = found[:size]
        if not here:
            return Answer(self._words("no_bans"), self._buttons.paging("bans", page, False))
        lines = [self._ban("ban_line", each, _IN_A_LIST, who=self.who(each.subject))
                 for each in here]  # fmt: skip
        buttons = self._buttons.subjects(_looked_at(each.subject) for each in here)
        paging = self._buttons.paging("bans", page, len(found) > size)
        return Answer("\n".join([self._words("bans"), "", *lines]), [*buttons, *paging])

    def top(self, found: Sequence[Refusals]) -> Answer:
        """The users who were refused most often."""
        if not found:
            return Answer(self._words("no_top"))
        lines = [self._words("top_line", id=_code(each.user), count=each.count) for each in found]
        buttons = self._buttons.subjects(_looked_at(Subject(user=each.user)) for each in found)
        return Answer("\n".join([self._words("top"), "", *lines]), buttons)

    def statistics(self, found: Iterable[HourTotal]) -> Answer:
        """Decisions by hour."""
        lines = [
            self._words(
                "stats_line",
                hour=f"{each.hour:%H:%M}",
                allowed=each.allowed,
                refused=each.refused,
                banned=each.banned,
            )
            for each in found
            if each.allowed or each.refused or each.banned
        ]
        if not lines:
            return Answer(self._words("no_stats"))
        return Answer("\n".join([self._words("stats"), "", *lines]))

    def history(self, found: Sequence[Overrides], page: int) -> Answer:
        """The versions to roll back to."""
        words = self._words
        if not found:
            return Answer(words("no_history"))
        lines = [
            words(
                "history_line",
                version=each.version,
                what=clipped(each.what, _IN_A_LIST),
                by=clipped(each.by, _IN_A_LIST),
                at=words.moment(each.at),
            )
            for each in found
        ]
        listed, page, more = page_of(lines, page)
        earlier = [*(each.version for each in found[1:]), 0]
        back = [self._buttons.button(f"↩ {n}", "rollback", first=n) for n in earlier]
        paging = self._buttons.paging("history", page, more)
        return Answer(f"{words('history')}\n\n{listed}", [*rows(back, 5), *paging])

    def health(self, view: HealthView) -> Answer:
        """Whether limits hold."""
        if not view.ok:
            return Answer(self._words("not_well", problem=view.problem))
        in_memory = view.limiter.source == "memory"
        return Answer(
            self._words(
                "well_memory" if in_memory else "well",
                ms=round(view.seconds * 1e3),
                instances=view.instances,
                version=view.version,
                behind=view.behind,
            )
        )

    # --- parts of messages --------------------------------------------------------------------

    def who(self, subject: Subject) -> Html:
        """A user, a chat, or a user in a chat."""
        user, chat = subject.user, subject.chat
        if user is None or user < 0:
            return self._words("chat", id=_code(chat if user is None else user))
        found = self._words("user", id=_code(user))
        return found if chat in (None, user) else self._words("in_chat", who=found, id=_code(chat))

    def limit(self, view: RuleView) -> Html:
        """What a rule allows, and whether it is a shadow rule or off."""
        words = self._words
        text = words("rule_by_code") if view.limit is None else Html(Words.escaped(view.limit))
        if view.ban_ms:
            text = words("rule_penalty", ban=words.duration(view.ban_ms / 1e3), limit=text)
        marks = (("rule_shadow", view.shadow), ("rule_off", view.off))
        return Html("; ".join([text, *(words(word) for word, on in marks if on)]))

    def penalty(self, penalty: Penalty) -> Html:
        """The ban for users who keep sending."""
        length = self._words.duration(penalty.ban_ms / 1e3)
        return self._words("rule_penalty", ban=length, limit=penalty.limit)

    def ban(self, found: Ban) -> Html:
        """Describe a ban: its end, who made it, and the reason."""
        return self._ban("ban", found)

    def until(self, end: datetime | None) -> Html:
        """Until when a ban holds."""
        if end is None:
            return self._words("ban_for_good")
        left = self._words.duration(end.timestamp() - time.time())
        return self._words("ban_until", until=self._words.moment(end), left=left)

    def _ban(self, key: str, found: Ban, longest: int = 500, **fields: object) -> Html:
        reason, by = clipped(found.reason, longest), clipped(found.by or "?", _IN_A_LIST)
        key = f"{key}_reason" if reason else key
        return self._words(key, until=self.until(found.until), by=by, reason=reason, **fields)

    def _rule(self, view: RuleView) -> Html:
        words, everywhere = self._words, view.where == EVERYWHERE
        text = words(
            "rule",
            name=clipped(view.name, _NAME),
            limit=self.limit(view),
            scope=words(f"scope_{view.scope or 'custom'}"),
            where=words("everywhere") if everywhere else _code(clipped(view.where, _NAME)),
            origin=words(f"origin_{view.origin}"),
        )
        if view.otherwise is None:
            return text
        return Html(f"{text}\n{words('rule_otherwise', limit=view.otherwise)}")

    def _live(self, view: ConfigView) -> Html:
        words, live, running = self._words, view.live, len(view.instances)
        if not live.version:
            return words("live_none", instances=running)
        return words(
            "live",
            version=live.version,
            what=clipped(live.what, _IN_A_LIST),
            by=clipped(live.by, _IN_A_LIST),
            at=words.moment(live.at),
            obeying=running - view.behind,
            instances=running,
        )

    def _verdict(self, view: SubjectView) -> Html:
        words = self._words
        if view.exempt:
            return words("verdict_exempt")
        if view.allowed:
            return words("verdict_allowed")
        if view.banned is not None:
            return words("verdict_banned")
        return words("verdict_refused", wait=words.duration(view.retry_after))

    def _count(self, view: CountView) -> Html:
        words, free = self._words, self._words("free_now")
        if not view.allowed:
            free = words("free_in", wait=words.duration(view.retry_after))
        known: dict[str, Any] = {"left": view.remaining, "capacity": view.capacity}
        key = "count_by_code" if view.remaining is None else "count"
        return words(key, rule=clipped(view.rule, _NAME), free=free, **known)


def _looked_at(subject: Subject) -> Subject:
    """The subject to show: a user without a chat is shown in their private chat."""
    return subject if subject.chat is not None else subject._replace(chat=subject.user)


def _code(value: object) -> Html:
    """A value as code, easy to copy; Telegram makes no link, mention or command of it."""
    return Html(f"<code>{Words.escaped(value)}</code>")
