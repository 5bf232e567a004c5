"""Use a finished model on image files: classify them, or measure it on a folder of labelled ones.

Neither needs settings, nor the data that the model was trained on.
"""

import csv
import glob
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import track

from iakd import files
from iakd.classifier import (
    BATCH,
    Classifier,
    Prediction,
    export_hint,
    is_exported,
    load,
    load_foreign,
)
from iakd.config import Dataset, Device, Params, did_you_mean
from iakd.config.networks import USUAL
from iakd.data.decoding import BadImage
from iakd.data.layout import contents, files_below, is_image, parts_among, same_name
from iakd.data.sources.folders import find_images
from iakd.data.store import PreparedData
from iakd.distillation.assembly import finished_network
from iakd.errors import RunFailed, UserError, try_each
from iakd.evaluation.metrics import classification_metrics
from iakd.evaluation.plausibility import is_near_chance
from iakd.experiment.jobs import TeacherJob, plan_experiment, select
from iakd.experiment.run_dir import read_model
from iakd.models import Network
from iakd.models.flops import model_cost
from iakd.models.normalisation import adapt_input
from iakd.stages.import_teacher import imported

STDIN = "-"
SUM_OF_PROBABILITIES = 1e-2  # how far from 1 it may be, for outputs of half precision, too
Form = Literal["csv", "jsonl"]

log = logging.getLogger(__name__)


def predict(
    classifier: Classifier,
    inputs: list[str],
    form: Form = "csv",
    top: int = 1,
    batch_size: int = BATCH,
    output: Path | None = None,
) -> None:
    """Write path, classes and probabilities of images to `output`, or to standard output as they are computed.

    It ends without a word when nobody reads its standard output any more.

    `inputs` are files, folders (the images below them), patterns such as `photos/*.jpg`, and `-`: a list of files on
    standard input. Raises UserError, before anything is computed, for a path that does not exist; RunFailed, at the
    end, if some images could not be read, which are named on standard error and left out.
    """
    if not 1 <= top <= len(classifier.labels):
        raise UserError(f"--top {top}: the model has {len(classifier.labels)} classes")
    paths = _paths(inputs)
    bad = done = 0
    with ExitStack() as stack:
        out: IO[str] = sys.stdout
        if output:
            out = stack.enter_context(stack.enter_context(files.atomic_path(output)).open("w", encoding="utf-8"))
        write = _writer(out, form, top)
        for name, result in _shown(classifier.each(paths, batch_size), paths):
            done += 1
            if isinstance(result, BadImage):
                bad += 1
                log.warning("%s %s", files.printable(name), result)
                continue
            try:
                write(name, classifier.prediction(result, top))
                out.flush()
            except BrokenPipeError:  # the reader has seen enough, as in `| head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
                return
    if output:
        print(output)
    if bad:
        raise RunFailed(f"{bad} of {done} images could not be read, and were left out")


def _paths(inputs: list[str]) -> Iterable[Path]:
    """The images that `inputs` name; a list on standard input is read as it comes."""
    found: list[Path] = []
    for text in inputs:
        path = Path(text)
        if text == STDIN:
            continue
        if path.is_dir():
            below = list(files_below(path))
            images = [file for file in below if is_image(file)]
            if not images:
                raise UserError(f"{path} has no images")
            if len(images) < len(below):
                others = len(below) - len(images)
                log.warning("%s: %d files are not images, by their names, and were not read", path, others)
            found += images
        elif path.exists():
            found.append(path)
        elif glob.has_magic(text) and (matching := sorted(glob.glob(text, recursive=True))):  # noqa: PTH207 - also absolute
            found += _paths(matching)
        else:
            raise UserError(f"{text} {'matches no file' if glob.has_magic(text) else 'does not exist'}")
    return _and_listed(found) if STDIN in inputs else found


def _and_listed(found: list[Path]) -> Iterator[Path]:
    yield from found
    yield from (Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip())


def _writer(out: IO[str], form: Form, top: int) -> Any:
    """A function that writes the prediction of an image as a line."""
    if form == "jsonl":

        def write_json(name: str, found: Prediction) -> None:
            classes = [{"class": label, "probability": round(p, 6)} for label, p in found.top]
            print(json.dumps({"path": files.printable(name), "classes": classes}, ensure_ascii=False), file=out)

        return write_json
    writer = csv.writer(out, lineterminator="\n")
    numbers = ["", *(f"_{i}" for i in range(2, top + 1))]
    writer.writerow(["path", *(f"{column}{number}" for number in numbers for column in ("class", "probability"))])

    def write_csv(name: str, found: Prediction) -> None:
        cells = [cell for label, p in found.top for cell in (label, f"{p:.6f}")]
        writer.writerow([files.printable(name), *cells])

    return write_csv


def _shown(results: Iterator[Any], paths: Iterable[Path]) -> Iterator[Any]:
    """`results`, with a progress bar on a terminal."""
    total = len(paths) if isinstance(paths, list) else None
    console = Console(stderr=True)
    return iter(track(results, "images", total, console=console, disable=not console.is_terminal, transient=True))


def measure(classifier: Classifier, folder: Path, batch_size: int = BATCH) -> dict[str, Any]:
    """Return accuracy, calibration and cost of a model on the images of a folder with a folder for each class.

    Outputs that are probabilities already, as some models from elsewhere return, are taken as such. The values are
    those of evaluation.json: `top1` and `top5` in percent, `nll` in nats, …; `classes` names them in
    the order of `per_class_top1` and `confusion`, and `left_out` tells how many images could not be read, which are
    named in the log. Raises UserError for a folder whose subfolders are not classes of the model.
    """
    _, paths, labels = labelled_images(folder, classifier.labels)
    logits, truth, left_out = [], [], 0
    for label, (name, result) in zip(labels, _shown(classifier.each(paths, batch_size), paths), strict=True):
        if isinstance(result, BadImage):
            left_out += 1
            log.warning("%s %s", files.printable(name), result)
        else:
            logits.append(result.numpy())
            truth.append(label)
    if not logits:
        raise UserError(f"{folder}: none of its {len(paths)} image files can be read")
    known, outputs = np.asarray(truth, np.int64), np.stack(logits)
    if (outputs >= 0).all() and np.abs(outputs.sum(1) - 1).max() < SUM_OF_PROBABILITIES:
        log.info("%s: its outputs are probabilities", classifier.name)
        outputs = np.log(np.maximum(outputs, np.finfo(np.float32).tiny))
    found = classification_metrics(outputs, known)
    if is_near_chance(found["top1"] / 100, found["balanced_accuracy"] / 100, known, len(classifier.labels)):
        log.warning(
            "%s: only %.1f %%, near chance; check normalisation, order of classes, channels, image size and variant",
            classifier.name,
            found["top1"],
        )
    cost = {}
    if isinstance(classifier.module, Network):
        cost = model_cost(classifier.module, (classifier.channels, *classifier.size))
    return {
        "model": classifier.name,
        "data": files.printable(str(folder)),
        **found,
        "classes": classifier.labels,
        "left_out": left_out,
        **cost,
    }


def labelled_images(folder: Path, labels: list[str] | None) -> tuple[list[str], list[Path], list[int]]:
    """Return the names of the classes, the images below `folder`, and the class of each image, a position in the names.

    Images are of the class that their subfolder is named after. Without `labels`, the classes are the subfolders,
    sorted. Raises UserError for a subfolder that is no class.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    parts = list(parts_among(entry.name for entry in contents(folder)[0]))
    if parts and not set(parts) <= set(labels or []):
        raise UserError(f"{folder} has parts, such as {parts[0]}/: name the one to measure on")
    problems: list[str] = []
    settings = Dataset.model_validate({"source": "image_folder", "path": str(folder), "on_bad_file": "skip"})
    found, splits = find_images({"train": folder}, settings, problems)
    for problem in problems:
        log.warning("%s", problem)
    known = found if labels is None else labels
    for name in found:
        if name not in known:
            some = ", ".join(known[:5]) + (f", … ({len(known)} in all)" if len(known) > 5 else "")
            raise UserError(
                f"{folder / name}: the model has no class {name!r}{did_you_mean(name, known)}; it has {some}"
            )
    return known, splits["train"].files, [known.index(found[label]) for label in splits["train"].labels]


def measure_file(
    model: Path, folder: Path, device: Device, elsewhere: dict[str, Any], output: Path | None = None
) -> None:
    """Write, as JSON, what `measure` finds about an exported model, or about one from `elsewhere`.

    `elsewhere` has the options of `load_foreign`, with the path of a list as `labels`. Raises UserError if they are
    missing, or given for an exported model, which brings its own; RunFailed, at the end, if images were left out.
    """
    if not model.exists():
        raise UserError(f"{model} does not exist")
    if is_exported(model):
        if elsewhere:
            raise UserError(
                f"{model} is an exported model, which says itself what --{_option(elsewhere)} is: leave it out"
            )
        classifier = load(model, device)
    elif model.is_dir():
        raise UserError(f"{model} is not an exported model{export_hint(model)}")
    else:
        if "normalisation" not in elsewhere:
            raise UserError(
                f"{model} is not an exported model: say with --normalisation what its images look like "
                f"({', '.join(USUAL)}); none: values from 0 to 1"
            )
        path = elsewhere.get("labels")
        labels = _listed(path) if path else labelled_images(folder, None)[0]
        if path is None:
            log.info("%s: its classes are taken to be the folders of %s in their order", model, folder)
        classifier = load_foreign(model, **{**elsewhere, "labels": labels, "device": device})
    measured = measure(classifier, folder)
    log.info("%s", accuracy_line(measured["model"], measured))
    if output:
        files.write_json(output, measured)
    print(output or files.json_text(measured).rstrip())
    if measured["left_out"]:
        raise RunFailed(f"{measured['left_out']} images could not be read, and were left out")


def measure_teachers(
    params: Params, names: list[str], folder: Path, device: Device, given: dict[str, Any], output: Path | None = None
) -> None:
    """Write, as JSON, what `measure` finds about teachers of the settings, all of them without `names`.

    An imported one needs neither students nor data to be trained on; one that is trained here has been trained.
    `given` has options that take the place of settings: `size`, `channels`, `crop_pct`, `normalisation`, and the path
    of a list of `labels`. One that fails does not stop the others; its error is raised at the end.
    """
    jobs = select(plan_experiment(params).teachers, "teacher", teacher=names)
    jobs = list({job.network.name: job for job in reversed(jobs)}.values())[::-1]  # of each its first seed
    measured: list[dict[str, Any]] = []

    def work(position: int) -> None:
        found = measure(_teacher(params, jobs[position], folder, device, given), folder)
        measured.append({**found, "model": jobs[position].network.name})
        log.info("%s", accuracy_line(jobs[position].network.name, found))

    try:
        try_each(len(jobs), work)
    finally:
        if measured:
            content = measured[0] if len(jobs) == 1 else measured
            if output:
                files.write_json(output, content)
            print(output or files.json_text(content).rstrip())


def accuracy_line(name: str, found: dict[str, Any]) -> str:
    """Return the accuracy of a model in an evaluation, for people."""
    return f"{name}: {found['top1']:.2f} % top-1, {found['top5']:.2f} % top-5, {found['n']:,} images"


def _teacher(params: Params, job: TeacherJob, folder: Path, device: Device, given: dict[str, Any]) -> Classifier:
    """A teacher as a classifier of the images in `folder`."""
    name, dataset = f"teacher {job.network.name}", params.dataset
    if not job.network.imported:
        store = PreparedData.open(job.folder.parents[2] / "data", settings=job.settings["data"])
        network = finished_network(job, read_model(job.folder)[0], store)
        adapt_input(network, network.normalisation, [0.0] * store.image_shape[0], [1.0] * store.image_shape[0])
        return Classifier(
            network, store.classes, store.image_shape[1:], channels=store.image_shape[0], device=device, name=name
        )
    labels = _listed(given["labels"]) if "labels" in given else labelled_images(folder, None)[0]
    wanted = USUAL[given["normalisation"]] if "normalisation" in given else job.normalisation
    if wanted is None:
        raise UserError(f"{name}: say how its images were normalised, as its `normalisation` or by --normalisation")
    channels = given.get("channels") or dataset.channels
    network = imported(job.network, channels, len(labels), params)
    size = given.get("size") or dataset.height_width
    if size is None:
        raise UserError(f"{name}: say how large its images are, as dataset.size or by --size")
    adapt_input(network, wanted, [0.0] * channels, [1.0] * channels)
    crop_pct = given.get("crop_pct") or dataset.crop_pct
    return Classifier(network, labels, size, channels=channels, crop_pct=crop_pct, device=device, name=name)


def _listed(path: Path) -> list[str]:
    """The names of classes in a text file, one a line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels {path} cannot be read as a list of names ({error})") from None
    names = [same_name(line.strip()) for line in lines if line.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"--labels {path} must name at least two classes, all different, one a line")
    return names


def _option(given: dict[str, Any]) -> str:
    return next(iter(given)).replace("_", "-")
