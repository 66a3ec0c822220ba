"""Confirmations: an operator confirms an action before it happens, and it happens at most once."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, Final

from bot_ratelimit.config.live import live_key
from bot_ratelimit.limiter.limiter import Limiter

SECONDS: Final = 120
"""Seconds in which the operator can answer."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{12}")


class Confirmations:
    """Questions that wait for an operator's answer.

    Each is kept under `<prefix>:ratelimit:audit:asked:<operator>:<token>`, so that the answer may
    reach any instance. Only this operator's answer finds it, and only once.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._prefix = limiter.key_prefix
        self._documents = limiter.storage.documents()

    async def ask(self, operator: int, action: Mapping[str, Any]) -> str:
        """Keep an action until the operator confirms it; returns the token of the question."""
        token = secrets.token_urlsafe(9)
        document = json.dumps(action, ensure_ascii=False).encode("utf-8", "backslashreplace")
        await self._documents.put(self._key(operator, token), document, SECONDS)
        return token

    async def take(self, operator: int, token: str) -> dict[str, Any] | None:
        """The action of a question; None if it is unknown, too old, or answered already."""
        if not _TOKEN.fullmatch(token):
            return None
        document = await self._documents.take(self._key(operator, token))
        return None if document is None else dict(json.loads(document))

    def _key(self, operator: int, token: str) -> str:
        return live_key(self._prefix, f"audit:asked:{operator}:{token}")
