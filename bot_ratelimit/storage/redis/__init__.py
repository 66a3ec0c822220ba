"""Counts on a Redis or Valkey server: the connection, its commands, its scripts."""
