"""The bot that the README shows, put together as it says."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def readme_bot() -> str:
    """The first block, with the handler of the second one above its catch-all handler."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    bot, report = blocks[:2]
    before, catch_all = bot.split("@dp.message()\n", 1)
    return f"{before}{report}\n\n@dp.message()\n{catch_all}"
