"""Every setting of an experiment, defined once: names, types, bounds, defaults and what each means.

`params.yaml` is read into `Params`; `workflow/schemas/params.schema.json` is generated from it (`iakd schema`).
"""

from iakd.params.base import did_you_mean, explain, merged
from iakd.params.dataset import DATASET_OPTIONS, Dataset
from iakd.params.experiment import Compute, Distill, Evaluate, Pair, Params, Report, Teach, Tracking, network_called
from iakd.params.methods import METHODS, Iakd, Kd, LabelSmoothing, Method, Schedule
from iakd.params.reading import load, parse, schema_text
from iakd.params.teacher import Normalisation, Teacher
from iakd.params.training import Augment, Erase, LrSchedule, Mix, Network, Recipe
from iakd.params.tuning import Pruner, Sampler, Space, Tune

__all__ = [
    "DATASET_OPTIONS",
    "METHODS",
    "Augment",
    "Compute",
    "Dataset",
    "Distill",
    "Erase",
    "Evaluate",
    "Iakd",
    "Kd",
    "LabelSmoothing",
    "LrSchedule",
    "Method",
    "Mix",
    "Network",
    "Normalisation",
    "Pair",
    "Params",
    "Pruner",
    "Recipe",
    "Report",
    "Sampler",
    "Schedule",
    "Space",
    "Teach",
    "Teacher",
    "Tracking",
    "Tune",
    "did_you_mean",
    "explain",
    "load",
    "merged",
    "network_called",
    "parse",
    "schema_text",
]
