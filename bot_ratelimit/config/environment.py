"""The environment and `.env`: names that look like ours and are not, and secrets in files.

Nothing here shows a value: it may be a secret.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection
from contextlib import suppress
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Final

from dotenv.parser import parse_stream

from bot_ratelimit.errors import ConfigError

log = logging.getLogger("bot_ratelimit")

MAX_SECRET: Final = 10_000
"""How many characters the file of a secret may have."""

_OURS: Final = re.compile("RATE_?LIMIT")
_NEAR: Final = 0.8
_LINE_END: Final = re.compile(r"[\r\n]")


def warn_of_strange_names(known: Collection[str], file: Path | None) -> None:
    """Log a WARNING for each variable named like ours that is not known, once in this process.

    Args:
        known: The names of our variables, in upper case.
        file: The path of `.env`, which may be missing.
    """
    found = dict.fromkeys(os.environ, "")
    if file is not None:
        with suppress(OSError), file.open(encoding="utf-8-sig") as stream:
            found |= {each.key: f" in {file}" for each in parse_stream(stream) if each.key}
    for name, where in found.items():
        upper = name.upper()
        if upper in known:
            continue
        near = get_close_matches(upper, known, n=1, cutoff=_NEAR)
        if near or _OURS.match(upper):
            shown = ascii(name)[1:-1]  # a letter of another alphabet looks like a Latin one
            hint = f"; did you mean {near[0]}?" if near else ""
            warn_once(f"{shown}{where} is ignored: there is no such setting{hint}")


def check_secret(secret: str) -> None:
    """Raise ConfigError if a secret has a line end, which no secret has on purpose."""
    if _LINE_END.search(secret):
        raise ConfigError("there is a line end in it: remove it (`echo -n` writes none)")


def read_secret(path: str) -> str:
    """Return the secret that stands in a file, without a line end after it.

    Raises:
        ConfigError: The file cannot be read, or is empty. The path is not shown: people put the
            secret itself there.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            secret = file.read(MAX_SECRET).rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
    else:
        if secret:
            return secret
        reason = "empty"
    raise ConfigError(f"cannot be read ({reason}); expected the path of a file with the secret")


@lru_cache(maxsize=1_000)
def warn_once(problem: str) -> None:
    """Log a problem; the cache lets each be logged once."""
    log.warning("%s", problem)
