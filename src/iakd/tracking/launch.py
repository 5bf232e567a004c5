"""Starting the follower, and waiting for it at the end of a workflow; neither fails or delays a training."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import yaml

from iakd import files
from iakd.config import Params
from iakd.errors import RunFailed
from iakd.processes import SHARED_TRAINING, WITH_PARENT
from iakd.tracking import locks
from iakd.tracking.place import FOLDER, Place, place_of
from iakd.tracking.scan import scan, signature

log = logging.getLogger(__name__)
LOG, LOG_BYTES = "follow.log", 1_000_000
LATER = "MLflow is not brought up to date now ({}); `iakd track sync` does it at any time"
_at_work: list[IO[str]] = []  # locks that tell followers, for the life of this process, that there is work
_started: list[subprocess.Popen[bytes]] = []  # kept, so that Python does not warn about children that go on


def launch(params: Params) -> None:
    """Have a process of its own show this tree's runs in MLflow as long as this process lives.

    Takes a few ms and never raises.
    """
    try:
        place = place_of(params)
        if place is None:
            return
        place.folder.mkdir(parents=True, exist_ok=True)
        users = locks.share(place.folder / locks.USERS)
        if users:
            _at_work.append(users)
        if users is None or not files.held(place.folder / locks.FOLLOWER):
            start(place, params)
    except Exception as error:  # a training matters more than the view of it, whatever went wrong
        log.warning(LATER.format(error))


def start(place: Place, params: Params) -> subprocess.Popen[bytes]:
    """Start a follower that outlives this process; one that is not needed ends by itself."""
    settings = place.folder / "params.yaml"
    text = yaml.safe_dump(params.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    if not settings.exists() or settings.read_text() != text:
        files.write_text(settings, text)
    command = [sys.executable, "-m", "iakd", "track", "follow", "--params", str(settings)]
    environment = {name: value for name, value in os.environ.items() if name not in (WITH_PARENT, *SHARED_TRAINING)}
    with _log_file(FOLDER / LOG).open("ab") as errors:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
    _started.append(child)
    return child


def _log_file(path: Path) -> Path:
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path


def finish(params: Params, timeout: float = 60) -> None:
    """Have MLflow show the last of a workflow and wait for the follower to end; never raises.

    Waits at most `timeout` seconds; not at all where nothing changed since the last mirroring, and where
    trainings go on elsewhere, only until all that has finished is shown.
    """
    try:
        place = place_of(params)
        if place is not None:
            _finish(place, params, time.monotonic() + timeout)
    except Exception as error:  # see `launch`
        log.warning(LATER.format(error))


def _finish(place: Place, params: Params, deadline: float) -> None:
    follower = place.folder / locks.FOLLOWER
    if place.mirrored() == signature(scan(place.dataset)) and not files.held(follower):
        return
    place.check()
    place.folder.mkdir(parents=True, exist_ok=True)
    child: subprocess.Popen[bytes] | None = None
    flush = locks.share(place.folder / locks.FLUSH)
    try:
        while time.monotonic() < deadline:
            began = time.monotonic()
            settled = place.mirrored() == signature(scan(place.dataset))
            alive = files.held(follower) or (child is not None and child.poll() is None)
            if settled and (not alive or locks.shared(place.folder / locks.USERS)):
                return
            if not alive:
                if child:
                    raise RunFailed(f"{FOLDER / LOG} tells why")
                child = start(place, params)
            time.sleep(max(0.2, 5 * (time.monotonic() - began)))
    finally:
        if flush:
            flush.close()
    raise RunFailed("it takes longer than expected")
