"""What `manage.py check --tag messaging` reports: what is refused, and what would lose time or messages later."""

from messaging.checks import broker, declarations, environment

__all__ = ["broker", "declarations", "environment"]
