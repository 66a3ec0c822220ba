"""Messages: sheets and questions as HTML that fits into a message, and the buttons below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

from aiogram.filters.callback_data import CallbackData
from aiogram.types import InlineKeyboardButton, InlineKeyboardMarkup
from pydantic import Field

from bot_ratelimit.admin.questions import Question
from bot_ratelimit.admin.sheets import Sheet
from bot_ratelimit.admin.words import Marked, Words, as_html, joined, plain, shown
from bot_ratelimit.config.ids import LARGEST_ID
from bot_ratelimit.rules.rule import Subject

_FITS: Final = 2_500
"""UTF-16 units of a page; Telegram allows 4096 for the page and the text around it."""
_ROWS: Final = 24
"""Rows of a page, which may have a button each."""
_LAST_PAGE: Final = 99
_LONGEST: Final = 3_500
"""UTF-16 units of what a question says."""
_LAST: Final = 4
"""Points of a question that are always shown: its last three say what the others mean."""

Rows: TypeAlias = "list[list[InlineKeyboardButton]]"
_Id: TypeAlias = Annotated[int, Field(ge=-LARGEST_ID, le=LARGEST_ID)]


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


class Page(NamedTuple):
    """A part of a sheet."""

    text: str
    number: int
    more: bool
    """Whether another page follows."""
    subjects: Sequence[Subject]


def page_of(sheet: Sheet, number: int = 0) -> Page:
    """The page with this number, or the last one."""
    pages: list[list[str]] = [[]]
    length = 0
    for block in (_row(cells, sheet.head) for cells in sheet.rows):
        units = _units(block) + 1
        if pages[-1] and (length + units > _FITS or len(pages[-1]) == _ROWS):
            pages.append([])
            length = 0
        pages[-1].append(block)
        length += units
    number = min(number, len(pages) - 1)
    title = f"<b>{as_html(sheet.title)}</b>" if sheet.title and sheet.rows else ""
    parts = (title, _lines(sheet.lines), "\n".join(pages[number]), _lines(sheet.foot))
    first = sum(map(len, pages[:number]))
    subjects = sheet.subjects[first : first + len(pages[number])]
    return Page("\n\n".join(filter(None, parts)), number, number + 1 < len(pages), subjects)


def asked(question: Question) -> str:
    """A question and what will happen: of many changes the first ones, and how many more."""
    points, left_out = [*question.points], 0
    while _units(_lines(points)) > _LONGEST and len(points) > _LAST:
        del points[-_LAST]
        left_out += 1
    if left_out:
        points.insert(1 - _LAST, Marked(f"… +{left_out}"))
    return f"<b>{as_html(question.text)}</b>\n" + _lines(points)


def _row(cells: Sequence[object], head: Sequence[str]) -> str:
    first, *others = ("" if cell is None else cell for cell in cells)
    rest = [each for each in others if shown(each)]
    if len(rest) > 1 and all(isinstance(each, int) for each in rest):  # which number is which
        names = (plain(name).lower() for name in head[1:])
        rest = [joined(each, " ") for each in zip(names, rest, strict=True) if each[1]]
    return as_html(joined([first, joined(rest)], ": ") if rest else first)


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _lines(texts: Iterable[object]) -> str:
    return "\n".join(map(as_html, texts))


# --- buttons --------------------------------------------------------------------------------------


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
    """Makes buttons for one operator; for the namespace see `ButtonPress`."""

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
