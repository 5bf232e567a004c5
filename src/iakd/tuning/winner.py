"""schedule.yaml: the best schedule that a study found."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from iakd import files
from iakd.errors import UserError
from iakd.params import Schedule, explain

SCHEDULE = "schedule.yaml"


def write_schedule(folder: Path, study: str, number: int, value: float, settings: dict[str, object]) -> Path:
    """Write the settings that the kind of trial `number` uses; the trial reached `value` percent."""
    head = f"# Best schedule of the study {study}: trial {number}, {value:.2f} % on validation\n"
    files.write_text(folder / SCHEDULE, head + yaml.safe_dump(settings, sort_keys=False))
    return folder / SCHEDULE


def read_schedule(folder: Path) -> Schedule:
    """The schedule in a study's results folder. Raises UserError where it is missing or damaged."""
    path = folder / SCHEDULE
    try:
        return Schedule.model_validate(yaml.safe_load(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run `iakd tune` first") from None
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({explain(error, Schedule)}): run `iakd tune` again") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}): run `iakd tune` again") from None
