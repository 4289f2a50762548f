"""The codes of AMQP by which the broker closes a channel over what it was asked for."""

ACCESS_REFUSED = 403
NOT_FOUND = 404
#: Another connection's own (exclusive) queue.
RESOURCE_LOCKED = 405
#: It stands otherwise than declared, or is in use.
PRECONDITION_FAILED = 406
