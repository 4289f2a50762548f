"""Reads only: what happened to a message, and which messages there are."""
