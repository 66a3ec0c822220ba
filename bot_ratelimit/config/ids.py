"""Ids: what can be the id of a user or a chat, checked the same wherever one is given."""

from __future__ import annotations

from typing import Final

from bot_ratelimit.errors import ConfigError

LARGEST_ID: Final = 2**52 - 1
"""Telegram's ids have at most 52 bits: https://core.telegram.org/bots/api#user."""

NOBODY: Final = frozenset({136817688, 1087968824, 777000})
"""Telegram's placeholder users: channels, anonymous admins, and the service account that forwards
from a linked channel. Many senders share them, so they are never counted."""


_LONGEST_ID: Final = 20  # characters


def check_id(value: object, name: str = "") -> int:
    """The id, if it can be that of one user or chat: otherwise a typo would be obeyed unnoticed.

    Args:
        value: The id.
        name: Named in the error: the setting or argument.

    Raises:
        ConfigError: It is no whole number, too large, 0, or a placeholder that many senders share.
    """
    told = f"{name}: " if name else ""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number or not 0 < abs(value) <= LARGEST_ID:  # type: ignore[arg-type]  # see is_number
        raise ConfigError(
            f"{told}{hidden(value)} is not the id of a user or a chat, such as 42 or -100123"
        )
    if value in NOBODY:
        raise ConfigError(
            f"{told}{value} is the id that all channels, all anonymous admins or Telegram's own "
            "forwards share: use the id of one user or chat"
        )
    return value  # type: ignore[return-value]  # see is_number


def hidden(value: object) -> str:
    """The value for an error, unless it may be a token that came among the ids."""
    text = repr(value)
    return "a value that may be a token" if ":" in text or len(text) > _LONGEST_ID else text
