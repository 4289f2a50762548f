"""Checks what a project passes in, and makes values fit for a database or AMQP. Opens no connection."""
