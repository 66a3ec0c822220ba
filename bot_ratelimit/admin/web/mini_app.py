"""The Mini App: Telegram's signature says who opened the page in Telegram."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final
from urllib.parse import parse_qsl

from aiogram.utils.web_app import safe_parse_webapp_init_data

from bot_ratelimit.admin.web.problems import ProblemError

MAX_AGE: Final = 300
"""Seconds for which initData is valid."""
MAX_SKEW: Final = 30
"""Seconds by which the clock of Telegram may be ahead of ours."""
MAX_LENGTH: Final = 8_192


class InitDataError(ProblemError):
    """This initData is not valid: forged, too old, or of a user without access."""


class MiniApp:
    """Checks the initData with which Telegram opens a Mini App.

    Args:
        bot_token: The token of the bot whose button opens the page; it verifies the signature.
        admins: Ids of the users who have access.
        clock: Unix seconds.
    """

    def __init__(self, bot_token: str, admins: Collection[int], clock: Callable[[], float]) -> None:
        self._bot_token, self._admins, self._clock = bot_token, admins, clock

    def opened(self, init_data: str) -> tuple[int, str]:
        """The id of the admin who opened the page, and what identifies this initData.

        Telegram's signature identifies it: the same fields in another order or with another URL
        encoding have the same signature.

        Raises:
            InitDataError: 401 if it is forged or too old; 403 if its user is not an admin.
        """
        if len(init_data) > MAX_LENGTH or _repeats(init_data):
            raise InitDataError(401, "the initData is not from Telegram")
        try:
            found = safe_parse_webapp_init_data(self._bot_token, init_data)
        except (ValueError, TypeError, RecursionError):
            # Not chained: the details must not reach the client.
            raise InitDataError(
                401, "the initData is not from Telegram, or belongs to another bot"
            ) from None
        age = self._clock() - found.auth_date.timestamp()
        if age < -MAX_SKEW:
            raise InitDataError(401, "the initData is from the future: set this server's clock")
        if age > MAX_AGE:
            raise InitDataError(401, "the initData is too old: open the page again in Telegram")
        if found.user is None or found.user.id not in self._admins:
            raise InitDataError(403, "this Telegram user is not an admin")
        return found.user.id, found.hash


def _repeats(init_data: str) -> bool:
    """Whether a field is given twice: it would be unclear which of them counts."""
    try:
        names = [name for name, _ in parse_qsl(init_data, keep_blank_values=True)]
    except ValueError:
        return True
    return len(names) != len(set(names))
