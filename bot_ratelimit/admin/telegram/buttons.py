"""Buttons: what stands below an answer, and the data of its buttons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, TypeAlias

from aiogram.filters.callback_data import CallbackData
from aiogram.types import InlineKeyboardButton
from pydantic import Field

from bot_ratelimit.admin.words import Words
from bot_ratelimit.config.ids import LARGEST_ID
from bot_ratelimit.rules.rule import Subject

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
    """A user's id, or a version."""
    second: _Id = 0
    """A chat's id."""
    page: Annotated[int, Field(ge=0, le=_LAST_PAGE)] = 0
    extra: str = ""
    """A topic's id, or the token of a question."""


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

    def confirmation(self, yes: str, token: str) -> Rows:
        """The buttons to confirm and to cancel."""
        named = ((yes, "yes"), (self._words("Cancel"), "no"))
        return [[self.button(text, what, extra=token) for text, what in named]]

    def subjects(self, subjects: Iterable[Subject]) -> Rows:
        """A button for each subject, which shows its details: of a user in the private chat."""
        found = []
        for each in subjects:
            seen = each if each.chat is not None else each._replace(chat=each.user)
            id_ = each.chat if each.user is None else each.user
            found.append(self.button(str(id_), "who", **ids_of(seen)))
        return rows(found, 4)

    def actions(self, subject: Subject, banned: bool, page: int) -> Rows:
        """Buttons for what operators can do with a user or chat."""
        actions = [("Forgive", "free"), ("Ban 1 h", "hour"), ("Ban 1 d", "day")]
        if banned:
            actions[1:] = [("Unban", "lift")]
        ids = ids_of(subject)
        again = self.button(self._words("Refresh"), "who", page=page, **ids)
        return [[self.button(self._words(word), what, **ids) for word, what in actions], [again]]

    def paging(self, what: str, page: int, more: bool, **ids: Any) -> Rows:
        """Buttons to the previous and the next page."""
        row = []
        if page > 0:
            row.append(self.button(f"‹ {page}", what, page=page - 1, **ids))
        if more and page < _LAST_PAGE:
            row.append(self.button(f"{page + 2} ›", what, page=page + 1, **ids))
        return [row] if row else []


def rows(buttons: Sequence[InlineKeyboardButton], size: int) -> Rows:
    """Buttons in rows of this size."""
    return [list(buttons[i : i + size]) for i in range(0, len(buttons), size)]


def ids_of(subject: Subject) -> dict[str, Any]:
    """The fields of a button about a user or chat."""
    topic = "" if subject.topic is None else str(subject.topic)
    return {"first": subject.user or 0, "second": subject.chat or 0, "extra": topic}
