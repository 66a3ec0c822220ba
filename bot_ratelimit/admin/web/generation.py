"""Generation: a random name in Redis, so that sessions end when Redis is emptied.

Redis remembers which sessions were logged out. If it is emptied, it forgets them, so no session
from before may be valid any more. Each session contains the generation in which it was opened. The
generation is lost with everything else, and the next one has another name.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Final

from bot_ratelimit.admin.control import LOGINS
from bot_ratelimit.config.live import live_key
from bot_ratelimit.errors import RateLimitError
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.storage.documents import Documents

_BYTES: Final = 6


class Generation:
    """The generation of sessions, under `<prefix>:ratelimit:{login}:generation`.

    Args:
        limiter: The bot's limiter. Without Redis there is only one generation, without a name.
    """

    def __init__(self, limiter: Limiter) -> None:
        storage = limiter.storage
        self._documents = None if storage.source == "memory" else storage.documents()
        self._key = live_key(limiter.key_prefix, f"{LOGINS}generation")
        self._latest = ""

    async def current(self) -> str:
        """The generation; while Redis cannot be reached, the last one that this process knows.

        Empty if this process knows none.
        """
        if self._documents is not None:
            with suppress(RateLimitError):
                self._latest = await self._read(self._documents)
        return self._latest

    async def _read(self, documents: Documents) -> str:
        found = await documents.read(self._key)
        if found is None:
            await documents.swap(self._key, None, secrets.token_urlsafe(_BYTES).encode())
            found = await documents.read(self._key)  # another instance may have been first
        return (found or b"").decode("ascii", "replace")
