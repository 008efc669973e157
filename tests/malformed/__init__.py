"""Malformed inputs by reader; `tests.corpus` puts them together and tries them."""
