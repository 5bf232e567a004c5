"""Every setting of an experiment, defined once: names, types, bounds, defaults and what each means.

`params.yaml` is read into `Params`; `workflow/schemas/params.schema.json` is generated from it (`iakd schema`).
"""

from iakd.config.base import did_you_mean, explain, explain_all, merged
from iakd.config.dataset import SOURCES, Dataset, GroupBy
from iakd.config.experiment import (
    Compute,
    Device,
    Distill,
    Evaluate,
    Only,
    Pair,
    Params,
    Report,
    Teach,
    Tracking,
    network_called,
)
from iakd.config.export import Export, NamedModel
from iakd.config.loading import load, load_teachers, params_text, parse, read_settings, remember, schema_text, typed
from iakd.config.method_options import IakdOptions
from iakd.config.methods import METHODS, Method, shortest_sum
from iakd.config.networks import Network, Normalisation, Teacher
from iakd.config.schedule import KINDS, Schedule
from iakd.config.search_space import Candidate, Parameter, SearchSpace
from iakd.config.training import Augment, Erase, LrSchedule, Mix, Recipe
from iakd.config.tuning import Candidates, Pruner, Sampler, Space, Tune

__all__ = [
    "KINDS",
    "METHODS",
    "SOURCES",
    "Augment",
    "Candidate",
    "Candidates",
    "Compute",
    "Dataset",
    "Device",
    "Distill",
    "Erase",
    "Evaluate",
    "Export",
    "GroupBy",
    "IakdOptions",
    "LrSchedule",
    "Method",
    "Mix",
    "NamedModel",
    "Network",
    "Normalisation",
    "Only",
    "Pair",
    "Parameter",
    "Params",
    "Pruner",
    "Recipe",
    "Report",
    "Sampler",
    "Schedule",
    "SearchSpace",
    "Space",
    "Teach",
    "Teacher",
    "Tracking",
    "Tune",
    "did_you_mean",
    "explain",
    "explain_all",
    "load",
    "load_teachers",
    "merged",
    "network_called",
    "params_text",
    "parse",
    "read_settings",
    "remember",
    "schema_text",
    "shortest_sum",
    "typed",
]
