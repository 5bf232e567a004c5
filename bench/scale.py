"""What many finished runs cost: the plan of the workflow, the report, MLflow.

    python bench/scale.py [--runs 2000]

Invents the files of as many trainings, and of a quarter as many, without training: students of the default experiment's
methods, with as many seeds as it takes. Measures processor time and the largest memory of the real commands:

- plan: `snakemake -n` with nothing there, two jobs per run;
- accept: the same with results that Snakemake has no record of, as after `dvc pull`;
- nothing: the same once more, with nothing to be done;
- compare, report: `iakd evaluate` and `iakd report`;
- sync: `iakd track sync` into a new SQLite database, and again with nothing new.

`…_growth` is the processor time per run beside that with a quarter of the runs: 1 is linear.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from iakd import files
from iakd.config import parse
from iakd.evaluation import made_from
from iakd.evaluation.metrics import classification_metrics
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudentJob, TeacherJob, plan_experiment
from iakd.stages import prepare

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent
EPOCHS, VALIDATED, BLOCKS = 40, 10, 3
SNAKEMAKE = (
    "snakemake",
    "--quiet",
    "all",
    "--cores",
    "2",
    "--snakefile",
    str(ROOT / "workflow/Snakefile"),
    "--configfile",
)
WEIGHTS = 80_000  # bytes


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--only", nargs="*", help="measure these steps only, without recording them")
    arguments = parser.parse_args()
    few, many = (measure(runs, arguments.only) for runs in (arguments.runs // 4, arguments.runs))
    numbers = {f"{name}_s": seconds for name, (seconds, _) in many.items() if name != "runs"}
    numbers |= {f"{name}_mib": memory for name, (_, memory) in many.items() if name != "runs"}
    ratio = many["runs"][0] / few["runs"][0]
    numbers |= {f"{name}_growth": many[name][0] / few[name][0] / ratio for name in many if name != "runs"}
    if arguments.only is None:
        import common  # not before: a process that is started counts the memory of the one that starts it

        common.record("scale", {"runs": many["runs"][0], **numbers})
    else:
        print(*(f"{name} {value:.4g}" for name, value in {"runs": many["runs"][0], **numbers}.items()), sep="\n")


def measure(runs: int, only: list[str] | None) -> dict[str, tuple[float, float]]:
    """Return processor seconds and the largest memory (MiB) of each step, and the number of `runs`."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    methods = {name: entry for name, entry in settings["methods"].items() if "tuned" not in str(entry) + name}
    settings |= {"methods": methods, "export": {"models": []}}
    settings["distill"]["seeds"] = list(range(max(1, round(runs / len(methods)))))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("params.yaml").write_text(yaml.safe_dump(settings))
        experiment = plan_experiment(parse(settings, "bench"))
        snakemake = (*SNAKEMAKE, "params.yaml", "-n")
        steps = {
            "plan": snakemake,
            "invent": None,
            "compare": ("iakd", "evaluate"),
            "report": ("iakd", "report"),
            "accept": snakemake,
            "nothing": snakemake,
            "sync": ("iakd", "track", "sync"),
            "sync_again": ("iakd", "track", "sync"),
        }
        found = {"runs": (float(len(experiment.students)), 0.0)}
        for name, command in steps.items():
            if command is None:
                invent(experiment)
            elif only is None or name in only:
                found[name] = cost(*command)
        os.chdir(ROOT)
    return found


def cost(command: str, *arguments: str) -> tuple[float, float]:
    """Return processor seconds and the largest memory (MiB) of a command and the processes that it starts."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen([BIN / command, *arguments], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{command} {' '.join(arguments)} failed"
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def invent(experiment: Experiment) -> None:
    """Leave what trainings and evaluations leave: with numbers that are drawn, and keys that are true."""
    prepare.run(experiment)
    manifest = files.read_object(experiment.data.folder / prepare.MANIFEST, "")
    data, rng = {"data": manifest["sha256"]}, np.random.default_rng(0)
    labels = rng.integers(0, len(manifest["classes"]), manifest["splits"]["test"]["n"])
    for job in experiment.trained:
        inputs = dict(data)
        if isinstance(job, StudentJob) and job.method.needs_teacher:
            inputs["teacher"] = files.read_object(job.teacher.folder / run_dir.RUN, "")["model_sha256"]
        train(experiment, job, inputs, rng)
        evaluate(experiment, job, data["data"], labels, rng)


def train(
    experiment: Experiment, job: TeacherJob | StudentJob, inputs: dict[str, str], rng: np.random.Generator
) -> None:
    """Leave the files of a training."""
    if isinstance(job, TeacherJob):
        key, params, columns = files.digest([job.key, inputs]), job.settings, BLOCKS * 0
        about = {"teacher": job.network.name, "student": None, "method": "teacher"}
    else:
        key, params = job.training_key(inputs, job.seed, job.path), {**job.settings, **job.used}
        columns = BLOCKS if "iakd" in job.method.names else 0
        about = {"teacher": job.teacher.network.name, "student": job.student.name, "method": job.label}
    about["dataset"] = experiment.params.dataset.name
    run = run_dir.Run(job.path, job.stage, key, params, job.seed, about, inputs, started=run_dir.now())
    rows: list[run_dir.Row] = []
    for epoch in range(1, EPOCHS + 1):
        validation = {"val_top1": 95.0, "val_nll": 0.2} if epoch % VALIDATED == 0 else {}
        blocks = {f"p_{kind}_{place}": 0.5 for kind in ("planned", "drawn") for place in range(columns)}
        loss = {"loss": rng.random(), "loss_ce": rng.random(), "train_top1": 90.0}
        speed = {"images_per_s": 4e4, "seconds": 0.05, "cpu_seconds": 0.05}
        rows.append({"epoch": epoch, "step": 11 * epoch, "lr": 0.1, **loss, **validation, **blocks, **speed})
    run.publish(rows, {"val_top1": 95.0, "val_nll": 0.2, "epochs": EPOCHS}, rng.bytes(WEIGHTS))


def evaluate(
    experiment: Experiment, job: TeacherJob | StudentJob, data: str, labels: Any, rng: np.random.Generator
) -> None:
    """Leave the evaluation of a model that is right in about nine of ten images."""
    logits = rng.normal(size=(len(labels), labels.max() + 1)) + 4 * np.eye(labels.max() + 1)[labels]
    model = files.read_object(job.folder / run_dir.RUN, "")["model_sha256"]
    student = isinstance(job, StudentJob)
    content = {
        "dataset": experiment.params.dataset.name,
        "teacher": job.teacher.network.name if isinstance(job, StudentJob) else job.network.name,
        "student": job.student.name if isinstance(job, StudentJob) else None,
        "method": job.label if isinstance(job, StudentJob) else "teacher",
        "seed": job.seed,
        "model_sha256": model,
        "data_sha256": data,
        "key": made_from.evaluation_key(experiment, model, data),
        **classification_metrics(logits, labels),
        "parameters": WEIGHTS // 4,
        "weight_bytes": WEIGHTS,
        "macs": 300_000 if student else 900_000,
        "latency_ms": 0.3,
        "images_per_s": 5e4,
    }
    files.write_json(job.folder / run_dir.EVALUATION, content)


if __name__ == "__main__":
    main()
