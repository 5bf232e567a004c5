"""Where a study is kept: a journal file that survives kills at any byte, or PostgreSQL."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from iakd.errors import RunFailed, UserError
from iakd.seeding import derive


class WholeLines:
    """Lock of a journal that the kernel releases when its holder dies; taking it cuts off a torn last line.

    Optuna's own locks outlive a killed holder, and a journal in which something follows a torn line cannot be
    read any more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = -1

    def acquire(self) -> bool:
        """Wait for the lock, then repair the file."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            _cut_torn_line(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return True

    def release(self) -> None:
        """Let others write."""
        os.close(self._handle)


def _cut_torn_line(handle: int) -> None:
    size = os.fstat(handle).st_size
    if size == 0 or os.pread(handle, 1, size - 1) == b"\n":
        return
    whole = os.pread(handle, size, 0).rfind(b"\n") + 1
    os.ftruncate(handle, whole)
    os.fsync(handle)


def open_journal(path: Path) -> JournalStorage:
    """The storage in the journal file `path`, which is made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = WholeLines(path)
    lock.acquire()
    lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))  # type: ignore[arg-type]  # base class is private


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
