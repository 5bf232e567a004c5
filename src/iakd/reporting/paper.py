"""For a paper: the tables in LaTeX, a paragraph on the methods, and the BibTeX entries of all that was used."""

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from iakd.config import METHODS, Recipe
from iakd.reporting import formatting, tables
from iakd.reporting.results import Comparison, MethodResults, PairComparison, StudyResults
from iakd.reporting.statistics import MIN_SEEDS, PairedDifference

CITED = re.compile(r"\[\[([^\]]+)\]\]")  # [[key]] or [[key,key]] in a text
COSTS = ("parameters", "macs")  # of the tables: in the caption where all students are the same network
ENTRY = re.compile(r"@\w+\{\s*([^,\s]+)\s*,.*?\n\}", re.DOTALL)
LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "γ": r"$\gamma$",
    "ε": r"$\varepsilon$",
    "…": r"\ldots{}",
    "’": "'",
    "“": "``",
    "”": "''",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
    "\u202f": r"\,",
    "\u00a0": "~",
}


def escape(text: str) -> str:
    """Return a text as LaTeX; letters that pdfTeX does not have, as none of the settings' names has, become '?'."""
    found = "".join(LATEX.get(character, character) for character in text)
    return found.encode("latin-1", "replace").decode("latin-1")


def entries() -> dict[str, str]:
    """Return the BibTeX entries of the methods of this project, by key."""
    text = resources.files("iakd.reporting").joinpath("references.bib").read_text(encoding="utf-8")
    return {match[1]: match[0] for match in ENTRY.finditer(text)}


def bibliography(comparison: Comparison, paragraph: str) -> str:
    """Return the BibTeX entries of all that the paragraph cites, in the order of the citations."""
    known = entries() | _of_plugins(comparison)
    return "\n\n".join(known[key] for key in cited(paragraph)) + "\n"


def _of_plugins(comparison: Comparison) -> dict[str, str]:
    """Return the entries that methods of other packages bring along."""
    given = [cite for name in _used(comparison) for cite in METHODS[name].cites if cite.lstrip().startswith("@")]
    return {_key(entry): entry.strip() for entry in given}


def _key(cite: str) -> str:
    """Return the key of a citation, which is given as the key or as the whole entry."""
    return cite.partition("{")[2].partition(",")[0].strip() if cite.lstrip().startswith("@") else cite


def cited(text: str) -> list[str]:
    """Return the keys that a text cites, each once."""
    return list(dict.fromkeys(key for keys in CITED.findall(text) for key in keys.split(",")))


def _used(comparison: Comparison) -> list[str]:
    """Return the names of all methods that the settings use, each once."""
    methods = comparison.params.methods.values()
    return list(dict.fromkeys(name for method in methods for name in method.names))


def paragraph(comparison: Comparison, studies: Sequence[StudyResults], manifest: dict[str, Any]) -> str:
    """Return what was done, as plain sentences with citations as [[key]]."""
    sentences = [
        _task(comparison, manifest),
        _methods(comparison),
        _training(comparison),
        *_tuning(comparison, studies),
        _statistics(comparison),
        _software(comparison),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def as_text(comparison: Comparison, paragraph: str) -> str:
    """Return the paragraph for readers, with authors and years for the keys."""
    known = {key: _author_year(entry) for key, entry in (entries() | _of_plugins(comparison)).items()}

    def cite(match: re.Match[str]) -> str:
        return f"({'; '.join(known.get(key, key) for key in match[1].split(','))})"

    return CITED.sub(cite, paragraph)


def as_latex(paragraph: str, commit: str | None) -> str:
    """Return the paragraph as LaTeX."""
    parts = CITED.split(paragraph)
    texts = [rf"\cite{{{part}}}" if i % 2 else escape(part) for i, part in enumerate(parts)]
    text = "".join(texts).replace(r" \cite", r"~\cite")
    return f"{_header(commit)}{text}\n"


def _author_year(entry: str) -> str:
    authors = re.search(r"author\s*=\s*\{(.+?)\},?\n", entry)
    year = re.search(r"year\s*=\s*\{?(\d+)", entry)
    names = (authors[1] if authors else "").split(" and ")
    names = [re.sub(r"[{}\\'\"]", "", name.partition(",")[0]) for name in names]
    who = names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."
    return f"{who} {year[1] if year else ''}".strip()


def _header(commit: str | None) -> str:
    return f"% written by iakd report, from models trained at commit {commit or 'unknown'}\n"


def _task(comparison: Comparison, manifest: dict[str, Any]) -> str:
    splits = manifest.get("splits", {})
    sizes = {name: formatting.whole(split["n"]) for name, split in splits.items()}
    images = (
        f" ({len(manifest['classes'])} classes; {sizes['train']} training, {sizes['val']} validation and "
        f"{sizes['test']} test images)"
        if {"train", "val", "test"} <= set(sizes)
        else ""
    )
    pairs = [f"{pair.student_name} with {pair.teacher_name} as its teacher" for pair in comparison.pairs]
    transfer = comparison.params.distill.transfer
    seen = ""
    if transfer:
        amount = formatting.percent(transfer) if isinstance(transfer, float) else formatting.whole(transfer)
        seen = f" Students saw {amount} of the training images, teachers all of them."
    imported = sorted({pair.teacher_name for pair in comparison.pairs if pair.teacher.imported_from})
    given = f" The weights of {_listed(imported)} were imported, not trained here." if imported else ""
    if any(not pair.teacher.imported_from for pair in comparison.pairs):
        given += f" Teachers are trained on labels: {describe_recipe(comparison.params.teach.recipe)}."
    methods = formatting.plural(len(comparison.params.methods), "way")
    return (
        f"We compare {methods} of training {_listed(pairs)} on {comparison.params.dataset.name}{images}.{seen}{given}"
    )


def _methods(comparison: Comparison) -> str:
    phrases = []
    for name in _used(comparison):
        spec = METHODS[name]
        keys = ",".join(map(_key, spec.cites))
        summary = re.sub(r" \([^)]*\)$", "", spec.summary)  # without its source
        phrases.append(f"{name}, {summary}{f' [[{keys}]]' if keys else ''}")
    terms = f"The methods consist of these terms: {'; '.join(phrases)}." if phrases else ""
    sums = []
    for label, method in comparison.params.methods.items():
        if label not in METHODS and label != method.method:
            settings = formatting.describe_settings(method, brief=True)
            sums.append(f"{label} is {method.method}{f' ({settings})' if settings else ''}")
    return f"{terms} {'; '.join(sums)}." if sums else terms


def _training(comparison: Comparison) -> str:
    recipe = comparison.params.distill.recipe
    own = [label for label, method in comparison.params.methods.items() if method.recipe]
    but = f", except where a method has its own recipe ({_listed(own)})" if own else ""
    return (
        f"All students are trained with the same recipe{but}: {describe_recipe(recipe)}. Each method is trained with "
        f"{comparison.seeds_per_method}; with the same seed, methods share the initial weights and the order of "
        "images. We report the accuracy of the last epoch on the test set, which was not used for any choice, as mean "
        "± sample standard deviation over the seeds."
    )


def describe_recipe(recipe: Recipe) -> str:
    """Return a recipe in words."""
    if recipe.optimizer == "sgd":
        optimiser = f"SGD with {'Nesterov ' if recipe.nesterov else ''}momentum {recipe.momentum:g}"
    else:
        optimiser = "AdamW"
    lr = recipe.lr_schedule
    shape = {
        "multistep": f"multiplied by {lr.gamma:g} after "
        f"{_listed([formatting.percent(milestone) for milestone in lr.milestones])} of the epochs",
        "cosine": "with cosine decay",
        "onecycle": "with a one-cycle schedule",
        "constant": "kept constant",
    }[lr.kind]
    warmup = f" after a linear warm-up of {formatting.percent(lr.warmup)} of the epochs" if lr.warmup else ""
    more = [
        *([f"label smoothing {recipe.label_smoothing:g}"] if recipe.label_smoothing else []),
        *([f"gradients clipped to norm {recipe.clip_norm:g}"] if recipe.clip_norm else []),
        *([f"a moving average of the weights (decay {recipe.ema:g})"] if recipe.ema else []),
        *([f"{recipe.precision} autocast"] if recipe.precision != "fp32" else []),
        f"augmentation: {_augmentation(recipe)}",
    ]
    return (
        f"{recipe.epochs} epochs, batches of {recipe.batch_size}, {optimiser}, learning rate {recipe.lr:g} "
        f"{shape}{warmup}, weight decay {recipe.weight_decay:g}, {', '.join(more)}"
    )


def _augmentation(recipe: Recipe) -> str:
    augment = recipe.augment
    words = [
        *([f"random crops with {augment.pad} pixels of padding"] if augment.pad else []),
        *(["random resized crops"] if augment.crop == "resized" else []),
        *(["horizontal flips"] if augment.flip else []),
        *({"randaugment": ["RandAugment"], "trivialaugment": ["TrivialAugment"]}.get(augment.policy, [])),
        *(["random erasing"] if augment.erase else []),
        *(["cutout"] if augment.cutout else []),
        *(["mixup"] if augment.mixup else []),
        *(["CutMix"] if augment.cutmix else []),
    ]
    return _listed(words) or "none"


def _tuning(comparison: Comparison, studies: Sequence[StudyResults]) -> list[str]:
    if not studies:
        return ["No hyperparameter was tuned for this comparison."]
    tune = comparison.params.tune
    tuned = [label for label, method in comparison.params.methods.items() if method.tuned]
    sampler = "its TPE sampler [[bergstra2011algorithms]]" if tune.sampler.kind == "tpe" else "random search"
    measure = _listed(list(dict.fromkeys(study.measure for study in studies)))
    pruned = f" with the {tune.pruner.kind} pruner" if tune.pruner.kind != "none" else " without pruning"
    return [
        f"The settings of {_listed(tuned)} were searched with Optuna [[akiba2019optuna]] by {sampler}{pruned}: "
        f"{formatting.plural(tune.trials, 'trial')} of {formatting.plural(tune.seeds, 'seed')} for each of them and "
        f"each pair, compared by their mean {measure} on the validation images; the final students have other seeds. "
        "All other methods were not tuned."
    ]


def _statistics(comparison: Comparison) -> str:
    counted = len(comparison.counted)
    if not counted:
        return f"With fewer than {MIN_SEEDS} seeds in common, no difference is called significant."
    level = formatting.percent(comparison.params.report.confidence)
    return (
        f"Differences are paired by seed and test image; their {level} intervals are for other seeds and other test "
        "images, with seeds as readers and images as cases [[obuchowski1995hypothesis]]. A difference is called "
        f"significant after Holm's correction [[holm1979simple]] for all {formatting.plural(counted, 'difference')} "
        "that are shown, or that the headline was chosen from."
    )


def _software(comparison: Comparison) -> str:
    record = comparison.models[0].record
    version = record["versions"].get("torch")
    commit = record["git_commit"]
    on = sorted({model.record["device"] for model in comparison.models})
    return (
        f"Everything was trained with PyTorch{f' {version}' if version else ''} [[paszke2019pytorch]] on "
        f"{_listed(on)}{f', at commit {commit[:12]} of the code' if commit else ''}."
    )


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def latex(comparison: Comparison) -> str:
    """Return a table (booktabs) for each pair: mean ± std, the best in bold, significant gains marked.

    Where classes differ in size, another one has the balanced accuracy.
    """
    commit = comparison.models[0].record["git_commit"]
    head = f"{_header(commit)}% needs \\usepackage{{booktabs}}\n"
    found = [table for pair in comparison.pairs for table in (_table(comparison, pair), _uneven(comparison, pair))]
    return head + "\n".join(table for table in found if table)


def _table(comparison: Comparison, pair: PairComparison) -> str:
    references = comparison.references
    varied = [name for name in COSTS if len({results.median(name) for results in pair.methods}) > 1]
    columns = ["Method", "$n$", escape(formatting.TOP1), *(f"Gain over {escape(name)}" for name in references)]
    columns += [escape(formatting.QUANTITIES[name].title) for name in varied]
    rows = [r"\toprule", _row(columns), r"\midrule", _results(comparison, pair, pair.teacher, varied), r"\midrule"]
    for position, (title, group) in enumerate(pair.groups):
        if title:
            rows += [r"\addlinespace"] * bool(position)
            rows.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{{escape(title)}}} \\")
        rows += [_results(comparison, pair, results, varied) for results in group]
    rows.append(r"\bottomrule")
    counted, level = len(comparison.counted), formatting.percent(comparison.params.report.confidence)
    student = pair.student_name if varied else f"{pair.student_name} ({_size(pair.methods[0])})"
    caption = f"Methods of training {student} with {pair.teacher_name} ({_size(pair.teacher)}) as its teacher on "
    caption += f"{comparison.params.dataset.name}: test accuracy, mean ± standard deviation over n seeds. "
    caption = escape(caption).replace(" n seeds", " $n$ seeds")
    if references:
        caption += escape(f"Gains in points, with {level} intervals for other seeds and test images")
        caption += rf"; $^*$ significant among {counted} comparisons (Holm)." if counted else "."
    return _environment(caption, f"{comparison.params.dataset.name}-{pair.name}", len(columns), rows)


def _uneven(comparison: Comparison, pair: PairComparison) -> str:
    models = tables.balance(comparison, pair)
    if not models:
        return ""
    rows = [r"\toprule", _row(["Method", *map(escape, tables.BALANCE_COLUMNS)]), r"\midrule"]
    rows += [_row([escape(name), *map(escape, values)]) for name, _, values in models] + [r"\bottomrule"]
    caption = escape(
        f"{pair.title} on {comparison.params.dataset.name}, whose classes differ in size. {tables.BALANCE_NOTE}"
    )
    return _environment(caption, f"{comparison.params.dataset.name}-{pair.name}-balanced", len(models[0][2]) + 1, rows)


def _environment(caption: str, label: str, columns: int, rows: Sequence[str]) -> str:
    inner = "\n".join(f"    {row}" for row in rows)
    return (
        "\\begin{table}\n  \\centering\\small\\setlength{\\tabcolsep}{4pt}\n"
        f"  \\caption{{{caption}}}\n  \\label{{tab:{label}}}\n"
        f"  \\begin{{tabular}}{{l{'r' * (columns - 1)}}}\n{inner}\n  \\end{{tabular}}\n\\end{{table}}\n"
    )


def _size(results: MethodResults) -> str:
    parameters, macs = (formatting.QUANTITIES[name].text(results.median(name)) for name in COSTS)
    return f"{parameters} parameters, {macs} MACs"


def _results(comparison: Comparison, pair: PairComparison, results: MethodResults, varied: Sequence[str]) -> str:
    digits, top1 = comparison.digits, results.top1
    mean = formatting.number(top1.mean, digits)
    best = results.method and mean == formatting.number(pair.ranked[0].top1.mean, digits)
    score = rf"\textbf{{{mean}}}" if best else mean
    std = "" if top1.std is None else rf" $\pm$ {formatting.number(top1.std, digits)}"
    name = results.label if results.method else f"Teacher ({pair.teacher_name})"
    gains = [_gain(results.gains.get(reference), digits) for reference in comparison.references]
    costs = [escape(formatting.QUANTITIES[cost].text(results.median(cost))) for cost in varied]
    return _row([escape(name), str(top1.n), f"{score}{std}", *gains, *costs])


def _gain(gain: PairedDifference | None, digits: int) -> str:
    if gain is None:
        return "--"
    bounds = formatting.interval(gain, digits).replace(" to ", ", ")
    text = escape(formatting.signed(gain.mean, digits)) + ("$^*$" if gain.significant else "")
    return f"{text} [{escape(bounds)}]" if bounds else text


def _row(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"
