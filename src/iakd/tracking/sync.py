"""`iakd track sync`: MLflow brought up to date with the files, once and wholly."""

import logging
import time

from iakd.config import Params
from iakd.errors import RunFailed
from iakd.tracking.mirror import Mirror
from iakd.tracking.place import place_of
from iakd.tracking.scan import scan

log = logging.getLogger(__name__)
PATIENCE = 600.0  # seconds for another mirroring to end


def sync(params: Params) -> str:
    """Mirror all files into MLflow; returns one line that sums it up.

    Idempotent; rebuilds a database that is gone. Raises RunFailed where MLflow does not answer or refuses a
    run, UserError where the experiment was deleted.
    """
    place = place_of(params)
    if place is None:
        return "MLflow: nothing done, the settings say tracking.enabled: false"
    place.folder.mkdir(parents=True, exist_ok=True)
    mirror = Mirror(place)
    while not (outcome := mirror.bring(scan(place.dataset), PATIENCE)).complete:
        time.sleep(0.5)
    if mirror.left_out:
        path, reason = next((where[0], reason) for where, reason in mirror.left_out.items())
        count = f"{len(mirror.left_out)} of {outcome.runs} runs could not be shown"
        raise RunFailed(f"MLflow {place.shown}: {count}; {path}: {reason}")
    damaged = f", {outcome.damaged} left out because files are damaged" if outcome.damaged else ""
    runs = f"{outcome.runs} runs, {outcome.new} new{damaged}"
    return f"MLflow {place.shown}, experiment {place.experiment}: {runs}"
