"""The codes of AMQP by which the broker closes a channel, or the whole connection, over what it was asked for."""

ACCESS_REFUSED = 403
NOT_FOUND = 404
#: Another connection's own (exclusive) queue.
RESOURCE_LOCKED = 405
#: It stands otherwise than declared, or is in use.
PRECONDITION_FAILED = 406
#: The whole connection is closed: the same question would end the next one too.
SYNTAX_ERROR = 502
COMMAND_INVALID = 503
NOT_IMPLEMENTED = 540
