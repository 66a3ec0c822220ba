"""Form: what an operator entered, from the query or from the body of a request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bot_ratelimit.admin.views import LARGEST_ID
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.rule import Subject

_IDS = ("user", "chat", "topic", "bot")
_DIGITS = re.compile(r"-?[0-9]{1,16}", re.ASCII)


class Form:
    """Fields by name, each as text without spaces around it."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        return bool(self.text(name))

    def text(self, name: str, default: str = "") -> str:
        """The content of a field."""
        value = self._values.get(name, default)
        return value.strip() if isinstance(value, str) else default

    def texts(self, name: str) -> list[str]:
        """All values of a field that may be given several times."""
        getall = getattr(self._values, "getall", None)
        found = getall(name, []) if getall is not None else [self.text(name)]
        return [each for each in found if isinstance(each, str) and each]

    def flag(self, name: str) -> bool | None:
        """`yes` or `no` as a bool; None for anything else."""
        return {"yes": True, "no": False}.get(self.text(name))

    def number(self, name: str) -> int | None:
        """A whole number; None if the field is empty.

        Raises:
            ConfigError: The field contains something else.
        """
        text = self.text(name)
        if not text:
            return None
        if not _DIGITS.fullmatch(text):
            raise ConfigError(
                f"{name}: {text[:50]!r}: expected a whole number, for example 123456789"
            )
        return int(text)

    def ban_subject(self) -> Subject:
        """The target of a ban: a user, in the named chat or everywhere; a negative id is a chat's.

        Raises:
            ConfigError: There is no id, or one that cannot be anybody's.
        """
        user, chat, topic, bot = map(self._id, _IDS)
        if user is not None and user < 0:
            user, chat = None, user
        if user is None and chat is None:
            raise ConfigError("user: expected the id of a user, or the negative id of a chat")
        return Subject(user, chat, topic, bot)

    def subject(self) -> Subject:
        """The subject to show: a user in their private chat, unless another chat is named.

        Raises:
            ConfigError: There is no id, or one that cannot be anybody's.
        """
        found = self.ban_subject()
        return found._replace(chat=found.user) if found.chat is None else found

    def _id(self, name: str) -> int | None:
        found = self.number(name)
        if found is None:
            return None
        is_positive = found > 0 or name in ("user", "chat")  # where a chat's is negative
        if not (is_positive and 0 < abs(found) <= LARGEST_ID):
            raise ConfigError(f"{name}: {found} is not an id: expected one such as 123456789")
        return found
