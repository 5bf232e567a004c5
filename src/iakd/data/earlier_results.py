"""What was trained earlier under the name of a data set: results that it must not replace, or that are now stale."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iakd.config import SOURCES
from iakd.errors import UserError
from iakd.experiment.jobs import RESULTS, Experiment
from iakd.experiment.run_dir import RUN
from iakd.files import plural

_Trained = tuple[dict[str, Any], str | None]  # the settings and the hash of the data of a training or study


def refuse_other_data(experiment: Experiment) -> None:
    """Raise UserError if there are results of a different data set with the name of this one.

    That is one of another source, or in another folder, which still exists. Other settings than these describe another
    preparation of the same data.
    """
    new = experiment.data.settings
    others = [old for old, _ in trainings_on(experiment) if _differs(old, new)]
    if others:
        folder = RESULTS / experiment.params.dataset.name
        path = f" at {others[0]['path']}" if others[0].get("path") else ""
        raise UserError(
            f"{folder} holds {plural(len(others), 'training')} on other data ({others[0]['source']}{path}): give "
            f"this data set another dataset.name, or delete {folder}"
        )


def describe_stale(experiment: Experiment, sha256: str) -> str | None:
    """Return a sentence on the results that were not made with the data that is now prepared; None if there are none.

    `sha256` is the hash of the prepared data.
    """
    new = experiment.data.settings
    stale = [old for old, data_sha256 in trainings_on(experiment) if old != new or data_sha256 != sha256]
    if not stale:
        return None
    old = stale[0]
    changed = [f"{name} {old.get(name)} → {new.get(name)}" for name in {**new, **old} if old.get(name) != new.get(name)]
    return (
        f"{plural(len(stale), 'training')} in {RESULTS / experiment.params.dataset.name} used other data "
        f"({', '.join(changed) or 'the images have changed'}); stale until trained again"
    )


def trainings_on(experiment: Experiment) -> Iterator[_Trained]:
    """Yield the data of each finished training and study below results/<name>/."""
    for path in sorted((RESULTS / experiment.params.dataset.name).glob(f"*/**/{RUN}")):
        try:
            record = json.loads(path.read_text())
            settings = record["params"]["data"]
            if isinstance(settings["source"], str):
                yield settings, record.get("data_sha256")
        except (OSError, ValueError, KeyError, TypeError):  # no record of ours, or one that others complain about
            continue


def _differs(old: dict[str, Any], new: dict[str, Any]) -> bool:
    if old["source"] != new["source"]:
        return True
    published = "mirror" in SOURCES[new["source"]].settings  # the same wherever it is
    if published or not isinstance(old.get("path"), str) or not isinstance(new.get("path"), str):
        return False
    before, now = (Path(settings["path"]).expanduser() for settings in (old, new))
    return before.exists() and now.exists() and not before.samefile(now)
