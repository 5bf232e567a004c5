"""The files that a whole experiment leaves, with random numbers instead of trainings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from iakd import files
from iakd.config import Schedule, parse
from iakd.evaluation.metrics import pack
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudentJob, StudyJob, TeacherJob, plan_experiment
from iakd.interactive.schedule import keep_probabilities
from iakd.tuning.decisions import distributions
from iakd.tuning.results import TrialRecord, summary, write_trials

Scores = Mapping[str, Sequence[float]]  # top-1 of each seed, by method
DIGITS = tuple(map(str, range(10)))  # the names of the classes
TEST = 1000  # images, so that accuracies are exact to a tenth of a point
SHA = "5f" * 32


def plan(
    methods: Mapping[str, Any],
    seeds: Sequence[int] = (0, 1, 2),
    pairs: Sequence[tuple[str, str]] = (("resnet20", "resnet8"),),
    epochs: int = 60,
    students: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> Experiment:
    """Plan an experiment with these methods; `more` are further sections of the settings."""
    raw = {
        "teachers": [{"arch": arch} for arch in dict.fromkeys(teacher for teacher, _ in pairs)],
        "students": students or [{"arch": arch} for arch in dict.fromkeys(student for _, student in pairs)],
        "pairs": [list(pair) for pair in pairs],
        "methods": dict(methods),
        "distill": {"seeds": list(seeds), "transfer": 100, "recipe": {"epochs": epochs, "validate_every": 5}},
        **more,
    }
    return plan_experiment(parse(raw, "test"))


def write(
    experiment: Experiment,
    scores: Scores | Callable[[StudentJob], float],
    teacher: float = 97.2,
    slow: Mapping[str, float] | None = None,
    classes: Sequence[str] = DIGITS,
) -> None:
    """Write data manifest, models, studies and evaluations of `experiment` below the current folder.

    The epochs of the methods in `slow` take that many times as long as those of the others.
    """
    _manifest(experiment, classes)
    n = len(classes)
    for job in experiment.teachers:
        _trained(job, teacher, {"method": "teacher", "teacher": job.network.name, "student": None}, n)
    for study in experiment.studies:
        _study(study)
    seeds = experiment.params.distill.seeds
    for student in experiment.students:
        top1 = scores(student) if callable(scores) else scores[student.label][seeds.index(student.seed)]
        about = {
            "method": student.label,
            "teacher": student.teacher.network.name,
            "student": student.student.name,
        }
        _trained(student, top1, about, n, (slow or {}).get(student.label, 1.0))


def _manifest(experiment: Experiment, classes: Sequence[str]) -> None:
    rng = np.random.default_rng(0)
    n, equal = {"train": 650, "val": 300, "test": TEST}, np.full(len(classes), 1 / len(classes))
    per_class = {split: rng.multinomial(total, equal).tolist() for split, total in n.items()}
    files.write_json(
        experiment.data.folder / "manifest.json",
        {
            "settings": experiment.params.dataset.model_dump(mode="json"),
            "source": {"name": "digits", "about": "handwritten digits", "train": 1797, "test": None},
            "classes": list(classes),
            "image": {"channels": 1, "height": 8, "width": 8},
            "mean": [0.305],
            "std": [0.376],
            "problems": ["2 of 847 test images are exact copies of train images"],
            "sha256": SHA,
            "splits": {
                split: {
                    "n": total,
                    "sha256": SHA,
                    "per_class": per_class[split],
                    "indices": list(range(total)),
                }
                for split, total in n.items()
            },
        },
    )


def _trained(job: TeacherJob | StudentJob, top1: float, about: dict[str, Any], classes: int, slow: float = 1.0) -> None:
    rng = np.random.default_rng(abs(seed_of(job.path)))
    history = _history(job, top1, rng, slow)
    metrics = {"val_top1": history[-1]["val_top1"], "val_nll": 0.3, "train_loss": 0.1}
    if isinstance(job, StudentJob) and "mutual" in job.method.names:
        history = [row | ({"peer_val_top1": 98.25} if "val_top1" in row else {}) for row in history]
        metrics["peer_val_top1"] = 98.25
    files.write_text(job.folder / run_dir.HISTORY, run_dir.history_text(history))
    files.write_json(job.folder / run_dir.METRICS, metrics | _hints(job))
    model = f"{job.path} {top1} {job.recipe.epochs}".encode()
    files.write_bytes(job.folder / run_dir.MODEL, model)
    files.write_json(job.folder / run_dir.RUN, _record(job, about, files.sha256_bytes(model), rng))
    evaluation = _evaluation(job, top1, about, files.sha256_bytes(model), rng, classes)
    files.write_json(job.folder / "evaluation.json", evaluation)


def _hints(job: TeacherJob | StudentJob) -> dict[str, Any]:
    """Return a record of hint points: blocks are less similar the further apart they are, and across stages even less.

    Those of `hint_points` were chosen automatically.
    """
    found = {"hints", "hint_points"} & set(job.method.names) if isinstance(job, StudentJob) else set()
    if not isinstance(job, StudentJob) or not found:
        return {}
    (name,) = found
    depth = (int(job.teacher.network.arch.removeprefix("resnet")) - 2) // 2
    stage = np.arange(depth) * 3 // depth
    apart = np.abs(np.subtract.outer(np.arange(depth), np.arange(depth))) / depth
    cka = np.exp(-0.8 * apart) * 0.75 ** np.abs(np.subtract.outer(stage, stage))
    points = [depth // 6, depth // 2, depth - 1 - depth // 6]
    record = {"cka": cka.round(4).tolist(), "clusters": stage.tolist(), "points": points, "student": [0, 1, 2]}
    return {name: record | ({"silhouettes": {"2": 0.41, "3": 0.52}} if name == "hint_points" else {})}


def measured(experiment: Experiment) -> None:
    """Write exports of each pair's first method, with 8-bit integers, and the times of all networks."""
    models: dict[str, dict[str, Any]] = {}
    for job in experiment.trained:
        network = job.network if isinstance(job, TeacherJob) else job.student
        name = network.name if isinstance(job, TeacherJob) else f"{job.pair}/{job.label}"
        depth = int(network.arch.removeprefix("resnet").partition("x")[0])
        exportable = isinstance(job, StudentJob) and not network.bits
        for precision in [f"{bits} bits" for bits in network.bit_widths] or ["float32", *["int8"] * exportable]:
            bits = 32 if precision == "float32" else 8 if precision == "int8" else int(precision[0])
            ms = depth / 100 * (1.4 if bits < 32 else 1)
            batches = {
                str(n): {"median_ms": n * ms, "p95_ms": 2 * n * ms, "images_per_s": 1000 / ms, "runs": 10}
                for n in (1, 8, 32)
            }
            about = {"network": network.name, "precision": precision, "bytes": 1000 * depth * bits, "memory_mib": 3.4}
            of = models.setdefault(f"{network.name} {precision}", {**about, "of": [], "sha256": "", "batches": batches})
            of["of"] += [name] * (name not in of["of"])
    where = {"processor": "Abacus", "cores": 2, "system": "Linux 6 x86_64"}
    latency = {"threads": 1, "onnxruntime": "1.20.0", **where, "left_out": [], "models": list(models.values())}
    files.write_json(experiment.export_folder / run_dir.LATENCY, latency)
    for export in experiment.exports:
        student = export.students[0]
        files.write_json(
            export.folder / run_dir.EXPORTED,
            {"models": [{"method": student.label, "seed": student.seed, "folder": student.label}]},
        )
        names = [run_dir.ONNX, *(run_dir.ONNX_OF_BITS.format(bits) for bits in student.student.bit_widths[1:])]
        evaluation = files.read_json(student.folder / run_dir.EVALUATION, "")
        int8 = None
        if not student.student.bits:
            names.append(run_dir.INT8)
            int8 = {"evaluation": {"top1": evaluation["top1"] - 0.5}}
        record = {"files": dict.fromkeys([*names, run_dir.MODEL], ""), "evaluation": evaluation, "int8": int8}
        files.write_json(export.folder / student.label / run_dir.EXPORT, record)


def seed_of(text: str) -> int:
    """Return a seed that depends on a name, the same in every process."""
    return int(files.sha256_bytes(text.encode())[:12], 16)


def _found(job: Any) -> dict[str, Any]:
    """What run.json says of a tuned student: method and recipe of its study's first trial."""
    if not isinstance(job, StudentJob) or job.study is None:
        return {}
    method, recipe = job.study.space.candidate(job.study.first[0])
    return {"method": method.settings(), "recipe": recipe.model_dump(mode="json")}


def _record(job: Any, about: dict[str, Any], sha: str, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "key": files.digest(job.path),
        "stage": job.stage,
        "dataset": "digits",
        **about,
        "seed": getattr(job, "seed", 0),
        "params": {**job.settings, **_found(job)},
        "inputs": {"data": SHA},
        "data_sha256": SHA,
        "git_commit": "3cbde1e6f0c1a5f4a6f4f1d9e1f0c2b3a4d5e6f7",
        "lock_sha256": "a1" * 32,
        "versions": {
            "python": "3.11.2",
            "torch": "2.13.0",
            "numpy": "2.4.6",
            "optuna": "5.0.0",
            "iakd": "0.1.0",
        },
        "device": "cpu",
        "started": "2025-01-02T03:04:05.000+00:00",
        "finished": "2025-01-02T03:04:35.000+00:00",
        "wall_seconds": round(float(rng.uniform(5, 9)), 3),
        "model_sha256": sha,
    }


def _evaluation(
    job: Any, top1: float, about: dict[str, Any], sha: str, rng: np.random.Generator, classes: int
) -> dict[str, Any]:
    wrong = 1 - top1 / 100
    matrix = np.zeros((classes, classes), dtype=int)
    for true in range(classes):
        p = np.full(classes, wrong / (classes - 1))
        p[true] = 1 - wrong
        p[(true * 3 + 1) % classes] += wrong / 2
        matrix[true] = rng.multinomial(TEST // classes + (true < TEST % classes), p / p.sum())
    count = rng.multinomial(TEST, np.linspace(0.2, 4, 15) ** 2 / (np.linspace(0.2, 4, 15) ** 2).sum())
    centre = (np.arange(15) + 0.5) / 15
    small = about["student"] is not None
    widths = job.student.bit_widths if small else []
    by_bits = {
        str(bits): {
            "top1": top1 - (8 - bits),
            "weight_bytes": 78042 * bits // 8,
            "bit_operations": 786_000 * bits**2,
        }
        for bits in widths
    }
    return {
        "dataset": "digits",
        **about,
        "seed": job.seed,
        "model_sha256": sha,
        "data_sha256": SHA,
        "top1": top1,
        "top5": min(100.0, top1 + 4),
        "nll": 3.4 * wrong + 0.05,
        "ece": 0.3 * wrong + 0.01,
        "n": TEST,
        "per_class_top1": [
            100 * int(matrix[i, i]) / int(matrix[i].sum()) if matrix[i].any() else None for i in range(classes)
        ],
        "confusion": matrix.tolist(),
        "correct": pack(_correct(top1, rng)),
        "calibration": {
            "n": count.tolist(),
            "confidence": [float(c) if n else None for c, n in zip(centre, count, strict=True)],
            "top1": [float(c**1.2) if n else None for c, n in zip(centre, count, strict=True)],
        },
        "parameters": 78042 if small else 272474,
        "weight_bytes": 4 * (78042 if small else 272474),
        "macs": 786_000 if small else 2_610_000,
        "latency_ms": float(rng.normal(0.61 if small else 1.6, 0.02)),
        "images_per_s": float(rng.normal(9600 if small else 3300, 50)),
        "device": "cpu",
        **({"bit_widths": by_bits} if by_bits else {}),
    }


def _correct(top1: float, rng: np.random.Generator) -> np.ndarray:
    """Which images a model gets right: the easiest ones, with little chance, so that two models mostly agree."""
    difficulty = np.random.default_rng(0).uniform(size=TEST) + 0.01 * rng.standard_normal(TEST)
    return difficulty.argsort().argsort() < round(top1 * TEST / 100)


def _history(job: Any, final: float, rng: np.random.Generator, slow: float) -> list[run_dir.Row]:
    epochs, every = job.recipe.epochs, job.recipe.validate_every
    t = np.arange(1, epochs + 1) / epochs
    top1 = final - (final - 12) * np.exp(-7 * t) + rng.normal(0, 1.2, epochs) * (1 - t)
    steps = 2 * np.arange(1, epochs + 1)
    swaps = _swaps(job, steps - 1, 2 * epochs, rng)
    history = []
    for i in range(epochs):
        row: run_dir.Row = {
            "epoch": i + 1,
            "step": int(steps[i]),
            "lr": 0.05,
            "loss": float(2.3 * np.exp(-4 * t[i]) + 0.05),
            "train_top1": float(min(100, top1[i] + 3)),
            "val_top1": float(top1[i]) if (i + 1) % every == 0 or i + 1 == epochs else None,
            "val_nll": float((100 - top1[i]) / 30) if (i + 1) % every == 0 or i + 1 == epochs else None,
            **{name: float(values[i]) for name, values in swaps.items()},
            "images_per_s": 9000.0,
            "seconds": round(0.1 * slow, 4),
        }
        history.append(row)
    return history


def _swaps(job: Any, steps: Any, total: int, rng: np.random.Generator) -> dict[str, Any]:
    if not isinstance(job, StudentJob | StudyJob) or "iakd" not in job.method.names:
        return {}
    schedule = job.method.iakd.schedule
    if not isinstance(schedule, Schedule):
        schedule = Schedule(kind="review", p0=0.34, slope=0.4, student_only=0.31)
    return swap_columns(schedule, steps, total, 3, rng)


def swap_columns(schedule: Schedule, steps: Any, total: int, blocks: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return p_planned_i and p_drawn_i, one value per epoch of two steps."""
    p = keep_probabilities(schedule, steps, total, [total * 5 // 8, total * 3 // 4], blocks)
    drawn = rng.binomial(2, p) / 2
    planned = {f"p_planned_{i}": p[:, i] for i in range(blocks)}
    return planned | {f"p_drawn_{i}": drawn[:, i] for i in range(blocks)}


def _study(study: StudyJob) -> None:
    """Write trials of random settings, some of them pruned in their first seed; the first ones are the study's own."""
    rng = np.random.default_rng(seed_of(study.path))
    trials = []
    for number in range(24):
        first = number < len(study.first)
        params = study.first[number] if first else _drawn(study, rng)
        unit = {
            one.name: (params[one.name] - one.values.low) / (one.values.high - one.values.low)
            for one in study.space.parameters
            if one.name in params and not one.choices
        }
        score = 92 - 6 * sum((x - 0.4) ** 2 for x in unit.values()) / max(1, len(unit)) + float(rng.normal(0, 0.4))
        state = "pruned" if number > 8 and score < 91.3 else "complete"
        epochs = study.recipe.epochs
        steps = [epochs // 2] if state == "pruned" else [epochs * (seed + 1) for seed in range(3)]
        values = {step: round(score + 0.3 * position, 3) for position, step in enumerate(steps)}
        mean = sum(values.values()) / len(values)
        origin = "first" if first else "sampler"
        trials.append(TrialRecord(number, state, params, origin, mean, values))
        schedule = study.space.candidate(params).method.iakd.schedule
        if study.method.swaps and isinstance(schedule, Schedule):
            done = np.arange(1, epochs + 1)[: epochs // 2 if state == "pruned" else None]
            swaps = swap_columns(schedule, 2 * done - 1, 2 * epochs, 3, rng)
            history: list[run_dir.Row] = [
                {"epoch": int(epoch), **{name: float(column[i]) for name, column in swaps.items()}}
                for i, epoch in enumerate(done)
            ]
            path = study.folder / "trials" / f"{number:04d}" / "seed0" / run_dir.HISTORY
            files.write_text(path, run_dir.history_text(history))
    files.write_json(study.folder / run_dir.METRICS, summary(trials))
    write_trials(study.folder, trials, [parameter.name for parameter in study.space.parameters])
    _journal(study, trials)


def _drawn(study: StudyJob, rng: np.random.Generator) -> dict[str, Any]:
    """Random parameters of a trial."""
    params: dict[str, Any] = {}
    for one in study.space.parameters:
        if study.space.is_used(one, params):
            values = list(one.choices)
            drawn = values[rng.integers(len(values))] if values else rng.uniform(one.values.low, one.values.high)
            params[one.name] = drawn if values else int(drawn) if one.integer else round(float(drawn), 3)
    return params


def _journal(job: StudyJob, trials: list[TrialRecord]) -> None:
    """Write the study in Optuna's own format."""
    storage = JournalStorage(JournalFileBackend(str(job.folder / "study.journal")))
    study = optuna.create_study(study_name="fake", direction="maximize", storage=storage)
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    for trial in trials:
        space = distributions(job.space, trial.params)
        study.add_trial(
            create_trial(state=states[trial.state], value=trial.value, params=trial.params, distributions=space)
        )


METHODS: dict[str, Any] = {
    "scratch": {},
    "scratch-init": {"method": "scratch", "init": "teacher"},
    "kd": {},
    "iakd-tuned": {"method": "iakd", "iakd": {"schedule": "tuned"}},
    "iakd+kd": {"iakd": {"stem": "teacher", "head": "teacher"}},
    "iakd-uniform": {"method": "iakd", "iakd": {"schedule": {"kind": "uniform", "p0": 0.5}}},
    "iakd-linear": {"method": "iakd"},
    "iakd-review": {"method": "iakd", "iakd": {"schedule": {"kind": "review"}}},
}
MANY_METHODS: dict[str, Any] = {  # of every group
    **{name: {} for name in ("scratch", "label_smoothing", "kd", "dkd", "dist", "ctkd", "lskd", "dkd+standardize")},
    **{name: {} for name in ("fitnet", "at", "nst", "vid", "ot", "hints", "sp", "cc", "rkd", "pkt", "crd", "crd+kd")},
    "iakd": {},
    "iakd+dkd": {},
    "iakd-review+crd": {"method": "iakd+crd", "iakd": {"schedule": {"kind": "review"}}},
    "iakd-from-teacher": {"method": "iakd", "init": "teacher"},
    "iakd-tuned": {"method": "iakd", "iakd": {"schedule": "tuned"}},
}
LEVELS = [89.1, 95.6, 94.6, 93.0, 95.2, 86.8, 91.9, 92.1]


def many_methods_example(pairs: int = 1) -> Experiment:
    """Write a plausible experiment with 25 methods below the current folder, one of which failed to train."""
    teachers = ["resnet20", "resnet56", "resnet110"][:pairs]
    result = plan(MANY_METHODS, pairs=[(teacher, "resnet8") for teacher in teachers])

    def score(job: StudentJob) -> float:
        level = 89.1 if job.label == "scratch" else 90 + 6 * (seed_of(job.label) % 97) / 97
        level = 41 if job.label == "nst" else level
        noise = np.random.default_rng(seed_of(job.path)).normal(0, 0.5)
        return round(float(level + noise) * TEST / 100) / TEST * 100

    write(result, score)
    return result


def example(pairs: int = 1, methods: int = 8) -> Experiment:
    """Write a plausible experiment below the current folder; `methods` of METHODS, and more of the same kind."""
    teachers = ["resnet20", "resnet56", "resnet110"][:pairs]
    labels = dict(list(METHODS.items())[:methods])
    for i in range(methods - len(METHODS)):
        student_only = round(0.05 * (i % 10), 2)
        p0 = round(0.1 + 0.04 * i, 2)
        labels[f"iakd-linear-{i:02d}"] = {
            "method": "iakd",
            "iakd": {"schedule": {"p0": p0, "student_only": student_only}},
        }
    result = plan(labels, pairs=[(teacher, "resnet8") for teacher in teachers])
    order = list(labels)

    def score(job: StudentJob) -> float:
        rng = np.random.default_rng(seed_of(job.path))
        position = order.index(job.label)
        level = LEVELS[position] if position < len(LEVELS) else 87 + 8 * rng.random()
        return round(float(level + rng.normal(0, 0.6)) * TEST / 100) / TEST * 100

    write(result, score)
    return result
