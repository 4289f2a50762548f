"""RabbitMQ by hand: the sub-commands of `manage.py mq`, which `management/commands/mq.py` lists.

Each has EXAMPLES, `add_arguments(parser)` and `run(command, options)`. What every command shares (exit codes,
tables, a quiet log) is in `messaging/management/`.
"""
