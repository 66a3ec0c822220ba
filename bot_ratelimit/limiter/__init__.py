"""The Limiter and what it is made of: decisions, waiting, slots, bans, statistics, observers."""
