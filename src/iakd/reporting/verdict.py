"""The outcome in sentences: what was compared, who won, by how much, and whether that is significant."""

from dataclasses import dataclass

from iakd.reporting import formatting
from iakd.reporting.results import Comparison, MethodResults, PairComparison
from iakd.reporting.statistics import PairedDifference, paired_difference


@dataclass(frozen=True)
class PairVerdict:
    """The outcome of one pair.

    `outcome`: iakd or other (which of them won significantly), open (neither), or alone (only one kind of method was
    trained). `lead`: the best method with swapping minus the best without.
    """

    outcome: str
    headline: str
    details: list[str]
    lead: PairedDifference | None


def best_of_each_kind(pair: PairComparison) -> list[MethodResults]:
    """Return the most accurate method with swapping and the most accurate without, the better one first."""
    kinds = ([m for m in pair.ranked if m.is_iakd], [m for m in pair.ranked if not m.is_iakd])
    return sorted((methods[0] for methods in kinds if methods), key=lambda results: -results.top1.mean)


def describe_setup(comparison: Comparison) -> str:
    """Return two sentences on what was compared, and how."""
    n = len(comparison.params.methods)
    methods = formatting.plural(n, "method")
    verb = "was tested" if n == 1 else "were compared"
    seeds = f"with {formatting.plural(len(comparison.params.distill.seeds), 'seed')} each"
    images = (
        f"Accuracy is measured on {formatting.whole(comparison.test_images)} test images that were not used for "
        "training, tuning or any choice."
    )
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


def caution(comparison: Comparison) -> str:
    """Return what to keep in mind about the number of comparisons and seeds."""
    n = len(comparison.gains)
    if not n and len(comparison.params.distill.seeds) == 1:
        return "With a single seed there are no intervals, so no gain can be called significant."
    if not n:
        return ""
    significant = sum(gain.significant for gain in comparison.gains.values())
    remaining = len(comparison.jointly_significant)
    level = comparison.params.report.confidence
    by_chance = formatting.number(n * (1 - level), 1)
    text = (
        f"Of the {formatting.plural(n, 'gain')} in this report, {significant or 'none'} "
        f"{'are' if significant > 1 else 'is'} significant taken one by one; about {by_chance} would be by chance "
        f"alone. With Holm's correction for the number of gains, {remaining or 'none'} "
        f"{'remain' if remaining > 1 else 'remains'} significant{', marked ✓' if remaining else ''}."
    )
    if next(iter(comparison.gains.values())).n == 2:
        text += " With two seeds the intervals are very wide: only huge differences can be significant."
    return text


class _VerdictWriter:
    """Sentences on one pair."""

    def __init__(self, comparison: Comparison, pair: PairComparison) -> None:
        self.pair = pair
        self.digits = comparison.digits
        self.level = comparison.params.report.confidence
        self.missing = comparison.missing_references

    def verdict(self) -> PairVerdict:
        rivals = best_of_each_kind(self.pair)
        if len(rivals) == 2:
            champion, other = sorted(rivals, key=lambda results: not results.is_iakd)
            lead = self._difference(champion, other)
            outcome = "open" if not lead.significant else "iakd" if lead.mean > 0 else "other"
        else:
            rivals = self.pair.ranked[:2]
            champion, lead, outcome = rivals[0], None, "alone"
        headline, first = self._compare(*rivals) if len(rivals) == 2 else self._only(champion)
        details = [first, *self._different_starts(rivals), *self._gains(champion, rivals)]
        return PairVerdict(outcome, headline, details, lead)

    def _difference(self, results: MethodResults, reference: MethodResults) -> PairedDifference:
        difference = paired_difference(results.top1_by_seed(), reference.top1_by_seed(), self.level)
        assert difference is not None  # all methods of an experiment have the same seeds
        return difference

    def _only(self, results: MethodResults) -> tuple[str, str]:
        return f"{results.label} reached {self._score(results)}", "It is the only method, so there is no comparison."

    def _compare(self, better: MethodResults, worse: MethodResults) -> tuple[str, str]:
        """Return headline and first sentences."""
        difference = self._difference(better, worse)
        scores = (
            f"{self._name(better)} reached {self._score(better)}; {self._name(worse)} reached {self._score(worse)}."
        )
        points = f"{formatting.number(difference.mean, self.digits)} points"
        if difference.low is None:
            meaning = "With one training each, the difference may be chance; train more seeds to find out."
        else:
            meaning = self._meaning(difference)
        if difference.significant:
            headline = f"{self._won(better, worse)} by {points}"
        elif not float(f"{difference.mean:.{self.digits}f}"):
            headline = f"A tie between {better.label} and {worse.label}"
        elif difference.low is None:
            headline = f"{better.label} leads by {points}, but with one seed this may be chance"
        else:
            headline = f"No clear winner: {better.label} leads by {points}"
        return headline, f"{scores} {meaning}"

    def _won(self, better: MethodResults, worse: MethodResults) -> str:
        beat = f"{better.label} beat {worse.label}"
        if better.is_iakd == worse.is_iakd:
            return beat
        return f"IAKD won: {beat}" if better.is_iakd else f"IAKD lost: {beat}"

    def _name(self, results: MethodResults) -> str:
        """Return the label; with the number of methods that it represents, if it is the best of its kind."""
        kind = [other for other in self.pair.methods if other.is_iakd == results.is_iakd]
        if len(kind) in (1, len(self.pair.methods)):
            return results.label
        kind_name = "IAKD variants" if results.is_iakd else "methods without swapping"
        return f"{results.label}, the best of {len(kind)} {kind_name},"

    def _score(self, results: MethodResults) -> str:
        return f"{formatting.mean_std(results.top1, self.digits)} %"

    def _meaning(self, difference: PairedDifference) -> str:
        bounds = formatting.interval(difference, self.digits)
        meaning = (
            "excludes zero: the difference is significant"
            if difference.significant
            else "includes zero: the difference may be chance"
        )
        level = formatting.percent(self.level)
        return f"The {level} interval of the difference over paired seeds, {bounds} points, {meaning}."

    def _different_starts(self, rivals: list[MethodResults]) -> list[str]:
        """Return a warning if the rivals did not start from the same weights."""
        starts = {results.label: results.method.init for results in rivals if results.method}
        if len(set(starts.values())) < 2:
            return []
        warm, cold = sorted(starts, key=lambda label: starts[label] != "teacher")
        return [f"Note that {warm} starts from copies of the teacher's weights, {cold} from random weights."]

    def _gains(self, results: MethodResults, rivals: list[MethodResults]) -> list[str]:
        """Return the method's gains over the references that were not its rival anyway."""
        known = {rival.label for rival in rivals}
        phrases = [self._gain(reference, gain) for reference, gain in results.gains.items() if reference not in known]
        sentences = [f"{results.label} is {' and '.join(phrases)}."] if phrases else []
        if self.missing:
            names = " or ".join(self.missing)
            sentences.append(f"The settings have no method called {names}, so no gain over it is shown.")
        return sentences

    def _gain(self, reference: str, gain: PairedDifference) -> str:
        bounds = formatting.interval(gain, self.digits)
        judgement = formatting.judgement(gain)
        inside = f"{bounds}, {judgement}" if bounds else judgement
        points = formatting.number(abs(gain.mean), self.digits)
        if not float(points):
            return f"level with {reference} ({inside})"
        return f"{points} points {'above' if gain.mean > 0 else 'below'} {reference} ({inside})"
