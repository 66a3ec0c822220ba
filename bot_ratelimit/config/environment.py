"""Mistakes in the environment and `.env` that would otherwise pass in silence.

Nothing here shows a value: it may be a secret.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Final

from dotenv.parser import Binding, parse_stream

from bot_ratelimit.errors import ConfigError

log = logging.getLogger("bot_ratelimit")

MAX_SECRET: Final = 10_000
"""How many characters the file of a secret may have."""

_OURS: Final = re.compile("RATE_?LIMIT")
_SHARED: Final = "REDIS_"  # other programs have variables like this, too
_NEAR: Final = 0.8
_LINE_END: Final = re.compile(r"[\r\n]")
_EXPANDED: Final = re.compile(r"\$\{(?P<name>[^}:]*)\}")
# Letters of other alphabets that look like those of a variable's name.
_LOOKALIKES: Final = str.maketrans(
    "АВЕІКМНОРСТХавеікмнорстхΑΒΕΙΚΜΝΟΡΤΧ", "ABEIKMHOPCTXABEIKMHOPCTXABEIKMNOPTX"
)


def warn_of_mistakes(known: Collection[str], secrets: Mapping[str, str], file: Path | None) -> None:
    """Log a WARNING for each mistake, once in this process; names are in upper case."""
    bindings = [] if file is None else _read(file)
    for name, secret in secrets.items():
        for problem in _wrong_with_secret(name, secret):
            warn_once(problem)
    for problem in (
        *_strange_names(os.environ, known, ""),
        *_strange_names((each.key for each in bindings if each.key), known, f" in {file}"),
        *_strange_lines(bindings, known, file),
        *_lost_variables(bindings, secrets, file),
    ):
        warn_once(problem)


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


def _read(file: Path) -> list[Binding]:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            return list(parse_stream(stream))
    except OSError:
        return []


def _strange_names(names: Iterable[str], known: Collection[str], where: str) -> Iterator[str]:
    for name in names:
        upper = name.upper()
        if upper in known:
            continue
        plain = _plain(name)
        if plain in known:
            yield (
                f"{name!a}{where} is ignored: it has a letter of another alphabet, or an "
                f"invisible one; type {plain} again"
            )
            continue
        near = get_close_matches(plain, known, n=1, cutoff=_NEAR)
        if _OURS.match(plain):
            near = near or get_close_matches(plain, known, n=1, cutoff=0)
        elif not (near and plain.startswith(_SHARED)):
            continue
        shown = ascii(name)[1:-1]
        yield f"{shown}{where} is ignored: there is no such setting; did you mean {near[0]}?"


def _plain(name: str) -> str:
    """The name as it looks, in Latin letters."""
    shown = unicodedata.normalize("NFKC", name).translate(_LOOKALIKES)
    return "".join(each for each in shown if unicodedata.category(each) != "Cf").upper()


def _strange_lines(
    bindings: Iterable[Binding], known: Collection[str], file: Path | None
) -> Iterator[str]:
    for each in bindings:
        line = f"{file}, line {each.original.line + _blank_lines_before(each)}"
        if each.error:
            yield f"{line} is ignored: it cannot be read; expected NAME=value, with closed quotes"
        elif each.key is not None and each.value is None and each.key.upper() in known:
            yield f"{line} is ignored: {each.key} has no =; expected {each.key}=value"


def _blank_lines_before(binding: Binding) -> int:
    text = binding.original.string
    return text[: len(text) - len(text.lstrip())].count("\n")


def _lost_variables(
    bindings: Iterable[Binding], secrets: Collection[str], file: Path | None
) -> Iterator[str]:
    """Tell of `${X}` in a secret, where nothing is called X: it was replaced by nothing."""
    names = {each.key for each in bindings} | os.environ.keys()
    for each in bindings:
        if each.key is not None and each.key.upper() in secrets and each.value:
            found = _EXPANDED.findall(each.value)
            if any(name not in names for name in found):
                yield (
                    f"{each.key} in {file} contains ${{…}}, which was replaced by nothing, because "
                    f"there is no such variable; if it belongs to the secret, put the secret into "
                    f"a file, {each.key}_FILE"
                )


def _wrong_with_secret(name: str, secret: str) -> Iterator[str]:
    if secret != secret.strip():
        yield f"{name} begins or ends with a space: is that part of it?"
    if " #" in secret:
        yield f"{name} contains ' #': a comment needs a line of its own"
    if "${" in secret:
        yield f"{name} contains ${{…}}, which nothing has replaced: is that part of it?"
    if "/" in secret and "://" not in secret and Path(secret).is_file():
        yield f"{name} is the path of a file: {name}_FILE reads it"


@lru_cache(maxsize=1_000)
def warn_once(problem: str) -> None:
    """Log a problem; the cache lets each be logged once."""
    log.warning("%s", problem)
