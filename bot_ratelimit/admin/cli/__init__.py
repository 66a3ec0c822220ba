"""The command `bot-ratelimit`: `Control` for a shell.

The commands are in `overview`, `subjects`, `changes` and `upkeep`. They take their arguments as
`options` says, let a `session` act on Redis, and show and ask with `dialogue`.

Exit status: 0 done; 1 the answer is no (`try`: refused, `health`: unhealthy); 2 a mistake in the
command or the configuration; 3 Redis cannot be reached; 4 somebody else changed the limits in the
meantime; 5 not confirmed.
"""

from bot_ratelimit.admin.cli.application import app

__all__ = ["app"]
