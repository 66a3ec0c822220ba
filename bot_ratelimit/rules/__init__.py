"""What is limited: limits, rules, penalties and concurrency, as values without I/O."""
