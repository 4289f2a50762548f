"""Checks what a project hands in, and makes values fit for a database or for AMQP. Nothing here opens a connection."""
