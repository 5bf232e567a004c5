"""An experiment's files and its report, written once."""

import shutil
from io import BytesIO
from pathlib import Path

import fake_experiment
import pytest
from matplotlib.figure import Figure

from iakd.experiment.jobs import Experiment
from iakd.stages import report


@pytest.fixture(scope="session")
def _experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Experiment]:
    folder = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = fake_experiment.example(methods=5)
        report.run(experiment)
        return folder, experiment


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _experiment: tuple[Path, Experiment]) -> Experiment:
    """An experiment whose results and report are below the current folder."""
    folder, experiment = _experiment
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return experiment


@pytest.fixture
def real_pdfs() -> None:
    """For tests that look at the PDFs: they are drawn."""


@pytest.fixture(autouse=True)
def _empty_pdfs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the PDFs empty where no test looks at them: to draw them takes half of the time of a report."""
    if "real_pdfs" in request.fixturenames:
        return
    draw = Figure.savefig

    def save(figure: Figure, out: Path | BytesIO, **options: object) -> None:
        if options.get("format") != "pdf":
            draw(figure, out, **options)

    monkeypatch.setattr(Figure, "savefig", save)
