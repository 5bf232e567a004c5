"""The pages that MLflow opens for an experiment: its saved views, which are tags of the experiment.

A view is JSON with a name, a time, and the state of the page: rows, columns and charts. Its id is a part of the page's
address, so it never changes.
"""

import base64
import json
import zlib
from typing import Any

TAG = "mlflow.sharedViewState."
STUDENTS, TRIALS = "iakd-students", "iakd-trials"
CURRENT = "tags.`iakd.settings` = 'current'"
MOST_RUNS = 100  # in a chart


def view_tags(created: int) -> dict[str, str]:
    """Return the views as tags of an experiment that was `created` then (ms since 1970)."""
    views = {
        STUDENTS: ("Students by method", _students()),
        TRIALS: ("Trials of the studies", _trials()),
    }
    return {
        f"{TAG}{view}": json.dumps({"name": name, "createdAt": created, "state": _packed(state)})
        for view, (name, state) in views.items()
    }


def _students() -> dict[str, Any]:
    """Teachers and students of the current settings; a row for each pair and method, with means over the seeds."""
    columns = [
        *(_tag(name) for name in ("method", "pair", "seed")),
        *(_metric(name) for name in ("val_top1", "test_top1", "parameters", "latency_ms", "wall_seconds")),
        _attribute("Models"),
        _attribute("Dataset"),
    ]
    charts = {
        "Accuracy in %": [("BAR", "test_top1"), ("BAR", "val_top1"), ("LINE", "val_top1")],
        "Training": [("LINE", "loss"), ("LINE", "train_top1"), ("LINE", "lr")],
        "Cost": [("BAR", "parameters"), ("BAR", "latency_ms"), ("BAR", "wall_seconds")],
    }
    groups = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "iakd.group"}]}
    rows = f"tags.`iakd.stage` != 'tune' and tags.`iakd.stage` != 'report' and tags.`iakd.trial` IS NULL and {CURRENT}"
    return _state(rows, _metric("test_top1"), columns, charts, groups)


def _trials() -> dict[str, Any]:
    """The trials of all studies, the best first."""
    columns = [_tag("method"), _tag("trial"), _metric("value"), _metric("std"), _tag("state"), _tag("pair")]
    charts = {"Accuracy on the validation images in %": [("BAR", "value")]}
    rows = f"tags.`iakd.stage` = 'trial' and {CURRENT}"
    return _state(rows, _metric("value"), columns, charts, None)


def _state(
    rows: str, order: str, columns: list[str], charts: dict[str, list[tuple[str, str]]], groups: dict[str, Any] | None
) -> dict[str, Any]:
    sections = [
        {"uuid": name, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}
        for name in charts
    ]
    cards = [_chart(kind, metric, section) for section, shown in charts.items() for kind, metric in shown]
    return {
        "searchFilter": rows,
        "orderByKey": order,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {_attribute("Run Name"): 300, _tag("method"): 160, _tag("pair"): 170},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "groupBy": groups,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "compareRunCharts": cards,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _chart(kind: str, metric: str, section: str) -> dict[str, Any]:
    chart = {
        "uuid": f"{section} {kind} {metric}",
        "type": kind,
        "runsCountToCompare": MOST_RUNS,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "metricKey": metric,
    }
    if kind == "LINE":
        chart |= {
            "selectedMetricKeys": [metric],
            "lineSmoothness": 0,
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "xAxisKey": "step",
            "selectedXAxisMetricKey": "",
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "range": {},
            "ignoreOutliers": False,
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
        }
    return chart


def _packed(state: dict[str, Any]) -> str:
    """Return a state as MLflow's pages store it; tags may have 5,000 characters."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()


def _tag(name: str) -> str:
    return f"tags.`iakd.{name}`"


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _attribute(name: str) -> str:
    return f"attributes.`{name}`"
