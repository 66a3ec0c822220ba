"""Messages: sheets and questions as HTML that fits into a message, page by page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from aiogram.types import InlineKeyboardButton, InlineKeyboardMarkup

from bot_ratelimit.admin.questions import Question
from bot_ratelimit.admin.sheets import Sheet
from bot_ratelimit.admin.words import as_html, joined, plain, shown
from bot_ratelimit.rules.rule import Subject

_FITS: Final = 2_500
"""UTF-16 units of a page; Telegram allows 4096 for the page and the text around it."""
_ROWS: Final = 24
"""Rows of a page, which may have a button each."""


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
        units = len(block.encode("utf-16-le")) // 2 + 1
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
    """A question and what will happen."""
    return f"<b>{as_html(question.text)}</b>\n" + _lines(question.points)


def _row(cells: Sequence[object], head: Sequence[str]) -> str:
    first, *others = ("" if cell is None else cell for cell in cells)
    rest = [each for each in others if shown(each)]
    if len(rest) > 1 and all(isinstance(each, int) for each in rest):  # which number is which
        names = (plain(name).lower() for name in head[1:])
        rest = [joined(each, " ") for each in zip(names, rest, strict=True) if each[1]]
    return as_html(joined([first, joined(rest)], ": ") if rest else first)


def _lines(texts: Iterable[object]) -> str:
    return "\n".join(map(as_html, texts))
