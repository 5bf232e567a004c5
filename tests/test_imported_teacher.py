"""A teacher of the user's own, from a foreign training checkpoint to students and their evaluation."""

import http.server
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from iakd import files, models
from iakd.config import parse
from iakd.data.store import PreparedData
from iakd.errors import RunFailed, UserError
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.files import with_hash
from iakd.models.external import torchvision
from iakd.stages import distill, evaluate, import_teacher, prepare, report, teach
from iakd.tracking import content
from iakd.tracking.scan import scan

SMALL = {"arch": "resnet8", "width": 8}
MINE = {**SMALL, "name": "mine", "checkpoint": "bought/teacher.pth.tar"}


def plan_of(teacher: dict[str, Any], **changes: Any) -> Experiment:
    raw = {
        "dataset": {"name": "own", "source": "digits"},
        "teachers": [teacher],
        "students": [{"arch": "resnet8", "width": 8, "name": "small"}],
        "methods": {
            "kd": {},
            "iakd": {"iakd": {"stem": "teacher"}},
            "scratch-from-teacher": {"method": "scratch", "init": "teacher"},
        },
        "teach": {"seeds": [3, 4], "recipe": {"epochs": 8, "lr": 0.1, "batch_size": 64}},
        "distill": {"seeds": [0, 1], "transfer": 100, "recipe": {"epochs": 2, "batch_size": 50}},
        "evaluate": {"latency_runs": 1},
        "compute": {"device": "cpu"},
        "tracking": {"enabled": False},
    }
    return plan_experiment(parse({**raw, **changes}, "test"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared digits and a teacher in the form that another project would have saved it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = plan_of({**SMALL, "name": "first"})
        prepare.run(experiment)
        weights = load_file(teach.run(experiment, experiment.teachers[0]) / "model.safetensors")
        store = PreparedData.open(experiment.data.folder)
    parts = {"stem.0": "conv1", "stem.1": "bn1", "head.2": "linear"}
    state = {}
    for name, tensor in weights.items():
        for ours, theirs in parts.items():
            name = name.replace(f"{ours}.", f"{theirs}.")
        for stage in range(3):
            name = name.replace(f"stages.{stage}.", f"layer{stage + 1}.").replace("shortcut", "downsample")
        state[f"module.{name}"] = tensor
    (folder / "bought").mkdir()
    torch.save({"epoch": 8, "state_dict": state, "best_acc": 97.0}, folder / "bought/teacher.pth.tar")
    (folder / "normalisation.json").write_text(json.dumps({"mean": store.mean, "std": store.std}))
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record(experiment: Experiment) -> dict[str, Any]:
    return json.loads((experiment.teachers[0].folder / "run.json").read_text())


def test_from_a_foreign_checkpoint_to_the_report(here: Path) -> None:
    experiment = plan_of(MINE)
    assert [job.seed for job in experiment.teachers] == [3], "there is one, whatever the seeds"
    assert {job.teacher.seed for job in experiment.students} == {3}
    folder = import_teacher.run(experiment, experiment.teachers[0])
    first = plan_of({**SMALL, "name": "first"}).teachers[0].folder
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, first))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (folder, first)]
    assert metrics[0]["val_top1"] == metrics[1]["val_top1"] > 50
    found = record(experiment)
    assert found["stage"] == "teach" and found["origin"] == "bought/teacher.pth.tar"
    assert found["inputs"]["checkpoint"] == files.sha256_file(here / "bought/teacher.pth.tar")
    for job in experiment.students:
        distill.run(experiment, job)
    evaluate.run(experiment)
    page = report.run(experiment).read_text()
    assert "imported" in page and "trained alone" not in page
    assert (
        "were not used for training, tuning or any choice here. What the imported teacher mine was trained with" in page
    )
    assert not (folder / "history.csv").read_text().strip()
    shown = next(run for run in scan("own") if run.path == "own/teachers/mine/seed3")
    mirrored = content.read_content(shown)
    assert mirrored.history == [] and mirrored.status == content.FINISHED


def test_nothing_is_done_twice_and_a_changed_file_is_imported_again(here: Path) -> None:
    experiment = plan_of(MINE)
    import_teacher.run(experiment, experiment.teachers[0])
    before = record(experiment)
    import_teacher.run(experiment, experiment.teachers[0])
    assert record(experiment) == before
    path = here / "bought/teacher.pth.tar"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["module.linear.bias"] += 0.01
    torch.save(checkpoint, path)
    import_teacher.run(experiment, experiment.teachers[0])
    assert record(experiment)["key"] != before["key"] and record(experiment)["model_sha256"] != before["model_sha256"]
    assert not list((here / ".state").rglob("download"))


def test_students_depend_on_the_weights_and_not_on_where_they_lie(here: Path) -> None:
    one, other = plan_of(MINE), plan_of({**MINE, "checkpoint": "bought/moved.pth"})
    assert one.teachers[0].key != other.teachers[0].key
    assert [job.key for job in one.students] == [job.key for job in other.students]
    third = plan_of({**MINE, "normalisation": "half"})
    assert all(a.key != b.key for a, b in zip(one.students, third.students, strict=True))
    assert one.teachers[0].key == plan_of(MINE, teach={"seeds": [3], "recipe": {"lr": 0.5}}).teachers[0].key, (
        "it is not trained"
    )


def test_a_teacher_of_other_settings_teaches_nobody(here: Path) -> None:
    import_teacher.run(plan_of(MINE), plan_of(MINE).teachers[0])
    experiment = plan_of({**MINE, "normalisation": "none"})
    with pytest.raises(UserError, match="made with other settings: run `iakd teach --teacher mine`"):
        distill.run(experiment, experiment.students[0])


def test_a_teacher_with_its_own_normalisation(here: Path) -> None:
    """The data set's told as the teacher's own, while the data set is normalised otherwise: all is as it was."""
    told = json.loads((here / "normalisation.json").read_text())
    reference = plan_of(MINE)
    import_teacher.run(reference, reference.teachers[0])
    expected = json.loads((reference.teachers[0].folder / "metrics.json").read_text())
    manifest = reference.data.folder / "manifest.json"
    changed = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(with_hash({**changed, "mean": [0.0], "std": [0.5]})))
    experiment = plan_of({**MINE, "name": "own_way", "normalisation": told})
    folder = import_teacher.run(experiment, experiment.teachers[0])
    found = json.loads((folder / "metrics.json").read_text())
    assert found["val_top1"] == expected["val_top1"] and found["val_nll"] == pytest.approx(
        expected["val_nll"], rel=1e-4
    )
    by_label = {job.label: job for job in experiment.students}
    assert by_label["kd"].normalisation is None
    for label in ("iakd", "scratch-from-teacher"):
        assert by_label[label].normalisation == experiment.teachers[0].normalisation, "its stem is the teacher's"
        (student,) = distill.run(experiment, by_label[label])
        evaluation = json.loads(evaluate.evaluate_run(experiment, student).read_text())
        validation = json.loads((student / "metrics.json").read_text())
        assert abs(evaluation["top1"] - validation["val_top1"]) < 12, "evaluated as it was trained"
    assert evaluation["top1"] > 60


def test_an_accuracy_near_chance_stops_with_the_reason(here: Path) -> None:
    path = here / "bought/teacher.pth.tar"
    good = torch.load(path, weights_only=True)["state_dict"]

    def refused(state: dict[str, torch.Tensor], **settings: Any) -> str:
        torch.save(state, path)
        experiment = plan_of({**MINE, **settings})
        with pytest.raises(UserError) as caught:
            import_teacher.run(experiment, experiment.teachers[0])
        assert not (experiment.teachers[0].folder / "run.json").exists()
        return str(caught.value)

    order = torch.tensor([*range(1, 10), 0])
    swapped = {k: v[order] if ".linear." in k else v for k, v in good.items()}
    assert "with its classes in another order it would be 9" in refused(swapped)
    far_off = {"mean": [-30.0], "std": [0.05]}
    message = refused(good, normalisation=far_off)
    assert "% on the validation images, where chance is 10" in message
    assert "without the setting normalisation it would be 9" in message
    nonsense = {k: torch.randn_like(v) if v.dim() > 1 else v for k, v in good.items()}
    assert "check normalisation, class order, channels" in refused(nonsense)


def test_mistakes_name_the_teacher_and_its_file(here: Path) -> None:
    for settings, words in (
        (
            {"checkpoint": "bought/absent.pth"},
            r"teacher mine: checkpoint bought/absent\.pth is not a file \(looked for",
        ),
        ({"width": 4}, r"teacher mine: checkpoint bought/teacher.pth.tar: it fits a teacher with width: 8"),
        ({"normalisation": "imagenet"}, "normalisation of the teacher: it has 3 channels, and the images have 1"),
    ):
        experiment = plan_of({**MINE, **settings})
        with pytest.raises(UserError, match=words):
            import_teacher.run(experiment, experiment.teachers[0])
        assert not experiment.teachers[0].folder.exists()


# --- by torchvision's name ---


@pytest.fixture
def publisher(here: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server on loopback that publishes weights of a small network under a name with their hash."""
    torch.save(models.build(plan_of(MINE).teachers[0].network, 1, 10).state_dict(), here / "weights.pth")
    name = f"weights-{files.sha256_file(here / 'weights.pth')[:8]}.pth"
    (here / "weights.pth").rename(here / name)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/{name}"
    monkeypatch.setattr(import_teacher, "weights_address", lambda arch, weights: url)
    yield here / name
    server.shutdown()


def test_weights_by_torchvisions_name_are_downloaded_once_and_checked(here: Path, publisher: Path) -> None:
    experiment = plan_of({"arch": "torchvision/resnet18", "checkpoint": "torchvision:IMAGENET1K_V1"})
    found = import_teacher._locate(experiment.params, experiment.teachers[0].network, here / "x")
    assert found.read_bytes() == publisher.read_bytes() and found.parent == Path(".cache/weights")
    publisher.write_bytes(b"other bytes")
    assert import_teacher._locate(experiment.params, experiment.teachers[0].network, here / "x") == found
    found.unlink()
    with pytest.raises(RunFailed, match=r"SHA256 differs.*set the teacher's `checkpoint`"):
        import_teacher._locate(experiment.params, experiment.teachers[0].network, here / "x")


def test_names_of_torchvisions_weights() -> None:
    address = torchvision.weights_address("torchvision/resnet50", "IMAGENET1K_V2")
    assert address.endswith("/resnet50-11ad3fa6.pth")
    with pytest.raises(UserError, match=r"no weights 'IMAGENET1K_V3' of torchvision/resnet50 \(did you mean"):
        torchvision.weights_address("torchvision/resnet50", "IMAGENET1K_V3")
