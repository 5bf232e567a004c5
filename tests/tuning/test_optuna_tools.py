"""A study opens in Optuna's own tools as it is: the dashboard, and the recipe for a notebook in docs/tuning.md."""

import io
import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from toy_study import ToyStudy

from iakd import files
from iakd.tuning.results import finished_trials

DOCS = Path(__file__).parents[2] / "docs/tuning.md"


def get(app: Any, path: str) -> Any:
    """What a web application answers to GET, as JSON."""
    status = []
    environment = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO()}
    answer = app(environment, lambda line, headers, error=None: status.append(line))
    content = b"".join(answer)
    assert status == ["200 OK"], content
    return json.loads(content)


def test_the_dashboard_shows_a_journal(copied: ToyStudy) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    journal = copied.results / "study.journal"
    before = journal.read_bytes()
    from optuna_dashboard._storage_url import get_storage  # what the command does with its argument

    app = dashboard.wsgi(get_storage(str(journal)))
    (study,) = get(app, "/api/studies")["study_summaries"]
    assert study["study_name"] == "toy/big-small/iakd-tuned"
    shown = get(app, f"/api/studies/{study['study_id']}")
    assert shown["objective_names"] == ["top-1 on validation images (%)"]
    assert len(shown["trials"]) == 10
    attributes = {one["key"]: one["value"] for one in shown["user_attrs"]}
    assert {"dataset": "toy", "pair": "big-small", "method": "iakd-tuned"}.items() <= attributes.items()
    assert "git_commit" in attributes
    assert journal.read_bytes() == before
    assert [path.name for path in journal.parent.glob("study.journal*")] == ["study.journal"]


def test_two_objectives_have_names(study: ToyStudy) -> None:
    study.run(trials=2, seeds=1, objective="accuracy_and_macs", pruner={"kind": "none"})
    stored = recipe(study.results / "study.journal")
    assert stored.metric_names == ["top-1 on validation images (%)", "multiply–adds of a training"]


def test_a_study_may_search_for_balanced_accuracy(study: ToyStudy) -> None:
    study.run(trials=4, seeds=1, objective="balanced_accuracy", pruner={"kind": "none"})
    rows = finished_trials(study.results)
    for row in rows:
        metrics = files.read_json(study.results / f"trials/{row['number']:04d}/seed0/metrics.json", "")
        assert row["value"] == metrics["val_balanced_accuracy"] != metrics["val_top1"]
    assert max(row["value"] for row in rows) == files.read_json(study.results / "metrics.json", "")["best_value"]
    assert recipe(study.results / "study.journal").metric_names == ["balanced accuracy on validation images (%)"]


def test_the_recipe_for_a_notebook_works(copied: ToyStudy) -> None:
    study = recipe(copied.results / "study.journal")
    assert study.study_name == "toy/big-small/iakd-tuned"
    assert len(study.trials_dataframe()) == 10
    optuna.visualization.matplotlib.plot_optimization_history(study)


def recipe(journal: Path) -> optuna.Study:
    """Run the first lines of the recipe, which load the study."""
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "load_study" in code]
    names: dict[str, Any] = {}
    exec(re.sub(r'journal = ".*"', f"journal = {str(journal)!r}", code.partition("\n\nstudy.best")[0]), names)
    found: optuna.Study = names["study"]
    return found
