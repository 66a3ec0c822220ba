"""The script that decides on a Redis server, joined from `frame.lua` and a part for each algorithm.

Each part is the twin of a Python file with the same name in this folder.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final

PARTS: Final = ("fixed_window", "sliding_window", "token_bucket", "penalty")


def _read(name: str) -> str:
    return resources.files("bot_ratelimit.algorithms").joinpath(f"{name}.lua").read_text("utf-8")


def _joined() -> str:
    text = _read("frame")
    for part in PARTS:
        text = text.replace(f"--[[ {part}.lua ]]", _read(part))
    return text


SCRIPT: Final = _joined()
SHA: Final = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
"""How EVALSHA names the script."""
