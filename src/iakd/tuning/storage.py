"""Where a study is stored: a journal file that survives kills at any byte, or PostgreSQL. Optuna's tools read both.

Only the process that runs the study opens its storage; workers report to that process.
"""

import contextlib
import functools
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError, SQLAlchemyError

from iakd.errors import RunFailed, UserError
from iakd.seeding import derive
from iakd.tuning.decisions import STATES, Direction, objectives
from iakd.tuning.results import TrialRecord

STATE_NAMES = {
    **{state: name for name, state in STATES.items()},
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


MAXIMISE: list[Direction] = ["maximize"]
MEASURES = {  # what Optuna's dashboard and plots call them
    "val_top1": "top-1 on validation images (%)",
    "val_balanced_accuracy": "balanced accuracy on validation images (%)",
}

log = logging.getLogger(__name__)
# decisions.py samples and prunes, so these two are never used
UNUSED: dict[str, Any] = {"sampler": RandomSampler(seed=0), "pruner": NopPruner()}


P = ParamSpec("P")
R = TypeVar("R")


def _outlasting(method: Callable[Concatenate["StoredStudy", P], R]) -> Callable[Concatenate["StoredStudy", P], R]:
    """Call a method again, which must do no harm, when the database is back after an outage."""

    @functools.wraps(method)
    def patient(self: "StoredStudy", *arguments: P.args, **options: P.kwargs) -> R:
        while True:
            try:
                return method(self, *arguments, **options)
            except (StorageInternalError, SQLAlchemyError) as error:
                self.recover(error)

    return patient


def _fail(error: Exception) -> NoReturn:
    raise error


class StoredStudy:
    """The trials of the study `name`, which is created if it does not exist.

    `recover` is called when the storage fails; it returns when the storage works again, or raises the error.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        directions: list[Direction] = MAXIMISE,
        recover: Callable[[Exception], None] = _fail,
    ) -> None:
        self._study = optuna.create_study(
            study_name=name, storage=storage, directions=directions, load_if_exists=True, **UNUSED
        )
        self.name = name
        self.recover = recover
        self._storage = storage
        self._id = storage.get_study_id_from_name(name)

    @property
    @_outlasting
    def attributes(self) -> dict[str, Any]:
        """What was stored about the study as a whole."""
        return self._study.user_attrs

    @_outlasting
    def set_attribute(self, name: str, value: Any) -> None:
        """Store something about the study as a whole."""
        self._study.set_user_attr(name, value)

    @_outlasting
    def describe(self, measure: str, **about: Any) -> None:
        """Say what the study is of, and what its objectives are called: for Optuna's dashboard and plots."""
        names = [MEASURES[measure], "multiply–adds of a training"]  # in the order of Search.directions
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.set_metric_names(names[: len(self._study.directions)])
        for name, value in about.items():
            self.set_attribute(name, value)

    @_outlasting
    def trials(self) -> list[TrialRecord]:
        """Return all trials in the order of their numbers."""
        return [_record(trial) for trial in self._study.get_trials(deepcopy=False)]

    @_outlasting
    def add(self, number: int, params: dict[str, Any], distributions: dict[str, BaseDistribution], origin: str) -> None:
        """Append the waiting trial `number`, unless it is there."""
        if len(self._study.get_trials(deepcopy=False)) > number:
            return
        self._study.add_trial(
            create_trial(
                state=TrialState.WAITING, params=params, distributions=distributions, user_attrs={"origin": origin}
            )
        )

    @_outlasting
    def start(self, number: int) -> None:
        """Mark a trial as running; one that an interrupted attempt left running stays so."""
        self._storage.set_trial_state_values(self._trial_id(number), TrialState.RUNNING)

    @_outlasting
    def report(self, number: int, step: int, value: float) -> None:
        """Store the validation accuracy of a running trial at a step."""
        trial_id = self._trial_id(number)
        if step not in self._storage.get_trial(trial_id).intermediate_values:  # stored by an interrupted attempt
            self._storage.set_trial_intermediate_value(trial_id, step, value)

    @_outlasting
    def finish(
        self,
        number: int,
        state: str,
        value: float | None,
        reason: str | None,
        pruner_state: dict[str, Any],
        macs: int | None = None,
    ) -> None:
        """Finish a running trial, unless it is finished."""
        if self._storage.get_trial(self._trial_id(number)).state.is_finished():
            return
        mean = value if state == "pruned" else None  # Optuna's value of a pruned trial is its last intermediate one
        for name, content in (("pruner_state", pruner_state), ("reason", reason), ("value", mean), ("macs", macs)):
            if content:
                self._storage.set_trial_user_attr(self._trial_id(number), name, content)
        self._study.tell(number, objectives(value, macs) if state == "complete" else None, state=STATES[state])

    @_outlasting
    def copy_to(self, path: Path, name: str) -> None:
        """Copy the whole study to a new journal file, under this name."""
        optuna.copy_study(
            from_study_name=self.name, from_storage=self._storage, to_storage=_journal(path), to_study_name=name
        )

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def _record(trial: FrozenTrial) -> TrialRecord:
    return TrialRecord(
        number=trial.number,
        state=STATE_NAMES[trial.state],
        params=trial.params,
        origin=trial.user_attrs["origin"],
        value=trial.user_attrs.get("value", trial.values and trial.values[0]),
        intermediate_values=trial.intermediate_values,
        pruner_state=trial.user_attrs.get("pruner_state", {}),
        reason=trial.user_attrs.get("reason"),
        macs=trial.user_attrs.get("macs"),
    )


class StudyReader:
    """Reads the trials of the study `name` in the database at `address`, or without one in the file `journal`.

    `key` is that of the study's run: a journal may still be that of other settings.
    """

    def __init__(self, address: str | None, journal: Path, name: str, key: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings of an outage have many lines
        self._key = key
        self._address = address
        self._journal = journal
        self._name = name
        self._study: optuna.Study | None = None

    def trials(self) -> list[TrialRecord]:
        """Return all trials in the order of their numbers; none while there is no such study, or no database."""
        try:
            if self._study is None or self._address is None:  # a journal may be another one by now
                self._study = optuna.load_study(study_name=self._name, storage=self._open(), **UNUSED)
            if self._study.user_attrs.get("key") != self._key:
                return []
            return [_record(trial) for trial in self._study.get_trials(deepcopy=False)]
        except (KeyError, FileNotFoundError, StorageInternalError, SQLAlchemyError):
            self._study = None
            return []

    def _open(self) -> BaseStorage:
        if self._address is None:
            if not self._journal.exists():  # Optuna would create it
                raise FileNotFoundError(self._journal)
            return JournalStorage(JournalFileBackend(str(self._journal), lock_obj=_NoLock()))  # type: ignore[arg-type]
        with _connect(self._address) as connection:
            if connection.scalar(sqlalchemy.text("select to_regclass('trials')")) is None:
                raise FileNotFoundError(self._address)
        return RDBStorage(self._address, heartbeat_interval=None, skip_table_creation=True)


@contextlib.contextmanager
def open_study(
    address: str | None, journal: Path, name: str, directions: list[Direction] = MAXIMISE
) -> Iterator[StoredStudy]:
    """Open the study `name` in the database at `address`, or without one in the file `journal`.

    Raises UserError where the address is unusable or another process runs the study, RunFailed where the database
    fails for more than ten minutes.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if address is None:
        yield _study_in_journal(journal, name, directions)
    else:
        with _database(address, name) as database:
            yield StoredStudy(database.storage, name, directions, database.recover)


class _NoLock:
    """Optuna's lock files outlive a killed holder; a journal with a single writer needs no lock."""

    def acquire(self) -> bool:
        """Return at once."""
        return True

    def release(self) -> None:
        """Do nothing."""


def _study_in_journal(path: Path, name: str, directions: list[Direction]) -> StoredStudy:
    try:
        study = StoredStudy(_journal(path), name, directions)
        study.trials()  # Optuna reads the journal only now
    except OSError:
        raise
    except Exception as error:  # Optuna raises almost anything for a damaged journal
        log.warning(
            "%s is damaged (%s: %s): a new one is begun, with the trials that have ended read back from their files",
            path,
            type(error).__name__,
            error,
        )
        path.unlink()
        return StoredStudy(_journal(path), name, directions)
    return study


def _journal(path: Path) -> JournalStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    _cut_damaged_end(path)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_NoLock()))  # type: ignore[arg-type]  # base class is private


def _cut_damaged_end(path: Path) -> None:
    """Cut a journal before its first incomplete or unreadable line, left by a killed writer or a bad disk.

    Optuna cannot read a journal that continues after it. Nothing is lost: the study proposes the same trials again, and
    reads those that have ended back from their own files.
    """
    if not path.exists():
        return
    content = path.read_bytes()
    whole = 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        if not _is_entry(line):
            log.warning("%s: line %d is damaged; what followed is read back from the files of the trials", path, number)
            break
        whole += len(line)
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())


def _is_entry(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and {"op_code", "worker_id"} <= set(entry)


TABLES_LOCK = derive("tables of Optuna")  # PostgreSQL's advisory locks have numbers as names
SECONDS_OF_OUTAGE = 600.0
SECONDS_BETWEEN_ATTEMPTS = 1.0
SECONDS_FOR_LOCK = 10.0  # a server takes a while to notice that the process with the lock was killed


class _Database:
    """A study's storage in a database, and the connection that holds the study's lock."""

    def __init__(self, address: str, study: str, connections: contextlib.ExitStack) -> None:
        self._address = address
        self._study = study
        self._connections = connections
        connection = connections.enter_context(_connect(address))
        # several studies may start on an empty database at once; only one may create the tables
        connection.execute(sqlalchemy.text("select pg_advisory_lock(:name)"), {"name": TABLES_LOCK})
        self.storage = RDBStorage(address, heartbeat_interval=None)
        connection.execute(sqlalchemy.text("select pg_advisory_unlock(:name)"), {"name": TABLES_LOCK})
        _lock_study(connection, study)

    def recover(self, error: Exception) -> None:
        """Return when the database answers again and the study is locked again; raise what is no outage."""
        cause = error.__cause__ or error
        if not _is_outage(cause):
            raise error
        reason = str(cause.orig if isinstance(cause, DBAPIError) else "the connection was lost").splitlines()[0]
        log.warning("tune.storage: %s; trying again for ten minutes", reason)
        deadline = time.monotonic() + SECONDS_OF_OUTAGE
        while True:
            self.close()
            time.sleep(SECONDS_BETWEEN_ATTEMPTS)
            try:
                _lock_study(self._connections.enter_context(_connect(self._address)), self._study)
            except (UserError, SQLAlchemyError):
                if time.monotonic() > deadline:
                    raise error from None
            else:
                return

    def close(self) -> None:
        """Close all connections."""
        self.storage.remove_session()
        self.storage.engine.dispose()
        with contextlib.suppress(SQLAlchemyError):
            self._connections.close()


def _is_outage(cause: BaseException) -> bool:
    """Whether an error says that the connection is lost, and not that a request was wrong."""
    if isinstance(cause, PendingRollbackError):  # Optuna has asked again after such an error
        return True
    return isinstance(cause, DBAPIError) and (cause.connection_invalidated or isinstance(cause, OperationalError))


@contextlib.contextmanager
def _database(address: str, study: str) -> Iterator[_Database]:
    try:
        with contextlib.ExitStack() as connections:
            database = _Database(address, study, connections)
            try:
                yield database
            finally:
                database.close()
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise RunFailed(f"tune.storage: the database failed ({cause}); run again and the study resumes") from error


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
        url = engine.url.render_as_string(hide_password=True)
        raise UserError(f"tune.storage: cannot reach {url}: {str(error.orig).splitlines()[0]}") from None
    with connection:
        yield connection


def _lock_study(connection: sqlalchemy.Connection, study: str) -> None:
    """Lock the study as long as the connection lives; other machines cannot see a lock file."""
    deadline = time.monotonic() + SECONDS_FOR_LOCK
    query = sqlalchemy.text("select pg_try_advisory_lock(:name)")
    while not connection.scalar(query, {"name": derive("study", study)}):
        if time.monotonic() > deadline:
            raise UserError(f"tune.storage: another process is running the study {study}; wait for it to end")
        time.sleep(0.1)
