"""Django's sessions in the database, read from the primary, with the right answer when the database fails."""

from django.contrib.sessions.backends import db
from django.contrib.sessions.backends.base import UpdateError

from messaging import database
from orders.models import VisitorSession


class SessionStore(db.SessionStore):
    """Raises the database's own errors.

    Django treats each failed save as a session that was deleted meanwhile, and answers 400. But the visitor's request
    was not malformed if the database is away.
    """

    @classmethod
    def get_model_class(cls) -> type[VisitorSession]:
        """Return the model whose rows hold the sessions."""
        return VisitorSession

    def save(self, must_create: bool = False) -> None:
        """Save as Django does. Raises the database's own error if it is unreachable, locked or read-only."""
        try:
            super().save(must_create)
        except UpdateError as error:
            failure = error.__context__
            if failure is not None and database.is_transient(failure):
                raise failure from failure.__cause__
            raise
