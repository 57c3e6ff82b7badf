"""A database whose disk is full is one that is away: DBOS waits for it, and the job goes on then.

DBOS waits for a PostgreSQL that has no space left, as for one that cannot be reached. What SQLite
says of a full disk it takes for a fault of the job, which it then cannot record either: the job
would stay with this worker for ever, and nobody would work on it. A connection that counts as lost,
and SQLAlchemy lets us say so, is what DBOS waits for on either database.
"""

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import ExceptionContext

from store.database import lacks_space


def wait_for_space() -> None:
    """Have DBOS, in this process, wait for space where its database has none."""
    if not sa.event.contains(sa.Engine, "handle_error", _count_as_lost):
        sa.event.listen(sa.Engine, "handle_error", _count_as_lost)


def _count_as_lost(context: ExceptionContext) -> None:
    if lacks_space(context.original_exception):
        context.is_disconnect = True
        # The others are no worse than a new one.
        context.invalidate_pool_on_disconnect = False
