"""A request goes out: how fast, in which order, and what a 429 means for those behind it."""
