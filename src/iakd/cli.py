"""The command line: one subcommand per stage. Imports are lazy, so that `--help` is fast."""

import contextlib
import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from iakd import slurm
from iakd.errors import RunFailed, UserError, is_out_of_memory, of_file_system, one_line, try_each
from iakd.processes import (
    STOP_SIGNALS,
    UNDER_TORCHRUN,
    WITH_PARENT,
    end_with_parent,
    launch_processes,
    rank_and_world_size,
    saying_what_takes_long,
)

if TYPE_CHECKING:
    from iakd.experiment.jobs import Experiment

app = typer.Typer(
    help="Compress image classifiers by interactive knowledge distillation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
track = typer.Typer(help="Show the results in MLflow.", no_args_is_help=True)
app.add_typer(track, name="track")
push = typer.Typer(help="Publish an exported model.", no_args_is_help=True)
app.add_typer(push, name="push")

ParamsFile = Annotated[Path, typer.Option("--params", metavar="FILE", help="The settings of the experiment.")]
Changes = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: dotted key, YAML value; repeatable."),
]


def _regular(path: Path | None) -> Path | None:
    """Refuse devices, pipes and folders: a new file would take their place."""
    if path is not None and (path.is_relative_to("/dev") or (path.exists() and not path.is_file())):
        raise typer.BadParameter(f"{path} is no regular file; name another, or leave --output out to print")
    return path


Output = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write here instead of to standard output.", callback=_regular)
]
DeviceName = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one.")]
OnlyPairs = Annotated[list[str], typer.Option("--pair", help="Only this pair, as TEACHER-STUDENT; repeatable.")]
Form = Literal["csv", "jsonl"]
DEFAULT = Path("params.yaml")
NONE: list[str] = []
NO_SEEDS: list[int] = []
INTERRUPTED = 130  # the exit code that Typer makes of KeyboardInterrupt
SHARED = ("teach", "distill")  # commands that several processes can run together


def _experiment(params: Path, changes: list[str]) -> "Experiment":
    from iakd.config import load
    from iakd.experiment.jobs import plan_experiment

    with saying_what_takes_long("reading the settings"):
        return plan_experiment(load(params, changes))


@contextlib.contextmanager
def _training(experiment: "Experiment", shared: bool = False, follow: bool = True) -> Iterator[None]:
    """Claim GPUs for this command, and, to `follow` it, have a process show its runs in MLflow while they run.

    If its trainings are to be `shared` by several processes, those run the command instead of this process.
    """
    from iakd.experiment import gpus
    from iakd.tracking.follower import ensure_follower

    rank, count = rank_and_world_size()
    if rank == 0 and follow:
        ensure_follower(experiment.params)
    if count > 1:  # the parent process has assigned the GPUs
        yield
        return
    wanted = experiment.params.compute.processes if shared and UNDER_TORCHRUN not in os.environ else 1
    with gpus.claim(experiment.params.compute, wanted):
        if wanted > 1:
            sys.exit(launch_processes([sys.executable, "-m", "iakd", *sys.argv[1:]], wanted))
        yield


def _products(paths: list[Path]) -> None:
    for path in paths:
        print(path)


def _print_version(wanted: bool) -> None:
    if wanted:
        from iakd import __version__

        print(f"iakd {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make, or an empty one.")],
    experiment: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Ready-made settings instead of those for the digits; `list` lists them."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Own images, with a subfolder for each class; the settings name them."),
    ] = None,
) -> None:
    """Make a folder for an experiment: settings, Snakefile, profiles and dvc.yaml. It needs no clone."""
    from iakd.stages.init import experiments, run

    if experiment == "list":
        _products([Path(name) for name in experiments()])
        return
    run(folder, experiment, images)
    there = shlex.quote(str(folder))
    print(f"next: cd {there}, look at params.yaml, run snakemake --cores all --logger iakd", file=sys.stderr)
    _products([folder])


@app.command()
def prepare(params: ParamsFile = DEFAULT, changes: Changes = NONE) -> None:
    """Read the data set, split it and store it as uint8 arrays with a manifest."""
    experiment = _experiment(params, changes)
    from iakd.stages.prepare import run

    _products([run(experiment)])


@app.command()
def teach(
    params: ParamsFile = DEFAULT,
    changes: Changes = NONE,
    teacher: Annotated[list[str], typer.Option(help="Only this teacher; repeatable.")] = NONE,
    seed: Annotated[list[int], typer.Option(help="Only this seed; repeatable.")] = NO_SEEDS,
) -> None:
    """Train the teachers, or import those that have a checkpoint or a callable."""
    experiment = _experiment(params, changes)
    from iakd.experiment.jobs import select

    jobs = select(experiment.teachers, "teacher", teacher=teacher, seed=seed)
    with _training(experiment, shared=any(not job.network.imported for job in jobs)):
        from iakd.stages import import_teacher, teach

        def work(position: int) -> Path:
            job = jobs[position]
            return (import_teacher if job.network.imported else teach).run(experiment, job)

        _products(try_each(len(jobs), work))


@app.command()
def tune(
    params: ParamsFile = DEFAULT,
    changes: Changes = NONE,
    pair: OnlyPairs = NONE,
    method: Annotated[list[str], typer.Option(help="Only the tuned method with this label; repeatable.")] = NONE,
    join: Annotated[
        bool, typer.Option("--join", help="Train trials of studies that another process runs, here or elsewhere.")
    ] = False,
    tasks: Annotated[int, typer.Option(min=1, help="In a Slurm job: its tasks, all of which train trials.")] = 1,
) -> None:
    """Search for the best settings of each tuned method with Optuna."""
    experiment = _experiment(params, changes)
    from iakd.experiment.jobs import select

    jobs = select(experiment.studies, "study", pair=pair, method=method)
    if join and slurm.is_idle_task():
        return
    with _training(experiment, follow=not join), contextlib.ExitStack() as stack:
        workers = None
        if tasks > 1 and not join:
            command = [sys.executable, "-m", "iakd", *sys.argv[1:], "--join"]
            stack.enter_context(slurm.in_tasks(command, tasks, experiment.params.compute.threads))
            workers = 1
        from iakd.stages.tune import run

        _products([run(experiment, job, workers=workers, join=join) for job in jobs])


@app.command()
def distill(
    params: ParamsFile = DEFAULT,
    changes: Changes = NONE,
    pair: OnlyPairs = NONE,
    method: Annotated[list[str], typer.Option(help="Only the method with this label; repeatable.")] = NONE,
    seed: Annotated[list[int], typer.Option(help="Only this seed; repeatable.")] = NO_SEEDS,
) -> None:
    """Train the students, `compute.seeds_together` seeds of one student side by side."""
    experiment = _experiment(params, changes)
    from iakd.experiment.jobs import group_seeds, select

    jobs = select(experiment.students, "student", pair=pair, method=method, seed=seed)
    groups = group_seeds(jobs, experiment.params.compute.seeds_together if rank_and_world_size()[1] == 1 else 1)
    with _training(experiment, shared=True):
        from iakd.stages.distill import run

        _products([folder for group in groups for folder in run(experiment, *group)])


@app.command()
def evaluate(
    params: ParamsFile = DEFAULT,
    changes: Changes = NONE,
    folder: Annotated[Path | None, typer.Option("--run", help="Only the model in this results folder.")] = None,
    teacher: Annotated[
        list[str],
        typer.Option(help="Only this teacher; repeatable. With --data: without students, methods or data to train on."),
    ] = NONE,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Instead: an exported folder or file, an ONNX file, a checkpoint; without --params."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For --model or --teacher: images in a folder for each class."),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="Of a checkpoint: the network, such as torchvision/resnet50.")
    ] = None,
    normalisation: Annotated[
        str | None, typer.Option(help="Of a model from elsewhere: imagenet, cifar10, cifar100, half or none.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, max=4096, help="Of a model from elsewhere: pixels.")] = None,
    crop_pct: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="Of a model from elsewhere: share of the shorter side that is kept. [default: 1]"
        ),
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, max=3, help="Of a model from elsewhere: 3, or 1 for grey images. [default: 3]")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of a model from elsewhere: its classes, one a line. [default: the folders]"),
    ] = None,
    output: Output = None,
    device: DeviceName = "auto",
) -> None:
    """Evaluate finished models on the test set, once each, and compare them; with --model, measure any other model."""
    given: dict[str, Any] = {"arch": arch, "normalisation": normalisation, "size": size, "crop_pct": crop_pct}
    given |= {"channels": channels, "labels": labels}
    elsewhere = {name: value for name, value in given.items() if value is not None}
    if model and data:
        if folder or changes:
            raise UserError("--model measures a file without settings: leave out --run and --set")
        from iakd.stages.predict import measure_file

        measure_file(model, data, device, elsewhere, output)
        return
    if teacher and data and not model:
        if folder or arch:
            raise UserError("--teacher measures teachers of the settings: leave out --run and --arch")
        from iakd.config import load_teachers
        from iakd.stages.predict import measure_teachers

        measure_teachers(load_teachers(params, changes), teacher, data, device, elsewhere, output)
        return
    if model or data or elsewhere or output:
        raise UserError("--model and --data belong together, as do --teacher and --data; other options need both")
    experiment = _experiment(params, changes)
    from iakd.experiment import gpus
    from iakd.experiment.jobs import select

    if folder and teacher:
        raise UserError("--run names one model: leave out --teacher")
    jobs = select(experiment.teachers, "teacher", teacher=teacher) if teacher else []
    with gpus.claim(experiment.params.compute):
        from iakd.stages.evaluate import accuracy, evaluate_run, run

        if folder or jobs:
            folders = [folder] if folder else [job.folder for job in jobs]
            paths = try_each(len(folders), lambda position: evaluate_run(experiment, folders[position]))
            for path in paths:
                print(accuracy(path))
            _products(paths)
            return
        done = run(experiment)
        for job in experiment.trained:
            print(accuracy(job.folder / "evaluation.json"))
        _products([done])


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A folder that `iakd export` wrote, or one file of it.")],
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, patterns; - reads a list of files from standard input.")
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes, the most probable first.")] = 1,
    form: Annotated[Form, typer.Option("--format", help="csv, or a JSON object for each image.")] = "csv",
    output: Output = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are computed together.")] = 64,
    device: DeviceName = "auto",
) -> None:
    """Classify images with a finished model. Exit code 1 if some could not be read."""
    from iakd.classifier import load
    from iakd.stages.predict import predict

    predict(load(model, device), images, form, top, batch_size, output)


@app.command()
def export(
    params: ParamsFile = DEFAULT,
    changes: Changes = NONE,
    pair: OnlyPairs = NONE,
) -> None:
    """Export the best models, or those in the settings, as files that run without this project."""
    experiment = _experiment(params, changes)
    from iakd.experiment.jobs import select

    jobs = select(experiment.exports, "export", pair=pair)
    from iakd.stages.export import run

    _products([run(experiment, job) for job in jobs])


@app.command()
def latency(params: ParamsFile = DEFAULT, changes: Changes = NONE) -> None:
    """Measure how fast all networks of the experiment are in ONNX Runtime. Let nothing else run meanwhile."""
    experiment = _experiment(params, changes)
    from iakd.stages.latency import run

    _products([run(experiment)])


@app.command()
def report(params: ParamsFile = DEFAULT, changes: Changes = NONE) -> None:
    """Write the report: one HTML page, tables and figures."""
    experiment = _experiment(params, changes)
    from iakd.stages.report import run

    _products([run(experiment)])


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A results folder such as results/digits, or a report in it.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, on the same test images.")],
) -> None:
    """Compare two reports: their accuracies, with intervals, and the settings that differ."""
    from iakd.reporting.compare import compare

    print(compare(a, b), end="")


@app.command()
def status(params: ParamsFile = DEFAULT, changes: Changes = NONE) -> None:
    """Show what is done, running and outdated, and why, and how long the rest takes."""
    from iakd.config import load
    from iakd.experiment.jobs import plan_experiment
    from iakd.stages.status import show

    with saying_what_takes_long("reading the settings"):
        settings = load(params, changes)
        plan_experiment(settings)  # or it would be Snakemake that refuses impossible settings
    show(settings if changes or params != DEFAULT else None)


@app.command()
def doctor(params: ParamsFile = DEFAULT, changes: Changes = NONE) -> None:
    """Check Python, packages, GPU, disk, locks, settings and services, and say how to get what is missing."""
    from iakd.stages.doctor import examine

    if not examine(params, changes):
        sys.exit(1)


@app.command()
def pairs(
    teacher: Annotated[str, typer.Argument(help="An architecture, or the name of a network in params.yaml.")],
    student: Annotated[str, typer.Argument(help="An architecture, or the name of a network in params.yaml.")],
    params: Annotated[
        Path | None,
        typer.Option("--params", metavar="FILE", help="The settings that name networks. [default: params.yaml]"),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Image height and width in pixels. [default: the networks' own]")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, max=1024, help="Image channels.")] = 3,
    classes: Annotated[int, typer.Option(min=2, max=1_000_000_000, help="Classes.")] = 100,
) -> None:
    """Show which teacher and student blocks can be swapped, or why a pair is impossible."""
    from iakd.config import load, network_called

    with saying_what_takes_long("reading the settings"):
        settings = load(params or DEFAULT) if params or DEFAULT.exists() else None
    networks = network_called(teacher, "teacher", settings), network_called(student, "student", settings)
    from iakd.interactive.pair_table import pair_table

    print(pair_table(*networks, size, channels, classes))


@app.command()
def methods() -> None:
    """List the methods, which can be used alone or combined, as in iakd+kd."""
    from iakd.config.methods import listing

    print(listing())


@app.command()
def docs() -> None:
    """Print the folder of the documentation, whose pages comments and messages name."""
    from iakd.shipped import folder

    _products([folder() / "docs"])


@app.command()
def schema() -> None:
    """Print the JSON schema of params.yaml."""
    from iakd.config import schema_text

    print(schema_text(), end="")


@track.command()
def sync(params: ParamsFile = DEFAULT, changes: Changes = NONE) -> None:
    """Bring MLflow up to date with the result files. Safe to run at any time and repeatedly."""
    experiment = _experiment(params, changes)
    from iakd.tracking.mirror import sync

    print(sync(experiment.params))


@track.command()
def follow(params: ParamsFile = DEFAULT, changes: Changes = NONE) -> None:
    """Show runs in MLflow while they run. Started by the stages; ends when nothing runs."""
    experiment = _experiment(params, changes)
    from iakd.tracking.follower import follow

    follow(experiment.params)


@track.command()
def flush(params: ParamsFile = DEFAULT, changes: Changes = NONE) -> None:
    """Wait until MLflow shows every finished run, for up to a minute."""
    experiment = _experiment(params, changes)
    from iakd.tracking.follower import wait_for_follower

    wait_for_follower(experiment.params)


@track.command()
def ui(
    params: ParamsFile = DEFAULT,
    changes: Changes = NONE,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port on 127.0.0.1.")] = 5000,
) -> None:
    """Start the MLflow UI and print the address of the page that compares the runs."""
    experiment = _experiment(params, changes)
    from iakd.tracking.ui import serve

    serve(experiment.params, port)


@push.command()
def hub(
    name: Annotated[str, typer.Argument(help="The repository, as OWNER/NAME.")],
    folder: Annotated[
        Path | None, typer.Argument(help="A folder that `iakd export` wrote. [default: the only one in results/]")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
) -> None:
    """Upload an exported model to the Hugging Face Hub, and print its address."""
    from iakd.stages.push import push_hub

    print(push_hub(name, folder, private))


@contextlib.contextmanager
def _joined() -> Iterator[None]:
    """Join the other processes if this is one of several that train together."""
    if rank_and_world_size()[1] == 1:
        yield
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or torch warns of what is meant so, past sys.stderr
    from iakd.training.distributed import join_processes

    with join_processes():
        command = next(iter(sys.argv[1:]), "")
        if command not in SHARED:
            raise UserError(
                f"several processes can only {' or '.join(SHARED)} together; run `iakd {command}` in one process"
            )
        yield


def _run() -> None:
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            raise KeyboardInterrupt from end
        raise


def _stop(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(signum).name)


def main() -> None:
    """Run the command line: exit code 0 for done, 1 for failed or interrupted, 2 for a user's mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for number in STOP_SIGNALS:
        if number != signal.SIGINT:  # Python's own handler raises KeyboardInterrupt
            signal.signal(number, _stop)
    # The first is set by the Snakefile, and child processes must not inherit it; the other by torchrun
    if os.environ.pop(WITH_PARENT, None) or UNDER_TORCHRUN in os.environ:
        end_with_parent()
    try:
        with _joined():
            _run()
    except UserError as error:
        _fail(str(error), 2)
    except RunFailed as error:
        _fail(str(error), 1)
    except KeyboardInterrupt as error:
        if _signal(error) == signal.SIGUSR1.name and slurm.requeue():
            _fail("interrupted before the time limit; Slurm runs this job again, which resumes", 1)
        _fail("interrupted; run the same command again to resume", 1)
    except OSError as error:
        line = of_file_system(error)
        if line is None:
            raise
        _fail(line, 2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _fail("out of memory; choose smaller batches, networks or images, or run fewer trainings at a time", 1)


def _signal(error: BaseException | None) -> str | None:
    """Return the signal behind an interruption, of which Typer has made other exceptions."""
    while error and not (isinstance(error, KeyboardInterrupt) and error.args):
        error = error.__cause__ or error.__context__
    return str(error.args[0]) if error else None


def _fail(line: str, code: int) -> NoReturn:
    print(f"iakd: {one_line(line)}", file=sys.stderr)
    sys.exit(code)
