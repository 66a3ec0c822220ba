"""The Mini App: who opened the page inside Telegram, by Telegram's signature."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final
from urllib.parse import parse_qsl

from aiogram.utils.web_app import safe_parse_webapp_init_data

from bot_ratelimit.admin.web.problems import ProblemError

MAX_AGE: Final = 300
"""Seconds for which initData is good."""
MAX_SKEW: Final = 30
"""Seconds by which the clock of Telegram may be ahead of ours."""
MAX_LENGTH: Final = 8_192


class InitDataError(ProblemError):
    """This initData is not good: forged, old, or of somebody else."""


class MiniApp:
    """Checks the initData with which Telegram opens a Mini App.

    Args:
        bot_token: Of the bot whose button opens the page: its signature is checked.
        admins: Ids of the users who may.
        clock: Unix seconds.
    """

    def __init__(self, bot_token: str, admins: Collection[int], clock: Callable[[], float]) -> None:
        self._bot_token, self._admins, self._clock = bot_token, admins, clock

    def opened(self, init_data: str) -> tuple[int, str]:
        """The id of the admin who opened the page, and what this opening is known by.

        That is Telegram's signature: the same fields in another order or spelling have it too.

        Raises:
            InitDataError: 401 if it is forged or old; 403 if its user is no admin.
        """
        if len(init_data) > MAX_LENGTH or _repeats(init_data):
            raise InitDataError(401, "the initData is not Telegram's")
        try:
            found = safe_parse_webapp_init_data(self._bot_token, init_data)
        except (ValueError, TypeError, RecursionError):
            # Not chained: what was wrong with it is nobody's business.
            raise InitDataError(401, "the initData is not Telegram's, or of another bot") from None
        age = self._clock() - found.auth_date.timestamp()
        if age < -MAX_SKEW:
            raise InitDataError(401, "the initData is from the future: set this server's clock")
        if age > MAX_AGE:
            raise InitDataError(401, "the initData is too old: open the page again in Telegram")
        if found.user is None or found.user.id not in self._admins:
            raise InitDataError(403, "this Telegram user is not among the admins")
        return found.user.id, found.hash


def _repeats(init_data: str) -> bool:
    """Whether a field is there twice: which of them counts would be up to the reader."""
    try:
        names = [name for name, _ in parse_qsl(init_data, keep_blank_values=True)]
    except ValueError:
        return True
    return len(names) != len(set(names))
