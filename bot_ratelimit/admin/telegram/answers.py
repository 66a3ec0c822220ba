"""Answers: what operators are shown, as messages that fit, with their buttons."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from aiogram.filters.callback_data import CallbackData
from aiogram.types import InlineKeyboardButton, InlineKeyboardMarkup

from bot_ratelimit.admin.telegram.texts import Html, Words, clipped
from bot_ratelimit.admin.views import (
    ConfigView,
    CountView,
    HealthView,
    HourTotal,
    RuleView,
    SubjectView,
)
from bot_ratelimit.incoming.inventory import EVERYWHERE
from bot_ratelimit.overrides import Overrides
from bot_ratelimit.rule import Subject
from bot_ratelimit.statistics import Refusals
from bot_ratelimit.storage.banlist import Ban

_FITS: Final = 3_500
"""Characters of a page; Telegram takes 4096, and counts some of them double."""
_NAME: Final = 100
_IN_A_LIST: Final = 80
_BUTTONS: Final = 4
"""Buttons in a row."""
_LAST_PAGE: Final = 99


class Press(CallbackData, prefix="rl"):
    """What a button stands for; at most 64 bytes, with the longest ids."""

    space: str
    """The prefix of the router's commands, so that two routers do not share buttons."""
    what: str
    first: int = 0
    """A user's id, a version, or who was asked."""
    second: int = 0
    """A chat's id."""
    page: int = 0
    extra: str = ""
    """A topic's id, or the token of a question."""


class Answer(NamedTuple):
    """A message to an operator."""

    text: str
    buttons: list[list[InlineKeyboardButton]] = []  # noqa: RUF012 - never changed

    @property
    def keyboard(self) -> InlineKeyboardMarkup | None:
        """The buttons, if there are any."""
        return InlineKeyboardMarkup(inline_keyboard=self.buttons) if self.buttons else None


class Writer:
    """Words values for one operator.

    Args:
        words: In the operator's language.
        space: See `Press`.
    """

    def __init__(self, words: Words, space: str) -> None:
        self.words = words
        self._space = space

    # --- pages and buttons --------------------------------------------------------------------

    def button(self, text: str, what: str, **fields: Any) -> InlineKeyboardButton:
        """A button that comes back as a `Press`."""
        press = Press(space=self._space, what=what, **fields)
        return InlineKeyboardButton(text=text, callback_data=press.pack())

    def pages(
        self, head: str, blocks: Sequence[str], press: Press, foot: str = "", between: str = "\n"
    ) -> Answer:
        """One page of blocks under a head, with buttons to the pages around it."""
        pages, length = [[]], 0  # type: list[list[str]], int
        for block in blocks:
            if pages[-1] and length + len(block) > _FITS:
                pages.append([])
                length = 0
            pages[-1].append(block)
            length += len(block) + len(between)
        number = max(0, min(press.page, len(pages) - 1))
        parts = [head, between.join(pages[number]), foot]
        return Answer(
            "\n\n".join(part for part in parts if part),
            self.turning(press, number, number + 1 < len(pages)),
        )

    def turning(self, press: Press, number: int, more: bool) -> list[list[InlineKeyboardButton]]:
        """Buttons to the page before and after."""
        row = []
        for text, page, there in (
            (f"‹ {number}", number - 1, number > 0),
            (f"{number + 2} ›", number + 1, more and number < _LAST_PAGE),
        ):
            if there:
                data = press.model_copy(update={"page": page}).pack()
                row.append(InlineKeyboardButton(text=text, callback_data=data))
        return [row] if row else []

    def question(self, text: str, do: str, operator: int, token: str) -> Answer:
        """A question with its two buttons."""
        yes, no = (
            self.button(self.words(word), what, first=operator, extra=token)
            for word, what in ((f"yes_{do}", "yes"), ("no", "no"))
        )
        return Answer(text, [[yes, no]])

    # --- values -------------------------------------------------------------------------------

    def who(self, subject: Subject | dict[str, Any]) -> Html:
        """A user, a chat, or a user in a chat."""
        given = subject._asdict() if isinstance(subject, Subject) else subject
        user, chat = given.get("user"), given.get("chat")
        if user is None or user < 0:
            return self.words("chat", id=_code(chat if user is None else user))
        found = self.words("user", id=_code(user))
        return found if chat in (None, user) else self.words("in_chat", who=found, id=_code(chat))

    def rule(self, view: RuleView) -> Html:
        """One rule in force."""
        where = self.words("everywhere") if view.where == EVERYWHERE else _code(view.where)
        text = self.words(
            "rule",
            name=clipped(view.name, _NAME),
            limit=self.limit(view),
            scope=self.words(f"scope_{view.scope or 'custom'}"),
            where=where,
            origin=self.words(f"origin_{view.origin}"),
        )
        if view.otherwise is None:
            return text
        return Html(text + "\n" + self.words("rule_otherwise", limit=view.otherwise))

    def limit(self, view: RuleView) -> Html:
        """What a rule allows, and whether it does."""
        text = Html(view.limit) if view.limit else self.words("rule_by_code")
        if view.ban_ms:
            ban = self.words.duration(view.ban_ms / 1e3)
            text = self.words("rule_penalty", ban=ban, limit=text)
        marks = (("rule_shadow", view.shadow), ("rule_off", view.off))
        return Html("; ".join([text, *(self.words(word) for word, on in marks if on)]))

    def limits(self, view: ConfigView, live: bool, page: int, commands: Iterable[str]) -> Answer:
        """All rules, and what was changed of them."""
        words, now = self.words, view.live
        running = len(view.instances)
        state = words("live_off") if not live else words("live_none", instances=running)
        if live and now.version:
            state = words(
                "live",
                version=now.version,
                what=_code(now.what),
                by=_code(now.by),
                at=words.moment(now.at),
                obeying=running - view.behind,
                instances=running,
            )
        foot = [state]
        if now.off_until > time.time():
            foot.append(words("paused", until=words.moment(now.off_until)))
        foot.append(words("commands", commands=" ".join(commands)))
        blocks = [self.rule(each) for each in view.rules] or [words("no_limits")]
        press = Press(space=self._space, what="limits", page=page)
        return self.pages(words("limits"), blocks, press, "\n".join(foot), "\n\n")

    def subject(self, view: SubjectView, subject: Subject, page: int) -> Answer:
        """Where somebody stands, with buttons to act."""
        words = self.words
        if view.exempt:
            verdict = words("verdict_exempt")
        elif view.banned is not None and not view.off_until:
            verdict = words("verdict_banned")
        elif view.allowed:
            verdict = words("verdict_allowed")
        else:
            verdict = words("verdict_refused", wait=words.duration(view.retry_after))
        head = [words("who", who=self.who(view.subject), verdict=verdict)]
        if view.off_until:
            head.append(words("paused", until=words.moment(view.off_until)))
        if view.banned is not None:
            head.append(self.ban("ban", view.banned))
        if view.refused is not None:
            head.append(words("refused_today", count=view.refused))
        topic = "" if subject.topic is None else str(subject.topic)
        ids: dict[str, Any] = {"first": subject.user or 0, "second": subject.chat or 0}
        ids["extra"] = topic
        press = Press(space=self._space, what="who", page=page, **ids)
        answer = self.pages("\n".join(head), [self.count(each) for each in view.counts], press)
        acts = [("yes_forgive", "forgive"), ("ban_hour", "hour"), ("ban_day", "day")]
        if view.banned is not None:
            acts[1:] = [("yes_unban", "unban")]
        row = [self.button(words(word), what, **ids) for word, what in acts]
        again = [self.button(words("again"), "who", page=page, **ids)]
        return Answer(answer.text, [*answer.buttons, row, again])

    def count(self, view: CountView) -> Html:
        """Where somebody stands with one rule."""
        words, free = self.words, self.words("free_now")
        if not view.allowed:
            free = words("free_in", wait=words.duration(view.retry_after))
        if view.remaining is None:
            return words("count_by_code", rule=clipped(view.rule, _NAME), free=free)
        return words(
            "count",
            rule=clipped(view.rule, _NAME),
            left=view.remaining,
            capacity=view.capacity,
            free=free,
        )

    def ban(self, key: str, ban: Ban, **fields: object) -> Html:
        """A ban: until when, by whom, why."""
        longest = _IN_A_LIST if key == "ban_line" else 500
        reason = clipped(ban.reason, longest)
        return self.words(
            f"{key}_reason" if reason else key,
            until=self.until(ban.until),
            by=clipped(ban.by or "?", _IN_A_LIST),
            reason=reason,
            **fields,
        )

    def until(self, end: datetime | None) -> Html:
        """Until when a ban holds."""
        if end is None:
            return self.words("ban_for_good")
        left = self.words.duration(end.timestamp() - time.time())
        return self.words("ban_until", until=self.words.moment(end), left=left)

    def bans(self, found: Sequence[Ban], page: int, size: int) -> Answer:
        """A page of bans; `found` has one more than the page if there is another page."""
        words, here = self.words, found[:size]
        if not here:
            return Answer(words("no_bans"))
        lines = [self.ban("ban_line", each, who=self.who(each.subject)) for each in here]
        press = Press(space=self._space, what="bans", page=page)
        buttons = self._people(each.subject for each in here)
        turning = self.turning(press, page, len(found) > size)
        return Answer("\n".join([words("bans"), "", *lines]), [*buttons, *turning])

    def top(self, found: Sequence[Refusals]) -> Answer:
        """Who was refused most."""
        if not found:
            return Answer(self.words("no_top"))
        lines = [self.words("top_line", id=_code(each.user), count=each.count) for each in found]
        people = self._people(Subject(user=each.user) for each in found)
        return Answer("\n".join([self.words("top"), "", *lines]), people)

    def statistics(self, found: Sequence[HourTotal]) -> Answer:
        """Decisions by hour."""
        lines = [
            self.words(
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
            return Answer(self.words("no_stats"))
        return Answer("\n".join([self.words("stats"), "", *lines]))

    def history(self, found: Sequence[Overrides], page: int) -> Answer:
        """The versions to roll back to."""
        words = self.words
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
        press = Press(space=self._space, what="history", page=page)
        buttons = [self.button(f"↩ {n}", "rollback", first=n)
                   for n in [each.version for each in found[1:]] + [0]]  # fmt: skip
        answer = self.pages(words("history"), lines, press)
        return Answer(answer.text, [*_rows(buttons, 5), *answer.buttons])

    def health(self, view: HealthView) -> Answer:
        """Whether limits hold."""
        if not view.ok:
            return Answer(self.words("not_well", problem=view.problem))
        return Answer(
            self.words(
                "well",
                ms=round(view.seconds * 1e3),
                instances=view.instances,
                version=view.version,
                behind=view.behind,
            )
        )

    def _people(self, subjects: Iterable[Subject]) -> list[list[InlineKeyboardButton]]:
        """A button for each of them, to look closer."""
        buttons = []
        for each in subjects:
            text = str(each.user if each.user is not None else each.chat)
            ids = {"first": each.user or 0, "second": each.chat or each.user or 0}
            buttons.append(self.button(text, "who", **ids))
        return _rows(buttons, _BUTTONS)


def _rows(buttons: list[InlineKeyboardButton], size: int) -> list[list[InlineKeyboardButton]]:
    return [buttons[i : i + size] for i in range(0, len(buttons), size)]


def _code(value: object) -> Html:
    """Something to copy; Telegram makes no link, mention or command of it."""
    return Html(f"<code>{Words.escaped(value)}</code>")
