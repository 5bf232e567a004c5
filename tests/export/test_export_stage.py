"""What `iakd export` writes, chooses, refuses and leaves alone, on real data and hardly trained networks."""

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iakd import models
from iakd.config import parse
from iakd.data.decoding import from_file
from iakd.data.store import PreparedData
from iakd.distillation.assembly import network_of
from iakd.errors import UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudentJob, TeacherJob, plan_experiment
from iakd.export import model_card
from iakd.export.folder import Preprocessing, read_labels, read_preprocessing
from iakd.files import with_hash
from iakd.models.network import initialise
from iakd.models.quantisation import each_bits
from iakd.stages import latency, prepare
from iakd.stages.evaluate import evaluate_run
from iakd.stages.export import run

FILES = {
    *("model.onnx", "model.pt2", "model.safetensors", "labels.txt", "preprocessing.json", "README.md", "export.json"),
}
VALIDATION = {("kd", 0): 50.0, ("kd", 1): 70.0, ("scratch", 0): 61.0, ("scratch", 1): 62.0}  # scratch: higher mean


def plan(**more: object) -> Experiment:
    raw = {
        "teachers": [{"arch": "resnet8", "width": 4, "name": "big"}],
        "students": [{"arch": "resnet8", "width": 2, "name": "small"}],
        "methods": {"kd": {}, "scratch": {}},
        "distill": {"seeds": [0, 1]},
        "evaluate": {"latency_runs": 1},
        "compute": {"device": "cpu"},
    }
    return plan_experiment(parse({**raw, **more}, "test"))


def publish(job: TeacherJob | StudentJob, store: PreparedData, val_top1: float) -> None:
    """Publish a network as its training would."""
    network = models.build(job.network if isinstance(job, TeacherJob) else job.student, 1, 10)
    initialise(network, torch.Generator().manual_seed(job.seed))
    with torch.no_grad():
        for _ in each_bits(network):
            network.train()(torch.from_numpy(np.array(store.images("train")[:64])).float() / 255)  # ranges of few bits
    inputs = {"data": store.sha256}
    attempt = run_dir.Run(job.path, job.stage, job.key, job.settings, job.seed, {"dataset": "digits"}, inputs)
    with attempt.open():
        attempt.finish([{"epoch": 1}], {"val_top1": val_top1, "val_nll": 1.0}, models.save_weights(network))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = plan()
        prepare.run(experiment)
        store = PreparedData.open(experiment.data.folder)
        for job in experiment.trained:
            publish(job, store, 0.0 if isinstance(job, TeacherJob) else VALIDATION[job.label, job.seed])
            evaluate_run(experiment, job.folder)
        run(experiment, experiment.exports[0])
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path) -> Path:
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results/digits/export/big-small"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_best_seed_of_the_best_method_on_validation_images(here: Path) -> None:
    """One lucky seed of kd is better than all of scratch; test images have no say."""
    index = read(here / "exported.json")
    assert index["chosen_by"] == "validation"
    assert [(model["method"], model["seed"], model["folder"]) for model in index["models"]] == [
        ("scratch", 1, "scratch")
    ]
    assert {path.name for path in (here / "scratch").iterdir()} - {"model-int8.onnx"} == FILES
    record = read(here / "scratch/export.json")
    evaluation = read(Path("results/digits/students/big-small/scratch/seed1/evaluation.json"))
    assert record["evaluation"]["top1"] == evaluation["top1"]
    assert record["agreement"]["model.onnx"]["top1"] == record["agreement"]["model.onnx"]["n"] > 100
    assert read_labels(here / "scratch/labels.txt") == [str(digit) for digit in range(10)]
    how = read(here / "scratch/preprocessing.json")
    manifest = read(Path("results/digits/data/manifest.json"))
    assert (how["size"], how["channels"], how["mode"], how["classes"]) == ([8, 8], 1, "L", 10)
    assert (how["mean"], how["std"]) == (manifest["mean"], manifest["std"])
    assert read_preprocessing(here / "scratch/preprocessing.json").input_name == "images"


def code_of_the_card(folder: Path) -> str:
    match = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert match
    return match[1]


def test_the_code_of_the_card_has_the_accuracy_of_the_evaluation(here: Path) -> None:
    """It imports nothing but onnxruntime, numpy and pillow, and gets the test images as files."""
    store = PreparedData.open(Path("results/digits/data"))
    folder = here / "scratch"
    images, labels = store.images("test"), store.labels("test")
    for position, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / f"{position:04}.png")
    (folder / "classify.py").write_text(code_of_the_card(folder))
    names = sorted(path.name for path in folder.glob("*.png"))
    forbidden = "import sys; sys.modules.update(torch=None, torchvision=None, iakd=None, onnx=None, scipy=None); "
    run_it = f"import runpy; sys.argv = ['', *{names}]; runpy.run_path('classify.py')"
    done = subprocess.run([sys.executable, "-c", forbidden + run_it], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = [line.split("\t")[1] for line in done.stdout.splitlines()]
    accuracy = 100 * np.mean([name == str(label) for name, label in zip(named, labels, strict=True)])
    evaluation = read(Path("results/digits/students/big-small/scratch/seed1/evaluation.json"))
    assert accuracy == pytest.approx(evaluation["top1"], abs=1e-9)


def test_the_code_of_the_card_prepares_files_as_the_pipeline_does(here: Path, tmp_path: Path) -> None:
    how = {"size": [24, 32], "crop": 0.9, "mode": "RGB"}
    preprocessing = Preprocessing(**how, channels=3, mean=[0.5] * 3, std=[0.5] * 3, classes=10)
    colours = np.random.default_rng(0).integers(0, 256, (7, 9, 4), dtype=np.uint8)
    photo = Image.fromarray(colours[..., :3]).resize((230, 170), Image.Resampling.BICUBIC)
    clear = Image.fromarray(colours).resize((90, 60), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[274] = 6
    grey16 = Image.fromarray((np.arange(50 * 60).reshape(50, 60) * 21).astype(np.uint16))
    files: dict[str, tuple[Image.Image, dict]] = {
        "colour.jpg": (photo, {"quality": 90}),
        "turned.jpg": (photo, {"quality": 90, "exif": turned}),
        "grey.jpg": (photo.convert("L"), {}),
        "cmyk.jpg": (photo.convert("CMYK"), {}),
        "colour.png": (photo, {}),
        "exact.png": (photo.resize((32, 24)), {}),
        "small.png": (photo.resize((20, 31)), {}),
        "palette.png": (photo.convert("P"), {}),
        "clear.png": (clear, {}),
        "clear.webp": (clear, {"lossless": True}),
        "greyclear.png": (clear.convert("LA"), {}),
        "still.gif": (photo.convert("P"), {"transparency": 3}),
        "bits.png": (photo.convert("1"), {}),
        "grey16.png": (grey16, {}),
        "colour.tif": (photo, {}),
        "turned.tif": (photo, {"exif": turned}),
        "turned.webp": (photo, {"exif": turned}),
        "turned.png": (clear, {"exif": turned}),
    }
    names: dict = {"__name__": "card"}
    start = code_of_the_card(here / "scratch").split("\nfor path")[0]
    exec(re.sub(r"how, labels = .*\nmodel = .*\n", "", start), names)
    for mode in ("RGB", "L"):
        of_mode = preprocessing.model_copy(update={"mode": mode, "channels": len(mode)})
        names["how"] = {**how, "mode": mode}
        for name, (image, options) in files.items():
            image.save(tmp_path / name, **options)
            expected = of_mode.decode(from_file(tmp_path / name)).astype(np.float32) / np.float32(255)
            prepared = names["prepare"](tmp_path / name)
            assert prepared.dtype == np.float32 and np.array_equal(prepared, expected), (name, mode)


def test_exporting_again_changes_nothing(here: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (here / "scratch").iterdir()}
    run(plan(), plan().exports[0])
    assert {path: path.stat().st_mtime_ns for path in (here / "scratch").iterdir()} == before


def test_a_damaged_export_is_made_again_with_the_same_bytes(here: Path) -> None:
    before = contents(here)
    (here / "scratch/model.onnx").write_bytes(b"")
    run(plan(), plan().exports[0])
    assert contents(here) == before


def test_named_models_leave_and_an_earlier_choice_goes(here: Path) -> None:
    experiment = plan(export={"models": ["big-small/kd/seed0"], "int8": "off"})
    run(experiment, experiment.exports[0])
    index = read(here / "exported.json")
    assert [(model["method"], model["seed"]) for model in index["models"]] == [("kd", 0)]
    assert index["chosen_by"] == "settings"
    assert {path.name for path in here.iterdir()} == {"exported.json", "kd"}
    assert {path.name for path in (here / "kd").iterdir()} == FILES


def test_the_best_seed_of_each_named_method(here: Path) -> None:
    experiment = plan(export={"models": ["big-small/kd", "big-small/scratch"], "int8": "off"})
    run(experiment, experiment.exports[0])
    assert [(m["method"], m["seed"]) for m in read(here / "exported.json")["models"]] == [("kd", 1), ("scratch", 1)]
    for name in ("kd", "scratch"):
        card = (here / name / "README.md").read_text()
        assert "Seed 1 is the best of 2 on the validation images." in card
        assert "is the best on" not in card, "the settings have chosen the methods"


def test_no_model_is_exported_if_none_is_named() -> None:
    assert plan(export={"models": []}).exports == []


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["big-small/kdd"], "export.models: no method 'kdd' (did you mean 'kd'?); known: kd, scratch"),
        (["big-smal/kd"], "export.models: no pair 'big-smal' (did you mean 'big-small'?); known: big-small"),
        (["big-small/kd/seed7"], "export.models: no seed '7'; known: 0, 1"),
        (["big-small/kd", "big-small/kd/seed0"], "export.models: big-small/kd is listed twice"),
    ],
)
def test_unknown_models_are_refused(models: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        plan(export={"models": models})


def test_methods_with_fewer_seeds_are_no_contenders(here: Path) -> None:
    fewer = plan(methods={"kd": {}, "scratch": {"seeds": 1}})
    run(fewer, fewer.exports[0])
    assert read(here / "exported.json")["models"][0]["method"] == "kd", "scratch is better, perhaps by luck"
    card = " ".join((here / "kd/README.md").read_text().split())
    assert "`kd` is the only method with 2 seeds; seed 1 is the best of 2 on the validation images." in card


def test_a_seed_that_the_method_is_not_trained_with_is_refused() -> None:
    methods = {"scratch": {"seeds": 1}, "kd": {}}
    plan(methods=methods, export={"models": ["big-small/kd/seed1"]})
    with pytest.raises(UserError, match=re.escape("export.models: no seed '1'; known: 0")):
        plan(methods=methods, export={"models": ["big-small/scratch/seed1"]})


def test_int8_is_kept_if_asked_for_and_if_it_is_good_and_small_enough(here: Path) -> None:
    """These networks are so small that the tables of scales outweigh the weights, so `auto` keeps none."""
    assert read(here / "scratch/export.json")["int8"]["kept"] is False
    experiment = plan(export={"int8": "on", "models": ["big-small/kd/seed0"]})
    run(experiment, experiment.exports[0])
    found = read(here / "kd/export.json")["int8"]
    assert found["kept"] is True and found["evaluation"]["n"] == read(here / "kd/export.json")["evaluation"]["n"]
    assert abs(found["evaluation"]["top1"] - read(here / "kd/export.json")["evaluation"]["top1"]) < 5
    assert found["bytes"] == (here / "kd/model-int8.onnx").stat().st_size
    assert "model-int8.onnx" in (here / "kd/README.md").read_text()


@pytest.mark.parametrize("name", ["run.json", "evaluation.json", "metrics.json"])
def test_a_missing_record_is_told_and_nothing_changes(here: Path, name: str) -> None:
    before = contents(here)
    Path(f"results/digits/students/big-small/kd/seed1/{name}").unlink()
    with pytest.raises(UserError, match=rf"kd/seed1/{name} does not exist: run `iakd (distill|evaluate) "):
        run(plan(), plan().exports[0])
    assert contents(here) == before


def test_an_evaluation_of_other_weights_is_refused(here: Path) -> None:
    path = Path("results/digits/students/big-small/kd/seed1/evaluation.json")
    path.write_text(json.dumps(with_hash({**read(path), "model_sha256": "0"})))
    with pytest.raises(UserError, match=r"evaluation\.json is of another model: run `iakd evaluate --run "):
        run(plan(), plan().exports[0])


def test_a_killed_export_leaves_the_old_one_and_the_next_one_clears_up(here: Path, tmp_path: Path) -> None:
    """Killed at any moment: every name is a complete export or absent."""
    shutil.rmtree(here / "scratch")
    settings = tmp_path / "params.json"
    settings.write_text(plan().params.model_dump_json(exclude_defaults=True))
    process = subprocess.Popen(
        [sys.executable, "-m", "iakd", "export", "--params", settings], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not any(here.glob(".other*/*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(here.glob(".other*")) and not (here / "scratch").exists()
    run(plan(), plan().exports[0])
    assert {path.name for path in here.iterdir()} == {"exported.json", "scratch"}
    assert {path.name for path in (here / "scratch").iterdir()} == FILES


@pytest.mark.parametrize(("options", "error"), [("size=128k", errno.ENOSPC), ("ro", errno.EROFS)])
def test_a_full_or_read_only_target_gets_nothing(here: Path, options: str, error: int) -> None:
    """The command line tells such an error in one line. A real file system in memory, which only root may mount."""
    shutil.rmtree(here)
    here.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", here], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        with pytest.raises(OSError) as raised:
            run(plan(), plan().exports[0])
        assert raised.value.errno == error
        assert raised.value.filename == str(here.relative_to(Path.cwd())), "as the user knows it"
        assert not list(here.iterdir())
        subprocess.run(["mount", "-o", "remount,rw,size=4m", here], check=True)
        run(plan(), plan().exports[0])
        assert {path.name for path in here.iterdir()} == {"exported.json", "scratch"}
    finally:
        subprocess.run(["umount", here], check=True)


def test_a_target_that_is_a_file_is_told_in_one_line(here: Path, tmp_path: Path) -> None:
    shutil.rmtree(here)
    here.touch()
    settings = tmp_path / "params.json"
    settings.write_text(plan().params.model_dump_json(exclude_defaults=True))
    command = [sys.executable, "-m", "iakd", "export", "--params", settings]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    what = f"{here.relative_to(tmp_path)}: File exists; move the file that is where a folder should be"
    assert done.stderr == f"iakd: {what}, then run again\n"


def test_each_network_is_measured_once_and_in_a_process_of_its_own(here: Path) -> None:
    """Students of two methods and two seeds are one network; that in 8-bit integers is the exported one."""
    experiment = plan(export={"models": ["big-small/kd/seed1"], "int8": "on"})
    run(experiment, experiment.exports[0])
    assert latency.run(experiment).resolve() == here.parent / "latency.json"
    found = read(here.parent / "latency.json")
    students = ["big-small/kd", "big-small/scratch"]
    assert [(model["network"], model["precision"], model["of"]) for model in found["models"]] == [
        ("big", "float32", ["big"]),
        ("small", "int8", students),
        ("small", "float32", students),
    ]
    _, int8, float_model = found["models"]
    assert int8["bytes"] == (here / "kd/model-int8.onnx").stat().st_size
    assert float_model["bytes"] == (here / "kd/model.onnx").stat().st_size
    for model in found["models"]:
        assert model["memory_mib"] > 0 and model["bytes"] > 1000
        assert list(model["batches"]) == ["1", "8", "32"]
        for size, batch in model["batches"].items():
            assert 0 < batch["median_ms"] <= batch["p95_ms"] and batch["runs"] >= 10
            assert batch["images_per_s"] == pytest.approx(1000 * int(size) / batch["median_ms"])
    assert (found["threads"], found["cores"] > 0, found["left_out"]) == (1, True, [])
    assert all(found[name] for name in ("processor", "system", "onnxruntime"))
    before = (here.parent / "latency.json").read_bytes()
    latency.run(experiment)
    assert (here.parent / "latency.json").read_bytes() == before, "the same files are measured once"
    run(plan(), plan().exports[0])
    latency.run(plan())
    assert (here.parent / "latency.json").read_bytes() != before


def test_students_that_are_not_exported_are_measured_too(here: Path) -> None:
    """What a method adds to the student is another network."""
    more = {"methods": {"kd": {}, "simkd": {}}, "distill": {"seeds": [0]}, "export": {"models": ["big-small/kd"]}}
    experiment = plan(**more)
    store = PreparedData.open(experiment.data.folder)
    changed = next(job for job in experiment.students if job.label == "simkd")
    network = network_of(changed, store)
    attempt = run_dir.Run(changed.path, "distill", changed.key, changed.settings, 0, {}, {"data": store.sha256})
    with attempt.open():
        attempt.finish([{"epoch": 1}], {"val_top1": 1.0, "val_nll": 1.0}, models.save_weights(network))
    evaluate_run(experiment, changed.folder)
    run(experiment, experiment.exports[0])
    latency.run(experiment)
    found = [(model["network"], model["of"], model["bytes"]) for model in read(here.parent / "latency.json")["models"]]
    assert [(name, of) for name, of, _ in found] == [
        ("big", ["big"]),
        ("small", ["big-small/kd"]),
        ("small", ["big-small/simkd"]),
    ]
    assert found[1][2] < found[2][2]
    graphs = {path.parent.name for path in experiment.graphs.glob("*/model.onnx")}
    assert len(graphs) == 2, "the teacher's and that of simkd; kd's is exported"


def test_nothing_is_measured_before_it_is_exported(here: Path) -> None:
    (here / "exported.json").unlink()
    with pytest.raises(UserError, match=r"exported\.json does not exist: run `iakd export --pair big-small`"):
        latency.run(plan())


def test_students_of_several_bit_widths_leave_with_each_of_them(here: Path) -> None:
    experiment = plan(
        students=[{"arch": "resnet8", "width": 2, "name": "small", "bits": [2, 8]}],
        methods={"scratch": {}},
        distill={"seeds": [0]},
    )
    store = PreparedData.open(experiment.data.folder)
    job = experiment.students[0]
    publish(job, store, 50.0)
    evaluate_run(experiment, job.folder)
    run(experiment, experiment.exports[0])
    record = read(here / "scratch/export.json")
    assert FILES | {"model-2bit.onnx"} == {path.name for path in (here / "scratch").iterdir()}
    assert record["int8"] is None
    assert set(record["agreement"]) == {"model.onnx", "model.pt2", "model.safetensors", "model-2bit.onnx"}
    latency.run(experiment)
    measured = read(here.parent / "latency.json")["models"]
    assert [(model["network"], model["precision"]) for model in measured] == [
        *(("big", "float32"), ("small", "2 bits"), ("small", "8 bits"))
    ]
    assert measured[1]["bytes"] == (here / "scratch/model-2bit.onnx").stat().st_size


def test_names_of_classes_mean_nothing_in_markdown() -> None:
    assert model_card._cell("<b>x</b> a|b *c* [d]\n`e`") == r"&lt;b&gt;x&lt;/b&gt; a\|b \*c\* \[d\] \`e\`"
