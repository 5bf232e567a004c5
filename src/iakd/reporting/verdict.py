"""The outcome in sentences: what was compared, who won, what swapping itself added, and what is significant."""

from dataclasses import dataclass
from typing import Any, get_args

import yaml

from iakd.config import METHODS, Params, merged
from iakd.evaluation import seen
from iakd.reporting import formatting
from iakd.reporting.exported import Exports
from iakd.reporting.results import Comparison, MethodResults, PairComparison
from iakd.reporting.statistics import MIN_SEEDS, PairedDifference
from iakd.reporting.swapping import INTERACTIVE, Added, Condition, SwapEffect, by_counterpart, without_swaps


@dataclass(frozen=True)
class PairVerdict:
    """The outcome of one pair.

    `outcome`: iakd or other (which of them won significantly), open (neither), or alone (only one kind of method was
    trained). `interval`: that of the headline's difference, if it has one. `lead`: the best method with swapping minus
    the best without.
    """

    outcome: str
    headline: str
    interval: str
    details: list[str]
    lead: PairedDifference | None


def describe_setup(comparison: Comparison) -> str:
    """Return two sentences on what was compared, and how."""
    n = len(comparison.params.methods)
    methods = formatting.plural(n, "method")
    verb = "was tested" if n == 1 else "were compared"
    seeds = f"with {comparison.seeds_per_method} each"
    notes = {
        pair.teacher_name: seen.note(pair.teacher_name, model.record)
        for pair in comparison.pairs
        for model in pair.teacher.models
    }
    here = " here" if any(notes.values()) else ""
    images = " ".join(
        [
            f"Accuracy is measured on {formatting.whole(comparison.test_images)} test images that were not used for "
            f"training, tuning or any choice{here}.",
            *filter(None, notes.values()),
        ]
    )
    part = comparison.params.only.model_dump(exclude_none=True)
    if part:
        named = "; ".join(f"{setting} {', '.join(map(str, values))}" for setting, values in part.items())
        images += f" This is only a part of the experiment (setting only: {named})."
    dataset = comparison.params.dataset.name
    if len(comparison.pairs) > 1:
        pairs = f"{len(comparison.pairs)} pairs of teacher and student"
        return f"{methods} {verb} on {dataset} for {pairs}, {seeds}. {images}"
    pair = comparison.pairs[0]
    smallest = min(results.median("parameters") for results in pair.methods)  # some methods leave the student larger
    ratio = formatting.cost_ratio(pair.teacher.median("parameters"), smallest, "fewer", "more")
    size = "as many parameters as" if ratio == "the same" else f"{ratio} parameters than"
    return (
        f"{methods} of training {pair.student_name}, which has {size} its teacher {pair.teacher_name}, {verb} on "
        f"{dataset}, {seeds}. {images}"
    )


def pair_verdict(comparison: Comparison, pair: PairComparison) -> PairVerdict:
    """Compare the best method with swapping with the best without."""
    return _VerdictWriter(comparison, pair).verdict()


def overview(comparison: Comparison) -> str:
    """Return the outcome of several pairs as a headline."""
    outcomes = [pair_verdict(comparison, pair).outcome for pair in comparison.pairs]
    n = len(outcomes)
    if set(outcomes) == {"alone"}:
        return formatting.plural(n, "pair") + " of teacher and student"
    won, lost, undecided = (outcomes.count(name) for name in ("iakd", "other", "open"))
    rest = f"; {undecided} {'is' if undecided == 1 else 'are'} undecided" if undecided else ""
    return f"IAKD won {won} and lost {lost} of {formatting.plural(n, 'pair')}{rest}"


def verdict_lines(comparison: Comparison) -> str:
    """Return the outcome for a terminal: the winner and the interval, each in a line; of several pairs, a line each."""
    found = [(pair, pair_verdict(comparison, pair)) for pair in comparison.pairs]
    if len(found) == 1:
        verdict = found[0][1]
        lines = [verdict.headline, *([f"{verdict.interval} points"] if verdict.interval else [])]
    else:
        lines = [overview(comparison)]
        for pair, verdict in found:
            interval = f" ({verdict.interval})" if verdict.interval else ""
            lines.append(f"{pair.title}: {verdict.headline}{interval}")
    return "".join(f"{line}\n" for line in lines)


def warnings(comparison: Comparison) -> list[str]:
    """Return a sentence for each result that is not what it seems.

    These are methods with swaps that never swap, and pairs whose most accurate method is no better than always giving
    the same answer.
    """
    found = []
    for pair in comparison.pairs:
        for results in pair.methods:
            reason = results.method.iakd.without_effect if results.method and results.method.swaps else None
            if reason:
                found.append(
                    f"{pair.title}: {results.label} was trained without swaps ({reason}), so it counts as a method "
                    "without swapping"
                )
        leader = pair.ranked[0]
        majority = leader.models[0].evaluation.get("majority_top1")
        if majority is not None and leader.top1.mean <= majority:
            reached, always = (formatting.number(value, comparison.digits) for value in (leader.top1.mean, majority))
            found.append(
                f"{pair.title}: even the most accurate method, {leader.label}, is right for only {reached} % of the "
                f"test images; always answering the most frequent class would be for {always} %"
            )
    return found


def caution(comparison: Comparison) -> str:
    """Return what to keep in mind about the number of comparisons and seeds."""
    counted = comparison.counted
    if not counted and len(comparison.params.methods) > 1:
        n = max((found.n for found in comparison.differences.values()), default=0)
        few = "no seed in common" if not n else "a single seed" if n == 1 else "two seeds"
        why = "there are no intervals, so " * (n == 1)
        return f"With {few} {why}no difference can be called significant: train {MIN_SEEDS} or more."
    if not counted:
        return ""
    level = formatting.percent(1 - comparison.params.report.confidence)
    alone = sum(found.excludes_zero for found in counted)
    together = sum(found.significant for found in counted)
    text = (
        "Of many intervals some exclude zero by chance. This report shows, or chose its headline from, "
        f"{formatting.plural(len(counted), 'difference')}: {alone or 'none'} {'have' if alone > 1 else 'has'} an "
        f"interval without zero, {together or 'none'} {'have' if together > 1 else 'has'} a ✓, which takes their "
        f"number into account (Holm's correction). Without any real difference, at most {level} of reports have a ✓ "
        "at all."
    )
    if min(found.n for found in counted) == MIN_SEEDS:
        text += " With three seeds only huge differences have one."
    return text


def recommendation(comparison: Comparison, exports: Exports | None = None) -> str:
    """Return the model to use, in a sentence: of all pairs the method that is best on the validation images."""
    pair = max(comparison.pairs, key=lambda pair: pair.recommended.merit)
    results = pair.recommended
    model, digits = results.deployed, comparison.digits
    val = formatting.number(results.merit[0], digits)
    lost = pair.teacher.top1.mean - results.top1.mean
    away = f"{formatting.number(abs(lost), digits)} points {'below' if lost > 0 else 'above'} {pair.teacher_name}"
    size = formatting.cost_ratio(pair.teacher.median("parameters"), results.median("parameters"), "fewer", "more")
    file = exports.of(pair, results) if exports else None
    folder = file.path.parent if file else model.folder
    costs = ""
    if file:
        ms, mb = (formatting.QUANTITIES[name].text for name in ("latency_ms", "bytes"))
        costs = f"; {ms(file.measured.latency_ms)} ms per image and {mb(file.measured.bytes)} MB as ONNX"
    among = f" of {len(pair.contenders)} methods" if len(pair.contenders) > 1 else ""
    among += f" with {len(results.models)} seeds" if 1 < len(pair.contenders) < len(pair.methods) else ""
    among += f" and {len(comparison.pairs)} pairs" if len(comparison.pairs) > 1 else ""
    reason = f"the best{among} on the validation images ({val} %)" if among else f"{val} % on the validation images"
    return (
        f"{pair.student_name} trained with {results.label}, seed {model.seed} ({folder}): {reason}, with "
        f"{formatting.mean_std(results.top1, digits)} % on the test images, {away} "
        f"with {size if size != 'the same' else 'as many'} parameters{costs}."
    )


def swapping_summary(comparison: Comparison) -> str:
    """Return a sentence on the effects of swapping in all methods, or nothing if none has an interval."""
    parts = []
    for condition in get_args(Condition):
        effects = [
            effect.difference
            for effects in comparison.swap_effects.values()
            for effect in effects
            if effect.condition == condition and effect.difference and effect.difference.p_adjusted is not None
        ]
        better = sum(effect.significant and effect.mean > 0 for effect in effects)
        worse = sum(effect.significant and effect.mean < 0 for effect in effects)
        if effects:
            parts.append(f"at {formatting.conditions([condition])}: {better} of {len(effects)} better, {worse} worse")
    return f"Significant differences from the same loss without swaps, {'; '.join(parts)}." if parts else ""


@dataclass(frozen=True)
class Missing:
    """Why some methods with swaps have no counterpart, and the entry of `methods` that would be one."""

    text: str
    entry: str = ""


def missing_counterparts(comparison: Comparison, pair: PairComparison) -> list[Missing]:
    """Return the comparisons that the settings do not allow; methods that lack the same counterpart share one."""
    params = comparison.params
    groups: dict[tuple[str, ...], list[SwapEffect]] = {}
    for effect in comparison.swap_effects[pair.name]:
        if effect.condition.endswith("equal_epochs") and effect.counterpart is None:
            key = (effect.condition, _entry_without_swaps(params, effect), effect.nearest or "", *effect.differs_in)
        elif effect.epochs or effect.differs_in == ("device",):  # otherwise the text on equal epochs says it all
            key = (effect.condition, effect.nearest or "", *effect.differs_in)
        else:
            continue
        groups.setdefault(key, []).append(effect)
    return [_missing(params, effects) for effects in groups.values()]


def _missing(params: Params, effects: list[SwapEffect]) -> Missing:
    effect = max(effects, key=lambda effect: effect.epochs or 0)
    methods = ", ".join(effect.method for effect in effects)
    condition = formatting.conditions([effect.condition])
    start = f"No comparison at {condition}{',' if ',' in condition else ''} for {methods}."
    nearest = effect.nearest or ""
    if effect.condition.endswith("equal_epochs"):
        close = f" {nearest} differs in {', '.join(effect.differs_in)}." if nearest else ""
        entry = _entry_without_swaps(params, effect)
        more = "the same loss without swaps" if entry else "the same loss without swaps and with settings to tune"
        return Missing(f"{start}{close} Add {more}{':' if entry else '.'}", entry)
    if effect.differs_in:
        return Missing(f"{start} {nearest} was trained on another device.")
    start += f" {nearest} took {formatting.ratio(effect.time_ratio)} its time."
    if "epochs" in params.methods[nearest].recipe:
        return Missing(f"{start} Raise its recipe.epochs to {effect.epochs}.")
    settings = params.methods[nearest].model_dump(mode="json", exclude_unset=True)
    entry = _entry(f"{nearest}-longer", merged(settings, {"recipe": {"epochs": effect.epochs}}))
    return Missing(f"{start} Add the same with more epochs:", entry)


def _entry_without_swaps(params: Params, effect: SwapEffect) -> str:
    """Return the entry of a counterpart; nothing if it were tuned and none of the searched settings remained."""
    method = params.methods[effect.method]
    swapping = {name for name in method.names if METHODS[name].group == INTERACTIVE}
    settings = method.model_dump(mode="json", exclude_unset=True, exclude={*swapping, "tune"})
    label = without_swaps(method)
    if label in params.methods:
        label = f"{effect.method}-without-swaps"
    if effect.condition.startswith("tuned"):
        searched = method.model_dump(mode="json", exclude_unset=True).get("tune", {})
        settings["tune"] = {name: values for name, values in searched.items() if name.partition(".")[0] not in swapping}
        label += "-tuned"
        if not settings["tune"]:
            return ""
    return _entry(label, {**settings, "method": without_swaps(method)})


def _entry(label: str, settings: dict[str, Any]) -> str:
    """Return an entry of `methods` in one line of YAML."""
    shown = {name: value for name, value in settings.items() if (name, value) != ("method", label)}
    return yaml.safe_dump({label: shown}, default_flow_style=True, sort_keys=False, width=1000).strip()[1:-1]


class _VerdictWriter:
    """Sentences on one pair."""

    def __init__(self, comparison: Comparison, pair: PairComparison) -> None:
        self.pair = pair
        self.digits = comparison.digits
        self.level = comparison.params.report.confidence
        self.missing = comparison.missing_references
        self.effects = comparison.swap_effects[pair.name]
        self.lead = comparison.lead(pair)
        self.counted = len(comparison.counted)
        self.comparison = comparison

    def verdict(self) -> PairVerdict:
        rivals = self.pair.rivals
        if len(self.pair.best_of_each_kind) == 2:
            champion = next(results for results in rivals if results.interactive)
            outcome = "open" if not (self.lead and self.lead.significant) else "iakd" if self.lead.mean > 0 else "other"
        else:
            champion, outcome = rivals[0], "alone"
        headline, interval, first = self._compare(*rivals) if len(rivals) == 2 else self._only(champion)
        details = [
            first,
            *self._unequal(rivals),
            *self._added(champion),
            *self._gains(champion, rivals),
            *self._tuned_in_vain(),
        ]
        return PairVerdict(outcome, headline, interval, details, self.lead)

    def _only(self, results: MethodResults) -> tuple[str, str, str]:
        headline = f"{results.label} reached {self._score(results)}"
        return headline, "", "It is the only method, so there is no comparison."

    def _compare(self, better: MethodResults, worse: MethodResults) -> tuple[str, str, str]:
        """Return headline, interval and first sentences."""
        difference = self.comparison.difference(self.pair, better.label, worse.label)
        if difference and difference.mean < 0:  # with the seeds that both have, not with all
            better, worse = worse, better
            difference = self.comparison.difference(self.pair, better.label, worse.label)
        scores = (
            f"{self._name(better)} reached {self._score(better)}; {self._name(worse)} reached {self._score(worse)}."
        )
        if difference is None:
            headline = f"{better.label} reached more than {worse.label}, but they have no seed in common"
            return headline, "", f"{scores} Differences are compared seed by seed, so there is none here."
        points = f"{formatting.number(difference.mean, self.digits)} points"
        if difference.low is None:
            interval = ""
            training = "one training each" if len(better.models) == len(worse.models) else "one seed in common"
            meaning = f"With {training}, the difference may be chance; train more seeds to find out."
        else:
            level, bounds = formatting.percent(self.level), formatting.interval(difference, self.digits)
            interval, meaning = f"{level} interval {bounds}", self._meaning(difference)
            if len(better.models) != len(worse.models):
                meaning += " Only seeds that both have are compared."
        if difference.significant:
            headline = f"{self._won(better, worse)} by {points}"
        elif not float(f"{difference.mean:.{self.digits}f}"):
            headline = f"A tie between {better.label} and {worse.label}"
        elif difference.low is None:
            headline = f"{better.label} leads {worse.label} by {points}, but with one seed this may be chance"
        else:
            headline = f"No clear winner: {better.label} leads {worse.label} by {points}"
        return headline, interval, f"{scores} {meaning}"

    def _won(self, better: MethodResults, worse: MethodResults) -> str:
        beat = f"{better.label} beat {worse.label}"
        if better.interactive == worse.interactive:
            return beat
        swapping = better if better.interactive else worse
        name = "IAKD" if swapping.method and swapping.method.swaps else "Swapping"
        return f"{name} won: {beat}" if better is swapping else f"{name} lost: {beat}"

    def _name(self, results: MethodResults) -> str:
        """Return the label; with the number of methods that it represents, if it is the best of its kind."""
        kind = [other for other in self.pair.methods if other.interactive == results.interactive]
        if len(kind) in (1, len(self.pair.methods)):
            return results.label
        kind_name = "methods with swapping" if results.interactive else "methods without"
        return f"{results.label}, the best of {len(kind)} {kind_name},"

    def _score(self, results: MethodResults) -> str:
        return f"{formatting.mean_std(results.top1, self.digits)} %"

    def _meaning(self, difference: PairedDifference) -> str:
        if difference.n < MIN_SEEDS:
            return f"{difference.n} seeds are too few to call their difference significant."
        among = f"among the {self.counted} differences of this report" if self.counted > 1 else ""
        interval = f"The interval of their difference, paired over {difference.n} seeds,"
        if difference.significant:
            return f"{interval} excludes zero: it is significant{', also ' if among else ''}{among}."
        if difference.excludes_zero:
            return f"{interval} excludes zero, but {among} it may be chance."
        return f"{interval} includes zero: it may be chance."

    def _unequal(self, rivals: list[MethodResults]) -> list[str]:
        """Return what, apart from their losses, the rivals do not have in common."""
        first, *others = [results for results in rivals if results.method and results.recipe]
        notes = []
        for other in others:
            assert first.method and first.recipe and other.method and other.recipe
            if first.method.init != other.method.init:
                notes.append(f"{first.label} starts from {_start(first)}, {other.label} from {_start(other)}.")
            if first.recipe.epochs != other.recipe.epochs:
                notes.append(
                    f"{first.label} was trained for {first.recipe.epochs} epochs, "
                    f"{other.label} for {other.recipe.epochs}."
                )
            if first.method.tuned != other.method.tuned:
                tuned, plain = (first, other) if first.method.tuned else (other, first)
                notes.append(f"{tuned.label} was tuned on the validation images, {plain.label} was not.")
        return [f"Note that {note}" for note in notes]

    def _added(self, champion: MethodResults) -> list[str]:
        """Return what swapping itself added to the method."""
        own = [effect for effect in self.effects if effect.method == champion.label]
        phrases = [self._describe_added(added) for added in by_counterpart(own)]
        if phrases:
            timed = any(effect.condition == "equal_time" and effect.counterpart for effect in own)
            phrases += [] if timed else ["at equal training time it was not compared"]
            return [f"What swapping itself added to {champion.label}: {'; '.join(phrases)}."]
        if champion.interactive:
            return [
                f"What swapping itself added to {champion.label} is unknown: "
                "the same loss without swaps was not trained."
            ]
        return []

    def _describe_added(self, added: Added) -> str:
        points = formatting.signed(added.difference.mean, self.digits)
        where = f"over {added.reference} at {formatting.conditions(added.conditions)}"
        return f"{points} points {where} ({self._inside(added.difference)})"

    def _gains(self, results: MethodResults, rivals: list[MethodResults]) -> list[str]:
        """Return the method's gains over the references that were not its rival anyway."""
        known = {rival.label for rival in rivals}
        phrases = [self._gain(reference, gain) for reference, gain in results.gains.items() if reference not in known]
        sentences = [f"{results.label} is {' and '.join(phrases)}."] if phrases else []
        if self.missing:
            names = " or ".join(self.missing)
            sentences.append(f"The settings have no method called {names}, so no gain over it is shown.")
        return sentences

    def _tuned_in_vain(self) -> list[str]:
        """Return a sentence on each tuned method that is worse on the test images than what it came from."""
        sentences = []
        for results in self.pair.methods:
            found = self.comparison.tuning_effect(self.pair, results)
            if found and found[1].mean < 0:
                origin, difference = found
                points = formatting.number(-difference.mean, self.digits)
                bounds = formatting.interval(difference, self.digits)
                inside = f" ({formatting.percent(self.level)} interval {bounds})" if bounds else ""
                how = f"{points} points worse" if float(points) else "no better"
                sentences.append(
                    f"Tuning did not pay for {results.label}: on the test images it is {how} than {origin.label}, with "
                    f"which its study started{inside}."
                )
        return sentences

    def _inside(self, difference: PairedDifference) -> str:
        bounds, judgement = formatting.interval(difference, self.digits), formatting.judgement(difference)
        return f"{bounds}, {judgement}" if bounds else judgement

    def _gain(self, reference: str, gain: PairedDifference) -> str:
        inside = self._inside(gain)
        points = formatting.number(abs(gain.mean), self.digits)
        if not float(points):
            return f"level with {reference} ({inside})"
        return f"{points} points {'above' if gain.mean > 0 else 'below'} {reference} ({inside})"


def _start(results: MethodResults) -> str:
    assert results.method
    start = results.method.init
    return {"random": "random weights", "teacher": "copies of the teacher's weights"}.get(start, f"a {start} start")
