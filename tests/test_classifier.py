"""A finished model in use: `iakd.load`, `iakd predict` and `iakd evaluate --model`, away from its experiment."""

import csv
import io
import json
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx import load as load_onnx
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import iakd
from iakd import cli, config, models
from iakd.config import Normalisation
from iakd.data.decoding import decode_all, from_file
from iakd.data.loader import DeviceLoader
from iakd.errors import UserError
from iakd.evaluation.metrics import classification_metrics
from iakd.export.convert import Deployed, to_onnx
from iakd.export.folder import Model, Preprocessing, labels_text, weights_file
from iakd.models.network import initialise
from iakd.stages.predict import predict as predict_files
from iakd.training.validation import predict

SIDE = 12
CLASSES = ["ant", "bee", "cat"]
CROP = 0.875
NORMALISATION = Normalisation(mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3])
NETWORK = config.Network(arch="resnet8", width=8)
Iakd = Callable[..., tuple[int, str, str]]


def pixels(height: int, width: int, seed: int) -> np.ndarray:
    """A coloured picture with some structure."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def two_bit_png(grey: np.ndarray, transparent: int) -> bytes:
    """A PNG of four grey levels, one of them transparent, which Pillow can read but not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = grey.shape
    padded = np.pad(grey.astype(np.uint8), ((0, 0), (0, -width % 4)))
    packed = padded[:, 0::4] << 6 | padded[:, 1::4] << 4 | padded[:, 2::4] << 2 | padded[:, 3::4]
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, 2, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", header),
            chunk(b"tRNS", struct.pack(">H", transparent)),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def write_photos(root: Path) -> Path:
    """Three classes of photos of many sizes, formats and modes; one JPEG lies on its side and says so."""
    for position, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        picture = [Image.fromarray(pixels(20 + 9 * i, 45 - 3 * i, 10 * position + i)) for i in range(6)]
        exif = Image.Exif()
        exif[0x0112] = 6
        picture[0].save(root / name / "turned.jpg", exif=exif, quality=95)
        picture[1].convert("CMYK").save(root / name / "print.jpg")
        picture[2].convert("L").save(root / name / "grey.png")
        picture[3].putalpha(128)
        picture[3].save(root / name / "glass.png")
        picture[4].quantize(16).save(root / name / "few.gif")
        deep = np.asarray(picture[5].convert("L")).astype(np.uint16) * 257
        Image.fromarray(deep).save(root / name / "deep.tif")
        Image.fromarray(pixels(150, 180, 90 + position)).save(root / name / "large.jpg")
        holes = picture[2].convert("L").point(lambda grey: grey // 64)
        (root / name / "holes.png").write_bytes(two_bit_png(np.asarray(holes), transparent=1))
    return root


def export(
    folder: Path, classes: list[str] = CLASSES, channels: int = 3, chosen: config.Network = NETWORK
) -> models.Network:
    """Write a model as `iakd export` does, and return its network."""
    network = models.build(chosen, channels, len(classes))
    initialise(network, torch.Generator().manual_seed(3))
    with torch.no_grad():  # statistics that it would have after a training
        network.train()(torch.randn(64, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(4)))
    network.normalisation = NORMALISATION if channels == 3 else Normalisation(mean=[0.4], std=[0.2])
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(
        weights_file(network.eval(), Model(chosen, (channels, SIDE, SIDE), len(classes)))
    )
    (folder / "labels.txt").write_text(labels_text(classes))
    about = Preprocessing(
        size=(SIDE, SIDE),
        crop=CROP,
        channels=channels,
        mode="RGB" if channels == 3 else "L",
        mean=network.normalisation.mean,
        std=network.normalisation.std,
        classes=len(classes),
    )
    (folder / "preprocessing.json").write_text(about.model_dump_json())
    return network


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "all")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    export(folder)
    return folder


@pytest.fixture(scope="module")
def onnx(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as an ONNX file without anything beside it."""
    path = tmp_path_factory.mktemp("onnx") / "alone.onnx"
    network = models.build(NETWORK, 3, 3)
    models.load_weights(network, (exported / "model.safetensors").read_bytes(), "")
    normalisation = SimpleNamespace(mean=NORMALISATION.mean, std=NORMALISATION.std)  # as a data set has them
    path.write_bytes(to_onnx(Deployed(network, normalisation), (3, SIDE, SIDE), {}))  # type: ignore[arg-type]
    return path


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> Iakd:
    """Run the command line in this process, in an empty folder: (exit code, stdout, log and stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["iakd", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        caplog.clear()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capfd.readouterr()
        return int(exit.value.code or 0), out, "\n".join([*caplog.messages, err])

    return call


def mistake(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2 and one line on stderr that has all the words."""
    code, out, err = result
    assert code == 2, err
    assert "Traceback" not in err and not out
    last = err.strip().splitlines()[-1]
    assert last.startswith("iakd: ")
    for word in words:
        assert word in last


def files_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def as_the_pipeline(paths: list[Path], network: models.Network) -> torch.Tensor:
    """Logits of the files as `iakd prepare` stores them and `iakd evaluate` computes them."""
    decoded = decode_all((from_file(p) for p in paths), len(paths), 3, (SIDE, SIDE), "refuse", "", CROP)
    assert network.normalisation
    data = DeviceLoader(
        decoded.images, np.zeros(len(paths), np.int64), network.normalisation.mean, network.normalisation.std, "cpu"
    )
    return predict(network, data, 8)[0]


def network_of(exported: Path) -> models.Network:
    network = models.build(NETWORK, 3, 3)
    models.load_weights(network, (exported / "model.safetensors").read_bytes(), "")
    network.normalisation = NORMALISATION
    return network


def test_files_are_classified_as_the_pipeline_evaluates_them(exported: Path, photos: Path) -> None:
    paths = files_below(photos)
    expected = as_the_pipeline(paths, network_of(exported))
    assert len(set(expected.argmax(1).tolist())) > 1, "a model that always says the same would hide mistakes"
    classifier = iakd.load(exported, device="cpu")
    torch.testing.assert_close(classifier.logits(paths, batch_size=4), expected, atol=1e-4, rtol=1e-4)
    found = classifier.predict(paths, top=2)
    for prediction, logits in zip(found, expected, strict=True):
        probabilities = logits.double().softmax(0)
        best = probabilities.argsort(descending=True).tolist()
        assert [label for label, _ in prediction.top] == [CLASSES[i] for i in best[:2]]
        assert prediction.label == CLASSES[best[0]]
        assert prediction.probability == pytest.approx(float(probabilities.max()), abs=1e-4)


@pytest.mark.parametrize("loader", [str, Image.open], ids=["files", "images"])
def test_the_transform_and_the_module_are_plain_pytorch(
    exported: Path, photos: Path, loader: Callable[[str], object]
) -> None:
    """In a DataLoader with processes they do what `predict` does; of JPEG files only where it opens them itself."""
    classifier = iakd.load(exported, device="cpu")
    data = ImageFolder(str(photos), transform=classifier.transform, loader=loader)
    logits, labels = [], []
    for images, some in DataLoader(data, batch_size=5, num_workers=1):
        with torch.no_grad():
            logits.append(classifier.module(images))
        labels += some.tolist()
    assert labels == data.targets
    paths = [path for path, _ in data.samples]
    same = torch.tensor([loader is str or not path.endswith(".jpg") for path in paths])
    found, expected = torch.cat(logits)[same], classifier.logits(paths)[same]
    assert len(found) >= 12
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_images_in_memory(exported: Path, photos: Path) -> None:
    classifier = iakd.load(exported, device="cpu")
    path = photos / "bee" / "grey.png"
    image = Image.open(path)
    grey = np.asarray(Image.open(path))
    expected = classifier.logits(path)
    for same in (image, grey, grey[..., None], torch.from_numpy(np.array(grey))[None], image.convert("RGB")):
        torch.testing.assert_close(classifier.logits([same]), expected)
    mixed = classifier.logits([path, image, path])
    torch.testing.assert_close(mixed, expected.expand(3, -1))
    assert classifier.transform(image).shape == (3, SIDE, SIDE)
    assert classifier.transform(image).min() >= 0 and classifier.transform(image).max() <= 1
    with pytest.raises(iakd.UserError, match=r"image 2 has pixels of type float64; give uint8"):
        classifier.predict([image, grey / 255.0])


def test_a_transform_leaves_the_image_as_it_was(exported: Path, photos: Path) -> None:
    image = Image.open(photos / "ant" / "large.jpg")
    iakd.load(exported, device="cpu").transform(image)
    assert image.size == (180, 150)


def test_onnx_beside_the_others_gives_the_same(exported: Path, onnx: Path, photos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    shutil.copy(onnx, folder / "model.onnx")
    paths = files_below(photos)
    torch.testing.assert_close(
        iakd.load(folder / "model.onnx").logits(paths), iakd.load(exported).logits(paths), atol=1e-4, rtol=1e-4
    )


def test_weights_go_back_to_the_library_of_the_architecture(tmp_path: Path) -> None:
    """As docs/api.md shows it."""
    from torchvision.models import mobilenet_v3_small

    export(tmp_path / "model", chosen=config.Network(arch="torchvision/mobilenet_v3_small"))
    model = iakd.load(tmp_path / "model", device="cpu")
    theirs, ours = mobilenet_v3_small(num_classes=3), model.module.state_dict()
    assert isinstance(model.module, models.Network)
    theirs.load_state_dict({name: ours[own] for name, own in model.module.original_names.items()})
    images = torch.rand(2, 3, SIDE, SIDE)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (NORMALISATION.mean, NORMALISATION.std))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()((images - mean) / std), model.module(images), atol=1e-4, rtol=1e-4)


def test_a_network_from_elsewhere(photos: Path) -> None:
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    classifier = iakd.Classifier(network, ["dark", "light"], 16, device="cpu")
    assert {found.label for found in classifier.predict(files_below(photos))} <= {"dark", "light"}
    with pytest.raises(iakd.UserError, match=r"returns \(2,\) numbers for each image, and 3 classes are named"):
        iakd.Classifier(network, CLASSES, 16)
    with pytest.raises(iakd.UserError, match=r"the model cannot compute images of 1×16×16"):
        iakd.Classifier(network, ["dark", "light"], 16, channels=1)


# --- iakd predict ---


def test_predict_writes_csv(exported: Path, photos: Path, run: Iakd) -> None:
    """Folders, files and patterns, in the order in which they are named."""
    pattern = photos / "cat" / "*.png"
    code, out, err = run("predict", exported, photos / "bee", photos / "ant" / "few.gif", pattern, "--top", "2")
    assert code == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    named = [*files_below(photos / "bee"), photos / "ant" / "few.gif", *sorted((photos / "cat").glob("*.png"))]
    assert [row["path"] for row in rows] == [str(path) for path in named]
    for row, found in zip(rows, iakd.load(exported).predict(named, top=2), strict=True):
        assert (row["class"], row["class_2"]) == tuple(label for label, _ in found.top)
        assert float(row["probability"]) == pytest.approx(found.probability, abs=1e-5)
        assert float(row["probability"]) >= float(row["probability_2"])


def test_predict_writes_json_lines_to_a_file(exported: Path, photos: Path, run: Iakd, tmp_path: Path) -> None:
    listed = [photos / "ant" / "grey.png", photos / "cat" / "turned.jpg"]
    code, out, _ = run(
        *("predict", exported, "-", "--format", "jsonl", "--output", "found.jsonl"),
        stdin="".join(f"{path}\n" for path in listed),
    )
    assert code == 0 and out.strip() == "found.jsonl"
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    expected = iakd.load(exported).predict(listed)
    assert [line["path"] for line in lines] == [str(path) for path in listed]
    assert [line["classes"][0]["class"] for line in lines] == [found.label for found in expected]


def test_unreadable_images_are_named_and_left_out(exported: Path, photos: Path, run: Iakd, tmp_path: Path) -> None:
    folder = shutil.copytree(photos / "ant", tmp_path / "ant")
    good = [path.name for path in files_below(folder)]
    (folder / "broken.jpg").write_bytes((folder / "large.jpg").read_bytes()[:900])
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").touch()
    (folder / os.fsdecode(b"caf\xe9.png")).touch()  # of another encoding
    (folder / "notes.txt").write_text("no image by its name")
    code, out, err = run("predict", exported, folder)
    assert code == 1
    assert [Path(row["path"]).name for row in csv.DictReader(out.splitlines())] == good
    for name in ("broken.jpg cannot be read", "text.png is not an image", "empty.png is empty", "caf\\udce9.png is"):
        assert name in err
    assert err.strip().splitlines()[-1] == "iakd: 4 of 12 images could not be read, and were left out"
    code, out, err = run("predict", exported, "-", stdin=f"{folder / 'gone.png'}\n{folder / 'grey.png'}\n")
    assert code == 1 and "gone.png cannot be read (No such file or directory)" in err and "grey.png" in out


def test_predict_ends_quietly_when_nobody_reads_on(
    exported: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `iakd predict … | head`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        predict_files(iakd.load(exported), [str(photos)])
        print("what is buffered goes nowhere")


def test_mistakes_in_a_call_of_predict(exported: Path, photos: Path, run: Iakd, tmp_path: Path) -> None:
    image = photos / "ant" / "grey.png"
    mistake(run("predict", tmp_path / "gone", image), "gone does not exist")
    mistake(run("predict", photos, image), "all is not an exported model: it has no preprocessing.json; `iakd export`")
    mistake(run("predict", exported.parent, image), f"is not an exported model; give {exported}")
    mistake(run("predict", exported, image, tmp_path / "no.png"), "no.png does not exist")
    mistake(run("predict", exported, tmp_path / "*.png"), "*.png matches no file")
    (tmp_path / "bare").mkdir()
    mistake(run("predict", exported, tmp_path / "bare"), "bare has no images")
    mistake(run("predict", exported, image, "--top", "4"), "--top 4: the model has 3 classes")
    if not torch.cuda.is_available():
        mistake(run("predict", exported, image, "--device", "cuda"), "torch sees no GPU")
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


def test_the_folder_of_a_training_is_no_exported_model(photos: Path, run: Iakd, tmp_path: Path) -> None:
    folder = tmp_path / "results/photos/students/big-small/kd/seed3"
    folder.mkdir(parents=True)
    (folder / "run.json").touch()
    (folder / "model.safetensors").touch()
    words = ["seed3 is not an exported model, but a training's folder", "'export.models=[big-small/kd/seed3]'"]
    mistake(run("predict", folder, photos), *words)
    mistake(run("evaluate", "--model", folder, "--data", photos), *words)


def test_mistakes_in_a_call_of_the_interface(exported: Path, photos: Path) -> None:
    with pytest.raises(UserError, match=r"^device 'tpu': unknown; known: auto, cpu, cuda$"):
        iakd.load(exported, device="tpu")  # type: ignore[arg-type]
    model, image = iakd.load(exported), files_below(photos)[0]
    with pytest.raises(UserError, match=r"^top 0: give a number of classes, at least 1"):
        model.predict(image, top=0)
    for size in (0, 2.5):
        with pytest.raises(UserError, match=rf"^batch_size {size}: give a number of images, at least 1"):
            model.predict(image, batch_size=size)  # type: ignore[arg-type]
    for given, words in (
        ({"channels": 2}, "channels 2: images have 1 or 3"),
        ({"crop_pct": 0.0}, "crop_pct 0.0: give"),
    ):
        with pytest.raises(UserError, match=words):
            iakd.Classifier(nn.Flatten(), ["a"], 8, **given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the model is a str; give"):
        iakd.Classifier("resnet8", ["a"], 8)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="path is a NoneType"):
        iakd.load(None)  # type: ignore[arg-type]
    closed = Image.new("RGB", (8, 8))
    closed.close()
    with pytest.raises(UserError, match="image 1 cannot be read"):
        model.predict(closed)
    for wrong in (3, None, [image, 3]):
        with pytest.raises(UserError, match=r"^image [12] is (int|NoneType), not a file, an image of Pillow"):
            model.predict(wrong)  # type: ignore[arg-type]
    assert model.predict([]) == []


def damage(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "labels.txt").unlink(), ["labels.txt does not exist"]),
        (lambda folder: (folder / "labels.txt").write_text("ant\nbee\n"), ["names 2 classes", "has 3"]),
        (lambda folder: damage(folder, "model.safetensors"), ["model.safetensors is damaged"]),
        (lambda folder: damage(folder, "preprocessing.json"), ["preprocessing.json"]),
        (
            lambda folder: save_file({"weight": torch.zeros(2)}, folder / "model.safetensors"),
            ["does not say how its network is built"],
        ),
        (
            lambda folder: (folder / "preprocessing.json").write_text(
                (folder / "preprocessing.json").read_text().replace('"channels":3', '"channels":1')
            ),
            ["takes images of 3 channels, not of 1"],
        ),
    ],
)
def test_a_damaged_model_is_one_line(
    exported: Path, photos: Path, run: Iakd, tmp_path: Path, change: Callable[[Path], None], words: list[str]
) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    change(folder)
    mistake(run("predict", folder, photos), *words)


def test_files_of_other_kinds_are_refused(exported: Path, photos: Path, run: Iakd, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / "model.onnx").write_bytes(b"not a model")
    mistake(run("predict", folder / "model.onnx", photos), "not a usable ONNX file")
    (folder / "model.pt2").write_bytes(b"PK")
    mistake(run("predict", folder / "model.pt2", photos), "can hold code, which is not run")
    mistake(run("predict", folder / "labels.txt", photos), "labels.txt is not a model; load the folder")


def test_a_grey_model_takes_coloured_photos(photos: Path, tmp_path: Path) -> None:
    export(tmp_path / "grey", channels=1)
    classifier = iakd.load(tmp_path / "grey")
    assert classifier.transform(Image.open(photos / "ant" / "turned.jpg")).shape == (1, SIDE, SIDE)
    assert len(classifier.predict(files_below(photos))) == len(files_below(photos))


# --- iakd evaluate --model ---


def measured(exported: Path, photos: Path) -> dict[str, object]:
    """What `evaluate` should say of the photos."""
    paths = files_below(photos)
    truth = np.array([CLASSES.index(path.parent.name) for path in paths])
    return classification_metrics(as_the_pipeline(paths, network_of(exported)).numpy(), truth)


def test_a_model_is_measured_on_labelled_photos(exported: Path, photos: Path, run: Iakd) -> None:
    code, out, err = run("evaluate", "--model", exported, "--data", photos)
    assert code == 0, err
    found, expected = json.loads(out), measured(exported, photos)
    assert found["n"] == len(files_below(photos)) and found["left_out"] == 0 and found["classes"] == CLASSES
    for name in ("top1", "per_class_top1", "confusion"):
        assert found[name] == expected[name]
    assert found["nll"] == pytest.approx(expected["nll"], abs=1e-4)
    assert found["parameters"] == sum(p.numel() for p in network_of(exported).parameters())


def test_of_a_test_set_without_some_classes(exported: Path, photos: Path, run: Iakd, tmp_path: Path) -> None:
    for name in ("bee", "cat"):
        shutil.copytree(photos / name, tmp_path / "some" / name)
    found = json.loads(run("evaluate", "--model", exported, "--data", tmp_path / "some")[1])
    expected = measured(exported, photos)["per_class_top1"]
    assert isinstance(expected, list) and found["per_class_top1"] == [None, *expected[1:]]


def test_a_model_from_elsewhere_is_measured(
    exported: Path, onnx: Path, photos: Path, run: Iakd, tmp_path: Path
) -> None:
    """An ONNX file alone says its size itself; a checkpoint needs its architecture. Both give the same."""
    code, out, err = run("evaluate", "--model", onnx, "--data", photos, "--normalisation", "none", "--crop-pct", CROP)
    assert code == 0, err
    found, expected = json.loads(out), measured(exported, photos)
    assert found["confusion"] == expected["confusion"]
    network = models.build(config.Network(arch="resnet8"), 3, 3)
    torch.save(network.state_dict(), tmp_path / "elsewhere.pth")
    (tmp_path / "names.txt").write_text("\ufeffcat\r\nbee\nant\n\n", encoding="utf-8")
    options = ("--arch", "resnet8", "--normalisation", "half", "--size", "12", "--labels", "names.txt")
    code, out, err = run("evaluate", "--model", "elsewhere.pth", "--data", photos, *options, "--output", "found.json")
    assert code == 0 and out.strip() == "found.json", err
    found = json.loads((tmp_path / "found.json").read_text())
    for taken in ("/dev/null", tmp_path):
        code, _, err = run("evaluate", "--model", "elsewhere.pth", "--data", photos, *options, "--output", taken)
        assert code == 2 and f"{taken} is no regular file" in err
    paths = files_below(photos)
    decoded = decode_all((from_file(p) for p in paths), len(paths), 3, (12, 12), "refuse", "")
    truth = np.array([["cat", "bee", "ant"].index(path.parent.name) for path in paths])
    logits = predict(network, DeviceLoader(decoded.images, truth, [0.5] * 3, [0.5] * 3, "cpu"), 8)[0]
    assert found["confusion"] == classification_metrics(logits.numpy(), truth)["confusion"]


@pytest.mark.parametrize("change", ["fixed batch", "half precision", "probabilities"])
def test_onnx_files_of_other_exporters(
    exported: Path, onnx: Path, photos: Path, run: Iakd, tmp_path: Path, change: str
) -> None:
    """Many are made for one image at a time, in half precision, or end with a softmax."""
    graph = load_onnx(onnx)
    if change == "fixed batch":
        graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
        graph.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 5
    elif change == "half precision":
        graph.graph.node.insert(0, helper.make_node("Cast", ["half"], ["images"], to=TensorProto.FLOAT))
        graph.graph.input[0].name = "half"
        graph.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    else:
        graph.graph.node.append(helper.make_node("Softmax", ["logits"], ["p"], axis=1))
        graph.graph.output[0].name = "p"
    (tmp_path / "other.onnx").write_bytes(graph.SerializeToString())
    options = ("--data", photos, "--normalisation", "none", "--crop-pct", CROP)
    code, out, err = run("evaluate", "--model", tmp_path / "other.onnx", *map(str, options))
    assert code == 0, err
    found, expected = json.loads(out), measured(exported, photos)
    if change != "half precision":
        assert found["confusion"] == expected["confusion"]
    assert found["nll"] == pytest.approx(expected["nll"], rel=1e-2 if change == "half precision" else 1e-4)


def test_onnx_files_that_take_no_such_images(onnx: Path, photos: Path, run: Iakd, tmp_path: Path) -> None:
    graph = load_onnx(onnx)
    shape = graph.graph.input[0].type.tensor_type.shape
    graph.graph.node.insert(0, helper.make_node("Transpose", ["last"], ["images"], perm=[0, 3, 1, 2]))
    graph.graph.input[0].name = "last"
    for dimension, value in zip(shape.dim, (1, SIDE, SIDE, 3), strict=True):
        dimension.dim_value = value
    (tmp_path / "last.onnx").write_bytes(graph.SerializeToString())
    given = ("--data", photos, "--normalisation", "none")
    mistake(run("evaluate", "--model", tmp_path / "last.onnx", *given), "takes images (B, H, W, C); only models that")
    graph = load_onnx(onnx)
    graph.graph.node.insert(0, helper.make_node("Cast", ["bytes"], ["images"], to=TensorProto.FLOAT))
    graph.graph.input[0].name = "bytes"
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    (tmp_path / "bytes.onnx").write_bytes(graph.SerializeToString())
    mistake(run("evaluate", "--model", tmp_path / "bytes.onnx", *given), "takes tensor(uint8); only floating-point")


def test_images_that_cannot_be_read_are_counted(exported: Path, photos: Path, run: Iakd, tmp_path: Path) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "bee" / "broken.png").write_bytes(b"\x89PNG broken")
    code, out, err = run("evaluate", "--model", exported, "--data", folder)
    assert code == 1 and "broken.png is not an image" in err
    found = json.loads(out)
    assert found["left_out"] == 1 and found["confusion"] == measured(exported, photos)["confusion"]


def test_a_model_near_chance_is_told(photos: Path, run: Iakd, tmp_path: Path) -> None:
    export(tmp_path / "wrong", classes=["cat", "ant", "bee"])
    assert "near chance; check normalisation" in run("evaluate", "--model", tmp_path / "wrong", "--data", photos)[2]


def test_mistakes_in_a_call_of_evaluate(exported: Path, onnx: Path, photos: Path, run: Iakd, tmp_path: Path) -> None:
    mistake(run("evaluate", "--model", exported), "--model and --data belong together")
    mistake(run("evaluate", "--size", "12"), "--model and --data belong together")
    mistake(run("evaluate", "--model", exported, "--data", photos, "--set", "a=1"), "leave out --run and --set")
    mistake(run("evaluate", "--model", exported, "--data", photos, "--size", "9"), "says itself what --size is")
    mistake(run("evaluate", "--model", tmp_path / "gone", "--data", photos), "gone does not exist")
    mistake(run("evaluate", "--model", exported, "--data", tmp_path / "gone"), "gone is not a folder")
    mistake(run("evaluate", "--model", onnx, "--data", photos), "say with --normalisation")
    mistake(
        run("evaluate", "--model", onnx, "--data", photos, "--normalisation", "imagnet"), "did you mean 'imagenet'?"
    )
    mistake(
        run("evaluate", "--model", onnx, "--data", photos, "--normalisation", "none", "--channels", "1"),
        "cannot compute images of 1×12×12",
    )
    torch.save(models.build(NETWORK, 3, 3).state_dict(), tmp_path / "elsewhere.pth")
    given = ("evaluate", "--model", tmp_path / "elsewhere.pth", "--data", photos, "--normalisation", "none")
    mistake(run(*given), "say with --size")
    mistake(run(*given, "--size", "12"), "say with --arch")
    mistake(run(*given, "--size", "12", "--arch", "resnet8x4"), "elsewhere.pth")
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n")
    mistake(run(*given, "--size", "12", "--arch", "resnet8", "--labels", "four.txt"), "it tells 3 classes apart")
    (tmp_path / "data").mkdir()
    shutil.copytree(photos, tmp_path / "data" / "test")
    mistake(run("evaluate", "--model", exported, "--data", tmp_path / "data"), "has parts, such as test/")
    shutil.copytree(photos / "ant", photos.parent / "ants" / "ants")
    shutil.copytree(photos / "bee", photos.parent / "ants" / "bee")
    mistake(run("evaluate", "--model", exported, "--data", photos.parent / "ants"), "no class 'ants' (did you mean")
