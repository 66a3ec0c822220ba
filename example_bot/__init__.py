"""A small bot whose users share one rate limit, however many instances of it run."""
