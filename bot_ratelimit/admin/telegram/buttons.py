"""Buttons: an answer with its keyboard, and the data of its buttons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

from aiogram.filters.callback_data import CallbackData
from aiogram.types import InlineKeyboardButton, InlineKeyboardMarkup
from pydantic import Field

from bot_ratelimit.admin.telegram.texts import Words
from bot_ratelimit.admin.views import LARGEST_ID
from bot_ratelimit.rules.rule import Subject

_FITS: Final = 2_500
"""UTF-16 units of a page; Telegram allows 4096 for the page and the text around it."""
_LAST_PAGE: Final = 99

Rows: TypeAlias = "list[list[InlineKeyboardButton]]"
_Id: TypeAlias = Annotated[int, Field(ge=-LARGEST_ID, le=LARGEST_ID)]


class ButtonPress(CallbackData, prefix="rl"):
    """The data of a button; at most 64 bytes, even with the longest ids."""

    namespace: str
    """The prefix of the router's commands, so that two routers do not share buttons."""
    what: str
    """The action. At most four letters if there are ids, and three if there are pages too."""
    first: _Id = 0
    """A user's id, a version, or who was asked."""
    second: _Id = 0
    """A chat's id."""
    page: Annotated[int, Field(ge=0, le=_LAST_PAGE)] = 0
    extra: str = ""
    """A topic's id, or the token of a question."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A message to an operator."""

    text: str
    """HTML."""
    rows: Sequence[Sequence[InlineKeyboardButton]] = ()

    @property
    def keyboard(self) -> InlineKeyboardMarkup | None:
        """The buttons, if there are any."""
        rows = [list(row) for row in self.rows]
        return InlineKeyboardMarkup(inline_keyboard=rows) if rows else None


class Buttons:
    """Makes buttons for one operator.

    Args:
        words: In the operator's language.
        namespace: See `ButtonPress`.
    """

    def __init__(self, words: Words, namespace: str) -> None:
        self._words, self._namespace = words, namespace

    def button(self, text: str, what: str, **fields: Any) -> InlineKeyboardButton:
        """A button that comes back as a `ButtonPress`."""
        press = ButtonPress(namespace=self._namespace, what=what, **fields)
        return InlineKeyboardButton(text=text, callback_data=press.pack())

    def confirmation(self, do: str, operator: int, token: str) -> Rows:
        """The buttons to confirm and to cancel."""
        named = ((f"yes_{do}", "yes"), ("no", "no"))
        asked = {"first": operator, "extra": token}
        return [[self.button(self._words(word), what, **asked) for word, what in named]]

    def subjects(self, subjects: Iterable[Subject]) -> Rows:
        """A button for each subject, which shows its details."""
        return rows([self.button(str(_id_of(each)), "who", **_ids(each)) for each in subjects], 4)

    def actions(self, subject: Subject, banned: bool, page: int) -> Rows:
        """Buttons for what operators can do with a user or chat."""
        actions = [("yes_forgive", "free"), ("ban_hour", "hour"), ("ban_day", "day")]
        if banned:
            actions[1:] = [("yes_unban", "lift")]
        ids = _ids(subject)
        again = self.button(self._words("again"), "who", page=page, **ids)
        return [[self.button(self._words(word), what, **ids) for word, what in actions], [again]]

    def paging(self, what: str, page: int, more: bool, **ids: Any) -> Rows:
        """Buttons to the previous and the next page."""
        row = []
        if page > 0:
            row.append(self.button(f"‹ {page}", what, page=page - 1, **ids))
        if more and page < _LAST_PAGE:
            row.append(self.button(f"{page + 2} ›", what, page=page + 1, **ids))
        return [row] if row else []

    def subject_paging(self, subject: Subject, page: int, more: bool) -> Rows:
        """The same, for the counts of a user or chat."""
        return self.paging("who", page, more, **_ids(subject))


def rows(buttons: Sequence[InlineKeyboardButton], size: int) -> Rows:
    """Buttons in rows of this size."""
    return [list(buttons[i : i + size]) for i in range(0, len(buttons), size)]


def page_of(blocks: Iterable[str], page: int, between: str = "\n") -> tuple[str, int, bool]:
    """The text of a page, its number (at most the last page's), and whether another follows."""
    pages: list[list[str]] = [[]]
    length = 0
    for block in blocks:
        units = len((block + between).encode("utf-16-le")) // 2
        if pages[-1] and length + units > _FITS:
            pages.append([])
            length = 0
        pages[-1].append(block)
        length += units
    page = min(page, len(pages) - 1)
    return between.join(pages[page]), page, page + 1 < len(pages)


def _id_of(subject: Subject) -> int | None:
    return subject.chat if subject.user is None else subject.user


def _ids(subject: Subject) -> dict[str, Any]:
    topic = "" if subject.topic is None else str(subject.topic)
    return {"first": subject.user or 0, "second": subject.chat or 0, "extra": topic}
