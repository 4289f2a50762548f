"""Sessions in the database, as Django's own, but for where they are read, and what is said when the database fails."""

from django.contrib.sessions.backends import db
from django.contrib.sessions.backends.base import UpdateError

from messaging import database
from orders.models import VisitorSession


class SessionStore(db.SessionStore):
    """Django takes each failure to save a session for one that was deleted meanwhile, and answers 400: the visitor
    would be told that their request was malformed when it was the database that was away."""

    @classmethod
    def get_model_class(cls) -> type[VisitorSession]:
        """Return the model whose rows hold the sessions."""
        return VisitorSession

    def save(self, must_create: bool = False) -> None:
        """Save as Django does. Raises the database's own error where it cannot be reached, is locked or read-only."""
        try:
            super().save(must_create)
        except UpdateError as error:
            failure = error.__context__
            if failure is not None and database.passes(failure):
                raise failure from failure.__cause__
            raise
