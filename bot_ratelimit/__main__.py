"""The command `bot-ratelimit`, also `python -m bot_ratelimit`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; without the extra `cli`, say how to install it."""
    try:
        from bot_ratelimit.admin.cli import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(f"bot-ratelimit needs {error.name}: pip install 'bot_ratelimit[cli]'")
    app(prog_name="bot-ratelimit")


if __name__ == "__main__":
    main()
