"""The command `bot-ratelimit`: the operations for a shell.

Each command is an operation: its arguments are the fields. It acts on Redis in a `session`, and
shows and asks in the `terminal`. `upkeep` has what is only for a shell.

Exit status: 0 done; 1 the answer is no (`try`: refused, `health`: unhealthy); 2 a mistake in the
command or the configuration; 3 Redis cannot be reached; 4 somebody else changed the limits in the
meantime; 5 not confirmed; 6 degraded (`health`: all limits are off, or instances are behind).
"""

from bot_ratelimit.admin.cli.application import app

__all__ = ["app"]
