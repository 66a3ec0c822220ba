"""Environment, TOML file and live changes, as rules, client and storage."""
