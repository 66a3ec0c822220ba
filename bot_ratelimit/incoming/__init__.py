"""Incoming updates: what they count as, for whom, and the notices of refusals."""
