"""Incoming updates: which are counted, for which Subject, and the notices to refused users."""
