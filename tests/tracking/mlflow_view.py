"""What a user sees of an experiment in MLflow."""

from typing import Any

from mlflow import MlflowClient

from iakd.config import Params


class MlflowView:
    """Reads back, through MLflow's own client, what was mirrored for some settings."""

    def __init__(self, params: Params) -> None:
        self.client = MlflowClient(tracking_uri=params.tracking.uri)
        self.experiment_name = params.tracking.experiment or f"iakd-{params.dataset.name}"

    def runs(self) -> dict[str, Any]:
        """Return the experiment's runs by key; empty if it does not exist yet. Two runs with one key are an error."""
        experiment = self.client.get_experiment_by_name(self.experiment_name)
        runs = self.client.search_runs([experiment.experiment_id]) if experiment else []
        by_key = {run.data.tags["iakd.key"]: run for run in runs}
        assert len(by_key) == len(runs)
        return by_key

    def only_run(self) -> Any:
        """Return the experiment's only run."""
        (run,) = self.runs().values()
        return run

    def values(self, run: Any, metric: str) -> list[tuple[int, float]]:
        """Return steps and values of a metric."""
        history = self.client.get_metric_history(run.info.run_id, metric)
        return sorted((value.step, value.value) for value in history)

    def artifacts(self, run: Any, folder: str | None = None) -> set[str]:
        """Return the paths of a run's artifacts."""
        return {file.path for file in self.client.list_artifacts(run.info.run_id, folder)}
