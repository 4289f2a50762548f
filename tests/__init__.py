"""A package by name, so that no other installed `tests` can take its place."""
