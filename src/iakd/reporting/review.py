"""What a reviewer asks: how much was compared and tuned, and which run, commit and machine everything comes from."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from iakd.reporting import formatting
from iakd.reporting.exported import Exports
from iakd.reporting.results import Comparison, MethodResults, ModelResults, StudyResults

MAX_NAMED = 6  # methods in the line below a figure
SHORT = 12  # characters of a hash or commit that people see


def figure_origins(comparison: Comparison, studies: Sequence[StudyResults], exports: Exports | None) -> dict[str, str]:
    """Return for each figure the runs and the commit that it was made from, in a sentence."""
    methods = {(pair.name, results.label): results for pair in comparison.pairs for results in pair.methods}
    teachers = {pair.teacher_name: pair.teacher for pair in comparison.pairs}
    every, students = [*teachers.values(), *methods.values()], list(methods.values())
    best = [pair.ranked[0] for pair in comparison.pairs]
    kinds = [results for pair in comparison.pairs for results in pair.best_of_each_kind]
    swaps = [results for results in students if results.method and results.method.swaps]
    hinted = [
        results for results in students if results.method and {"hints", "hint_points"} & set(results.method.names)
    ]
    added = {(pair, effect.method) for pair, effects in comparison.swap_effects.items() for effect in effects}
    added |= {
        (pair, effect.counterpart)
        for pair, effects in comparison.swap_effects.items()
        for effect in effects
        if effect.counterpart
    }
    found = {
        "accuracy": every,
        "added": [results for key, results in methods.items() if key in added],
        "curves": students,
        "swaps": swaps,
        "hints": hinted,
        "calibration": [*teachers.values(), *kinds],
        "confusion": [*teachers.values(), *best],
    }
    texts = {name: _made_from(comparison, results) for name, results in found.items()}
    number = sum(len(study.trials) for study in studies)
    texts["tuning"] = (
        f"Made from the {formatting.plural(number, 'trial')} of {formatting.plural(len(studies), 'study', 'studies')}."
    )
    if exports:
        texts["pareto"] = f"{_made_from(comparison, every)} Times and sizes: {exports.conditions}."
    return texts


def _made_from(comparison: Comparison, shown: Sequence[MethodResults]) -> str:
    models = [model for results in shown for model in results.models]
    if not models:
        return "Made from no run."
    names = list(dict.fromkeys(results.label for results in shown))
    few = f" ({', '.join(names)})" if len(names) <= MAX_NAMED else ""
    commits = distinct((model.record["git_commit"] or "unknown")[:SHORT] for model in models)
    return f"Made from {formatting.plural(len(models), 'run')}{few}, commit {commits}."


def runs(comparison: Comparison) -> list[dict[str, str]]:
    """Return a row for each trained model: where it is, and what made it."""
    digits = comparison.digits
    teachers = {pair.teacher_name: (pair.teacher_name, pair.teacher) for pair in comparison.pairs}
    students = [(pair.title, results) for pair in comparison.pairs for results in pair.methods]
    return [
        {
            "of": name,
            "label": results.label,
            "seed": str(model.seed),
            "top1": formatting.number(model.evaluation["top1"], digits),
            "val": formatting.number(model.metrics["val_top1"], digits),
            "finished": _minute(model.record["finished"]),
            "commit": (model.record["git_commit"] or "–")[:SHORT],
            "key": model.record["key"][:SHORT],
            "weights": model.record["model_sha256"][:SHORT],
            "folder": str(model.folder),
        }
        for name, results in (*teachers.values(), *students)
        for model in results.models
    ]


def budget(comparison: Comparison, study: StudyResults) -> dict[str, Any]:
    """Return what a study tried and cost, and what it was worth on the test images."""
    pair = next((pair for pair in comparison.pairs if pair.name == study.pair), None)
    tuned = next((results for results in pair.methods if results.label == study.label), None) if pair else None
    found = comparison.tuning_effect(pair, tuned) if pair and tuned else None
    digits = comparison.digits
    states = {state: sum(trial["state"] == state for trial in study.trials) for state in ("pruned", "failed")}
    seconds = sum(trial["seconds"] for trial in study.trials if trial.get("seconds"))
    measure = "" if study.measure == "accuracy" else f" ({study.measure})"
    origin, gain = ("", "")
    if found:
        origin, bounds = found[0].label, formatting.interval(found[1], digits)
        gain = formatting.signed(found[1].mean, digits) + (f" ({bounds})" if bounds else "")
    return {
        "title": study.title,
        "trials": str(len(study.trials)),
        "ended": ", ".join(f"{n} {state}" for state, n in states.items() if n) or "none",
        "seeds": str(study.seeds),
        "epochs": formatting.whole(study.epochs),
        "time": formatting.duration(seconds) if seconds else "–",
        "settings": ", ".join(formatting.setting(one.name) for one in study.parameters),
        "best": f"{formatting.number(study.best['value'], digits)}{measure}" if study.best else "–",
        "origin": origin,
        "gain": gain,
    }


def answers(comparison: Comparison, studies: Sequence[StudyResults], manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a reviewer asks, with the answers."""
    params, counted = comparison.params, comparison.counted
    excluding, significant = (sum(getattr(one, name) for one in counted) for name in ("excludes_zero", "significant"))
    level = formatting.percent(params.report.confidence)
    tuned = [label for label, method in params.methods.items() if method.tuned]
    untuned = [label for label in params.methods if label not in tuned]
    records = [model.record for model in comparison.models]
    commits = {record["git_commit"] for record in records}
    unclean = sorted({str(commit)[:SHORT] for commit in commits if not commit or commit.endswith("-dirty")})
    notes = [
        *([f"the models were trained at {len(commits)} commits"] if len(commits) > 1 else []),
        *(["some were trained with uncommitted changes, or outside a checkout"] if unclean else []),
        *([f"on {len(found)} kinds of device"] if len(found := {record["device"] for record in records}) > 1 else []),
        *(["with different versions of packages"] if len({str(record["versions"]) for record in records}) > 1 else []),
    ]
    imported = " What an imported teacher was trained on is not checked here." * any(
        pair.teacher.imported_from for pair in comparison.pairs
    )
    return [
        (
            "Comparisons",
            f"{formatting.plural(len(counted), 'difference')} may be called significant here: all that are shown, and "
            f"all from which the headline was chosen. {excluding} have a {level} interval without zero; {significant} "
            "remain significant after Holm's correction for all of them."
            if counted
            else "None may be called significant: too few seeds.",
        ),
        ("Seeds", f"{_seeds_by_method(comparison)}; no run was left out."),
        (
            "Tuning",
            f"{', '.join(tuned)}: each by a study of {formatting.plural(params.tune.trials, 'trial')} × "
            f"{formatting.plural(params.tune.seeds, 'seed')} on validation images (below). Not tuned: "
            f"{', '.join(untuned) or 'none'}."
            if studies
            else "No method was tuned.",
        ),
        (
            "Test set",
            f"{formatting.whole(comparison.test_images)} images, used once, by finished models. Studies, exported "
            "models and the recommendation were chosen on validation images; the headline compares the best of each "
            f"kind on the test images, and is corrected for that choice.{imported}",
        ),
        ("Data problems", "; ".join(manifest["problems"]) or "none found"),
        ("Runs", f"{'; '.join(notes) or 'all at one commit, with the same versions, on the same kind of device'}."),
    ]


def origin(comparison: Comparison, studies: Sequence[StudyResults], manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of code, packages, data, seeds and machines; several values if the runs differ."""
    records = [model.record for model in comparison.models]
    versions = {" · ".join(f"{name} {v}" for name, v in record["versions"].items()) for record in records}
    return [
        ("Code", distinct(record["git_commit"] or "not a git checkout" for record in records)),
        (
            "Locked packages",
            f"requirements.lock, SHA-256 {distinct(r['lock_sha256'] or 'unknown' for r in records)}",
        ),
        ("Installed", "; ".join(sorted(versions))),
        ("Data", f"{manifest['source']['name']}, SHA-256 of images and labels {manifest['sha256']}"),
        *_imported_teachers(comparison),
        ("Seeds", _seeds(comparison)),
        ("Device", distinct(_device(record) for record in records)),
        (
            "Trained",
            f"{_minute(min(r['started'] for r in records))} to {_minute(max(r['finished'] for r in records))} UTC",
        ),
        ("Training time", _training_times(comparison, studies)),
    ]


def _imported_teachers(comparison: Comparison) -> list[tuple[str, str]]:
    teachers = {pair.teacher_name: pair.teacher.imported_from for pair in comparison.pairs}
    lines = [f"{name}: {checkpoint}" for name, checkpoints in teachers.items() for checkpoint in checkpoints]
    return [("Imported teachers", "; ".join(lines))] if lines else []


def distinct(values: Iterable[str]) -> str:
    """Return the common value, or all values with the number of runs that had each, the most frequent first."""
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return counts[0][0]
    ordered = sorted(counts, key=lambda c: (-c[1], c[0]))
    return "; ".join(f"{value} ({formatting.plural(n, 'run')})" for value, n in ordered)


def _device(record: dict[str, Any]) -> str:
    """Return what a model was trained on, with the machine around it as far as its record names it."""
    machine = record.get("machine")
    if not machine:
        return str(record["device"])
    around = formatting.machine(machine["processor"], machine["cores"], machine["system"])
    return around if record["device"] == "cpu" else f"{record['device']} in {around}"


def measured_on(model: ModelResults) -> str:
    """Return what a model's latency was measured on; if it is that of the training, with the machine around it."""
    device = str(model.evaluation.get("device", "cpu"))
    return _device(model.record) if device == model.record["device"] else device


def _seeds(comparison: Comparison) -> str:
    params, students = comparison.params, comparison.pairs[0].contenders[0].models  # the others have some of these
    named = (", ".join(map(str, seeds)) for seeds in (params.teach.seeds, [model.seed for model in students]))
    return "teachers {}; students {}; split {}".format(*named, params.dataset.split_seed)


def _seeds_by_method(comparison: Comparison) -> str:
    labels: dict[tuple[int, ...], list[str]] = {}
    for results in comparison.pairs[0].methods:  # the same in all pairs
        labels.setdefault(tuple(model.seed for model in results.models), []).append(results.label)
    (most, _), *fewer = sorted(labels.items(), key=lambda item: -len(item[0]))
    named = [f"{len(seeds)} for {', '.join(those)} ({', '.join(map(str, seeds))})" for seeds, those in fewer]
    return "; ".join([f"{len(most)} per method ({', '.join(map(str, most))})", *named])


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _training_times(comparison: Comparison, studies: Sequence[StudyResults]) -> str:
    """Return the wall time, summed over the runs of each kind."""
    teachers = {
        pair.teacher_name: [model.record["wall_seconds"] for model in pair.teacher.models]
        for pair in comparison.pairs
        if not pair.teacher.imported_from
    }
    students = [
        model.record["wall_seconds"]
        for pair in comparison.pairs
        for results in pair.methods
        for model in results.models
    ]
    seconds = {
        "teacher": [time for times in teachers.values() for time in times],
        "trial": [trial["seconds"] for study in studies for trial in study.trials if trial.get("seconds")],
        "student": students,
    }
    return "; ".join(
        f"{formatting.plural(len(times), kind)} {formatting.duration(sum(times))}"
        for kind, times in seconds.items()
        if times
    )
