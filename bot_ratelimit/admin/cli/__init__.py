"""The command `bot-ratelimit`: the operations for a shell; `--help` lists its exit statuses.

Each command is an operation: its arguments are the fields. It acts on Redis in a `session`, and
shows and asks in the `terminal`. `upkeep` has what is only for a shell.
"""

from bot_ratelimit.admin.cli.application import app

__all__ = ["app"]
