"""PostgreSQL as the place of a study."""

import contextlib
import time
from collections.abc import Iterator

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from iakd.data.streams import derive
from iakd.errors import RunFailed, UserError

TABLES = derive("tables of Optuna")  # names of advisory locks are numbers
SECONDS_TO_LET_GO = 10.0  # for a server to notice that the study's last owner was killed


@contextlib.contextmanager
def database_storage(address: str, own: str | None) -> Iterator[RDBStorage]:
    """The storage at `address`; with `own`, as the only process that conducts the study of this name.

    Raises UserError where the address is unusable or the study has another owner, RunFailed where the database fails.
    """
    try:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(_connect(address))
            # several studies may meet in an empty database, and only one may make its tables
            connection.execute(sqlalchemy.text("select pg_advisory_lock(:name)"), {"name": TABLES})
            storage = RDBStorage(address, heartbeat_interval=None)
            connection.execute(sqlalchemy.text("select pg_advisory_unlock(:name)"), {"name": TABLES})
            stack.callback(storage.engine.dispose)
            stack.callback(storage.remove_session)
            if own:
                _own(connection, own)
            yield storage
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise RunFailed(f"tune.storage: the database fails ({cause}); run again and the study goes on") from error


@contextlib.contextmanager
def _connect(address: str) -> Iterator[sqlalchemy.Connection]:
    try:
        engine = sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    except (SQLAlchemyError, ImportError) as error:
        raise UserError(
            f"tune.storage: {error}; expected postgresql+psycopg://USER@HOST/DATABASE, and iakd[postgres] installed"
        ) from None
    try:
        connection = engine.connect()
    except OperationalError as error:
        place = engine.url.render_as_string(hide_password=True)
        raise UserError(f"tune.storage: cannot reach {place}: {str(error.orig).splitlines()[0]}") from None
    with connection:
        yield connection


def _own(connection: sqlalchemy.Connection, study: str) -> None:
    """Hold the study's lock as long as the connection lives: a lock file cannot be seen from other machines."""
    deadline = time.monotonic() + SECONDS_TO_LET_GO
    query = sqlalchemy.text("select pg_try_advisory_lock(:name)")
    while not connection.scalar(query, {"name": derive("study", study)}):
        if time.monotonic() > deadline:
            raise UserError(f"tune.storage: another process conducts the study {study} there; wait for it to end")
        time.sleep(0.1)
