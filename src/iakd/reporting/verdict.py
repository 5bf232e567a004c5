"""The outcome in words: what was compared, who won, by how much, and how certain that is."""

from dataclasses import dataclass

from iakd.reporting import words
from iakd.reporting.comparison import Comparison, Entry, Pair
from iakd.reporting.statistics import Difference, paired


@dataclass(frozen=True)
class Verdict:
    """The outcome of one pair.

    `outcome`: iakd, other (either one certainly ahead), open, or alone (only one kind of method was tried). `lead`:
    the best method that swaps blocks minus the best that does not.
    """

    outcome: str
    headline: str
    details: list[str]
    lead: Difference | None


def best(pair: Pair) -> list[Entry]:
    """The most accurate method that swaps blocks and the most accurate that does not, the better one first."""
    families = ([e for e in pair.ranked if e.is_iakd], [e for e in pair.ranked if not e.is_iakd])
    return sorted((family[0] for family in families if family), key=lambda entry: -entry.top1.mean)


def compared(comparison: Comparison) -> str:
    """One sentence on what was compared."""
    ways = words.plural(len(comparison.params.methods), "way")
    seeds = words.plural(len(comparison.params.distill.seeds), "seed")
    where = f"on {words.whole(comparison.test_images)} test images that no training, tuning or choice had seen"
    data = comparison.params.dataset.name
    if len(comparison.pairs) > 1:
        pairs = f"{len(comparison.pairs)} pairs of teacher and student"
        return f"{ways} of training a student, for {pairs}, {seeds} each, were compared on {data}: {where}."
    pair = comparison.pairs[0]
    own = min(entry.median("parameters") for entry in pair.entries)  # some methods leave the student larger
    size = words.factor(pair.teacher.median("parameters"), own, "fewer", "more")
    than = "as many parameters as" if size == "the same" else f"{size} parameters than"
    return (
        f"{ways} of training {pair.student_name}, which has {than} its teacher {pair.teacher_name}, {seeds} each, "
        f"were compared on {data}: {where}."
    )


def verdict(comparison: Comparison, pair: Pair) -> Verdict:
    """Who won this pair: the best method that swaps blocks against the best that does not."""
    return _Writer(comparison, pair).verdict()


def overview(comparison: Comparison) -> str:
    """The outcome of several pairs as a headline."""
    outcomes = [verdict(comparison, pair).outcome for pair in comparison.pairs]
    n = len(outcomes)
    if set(outcomes) == {"alone"}:
        return words.plural(n, "pair") + " of teacher and student"
    won, lost, unsure = (outcomes.count(name) for name in ("iakd", "other", "open"))
    rest = f"; {unsure} {'is' if unsure == 1 else 'are'} undecided" if unsure else ""
    return f"IAKD won {won} and lost {lost} of {words.plural(n, 'pair')}{rest}"


def caution(comparison: Comparison) -> str:
    """What to bear in mind about so many comparisons."""
    n = len(comparison.gains)
    if not n and len(comparison.params.distill.seeds) == 1:
        return "With a single seed there are no intervals, and no gain is more than an observation."
    if not n:
        return ""
    certain = sum(gain.certain for gain in comparison.gains.values())
    kept = len(comparison.held)
    level = comparison.params.report.confidence
    chance = words.number(n * (1 - level), 1)
    text = (
        f"Of the {words.plural(n, 'gain')} in this report, {certain or 'none'} {'are' if certain > 1 else 'is'} "
        f"certain taken one by one; by chance alone, about {chance} would seem so. Judged all together (Holm's "
        f"correction), {kept or 'none'} {'remain' if kept > 1 else 'remains'}{', marked ✓' if kept else ''}."
    )
    if next(iter(comparison.gains.values())).n == 2:
        text += " With two seeds an interval is very wide: only huge differences can be certain."
    return text


class _Writer:
    """Sentences on one pair."""

    def __init__(self, comparison: Comparison, pair: Pair) -> None:
        self.pair = pair
        self.digits = comparison.digits
        self.level = comparison.params.report.confidence
        self.missing = comparison.missing_references

    def verdict(self) -> Verdict:
        rivals = best(self.pair)
        if len(rivals) == 2:
            champion = next(entry for entry in rivals if entry.is_iakd)
            lead = self._difference(champion, next(entry for entry in rivals if not entry.is_iakd))
            outcome = "open" if not lead.certain else "iakd" if lead.mean > 0 else "other"
        else:
            rivals = self.pair.ranked[:2]
            champion, lead, outcome = rivals[0], None, "alone"
        headline, first = self._race(*rivals) if len(rivals) == 2 else self._single(champion)
        return Verdict(outcome, headline, [first, *self._start(rivals), *self._gains(champion, rivals)], lead)

    def _difference(self, ours: Entry, theirs: Entry) -> Difference:
        difference = paired(ours.by_seed(), theirs.by_seed(), self.level)
        assert difference is not None  # all methods of an experiment have the same seeds
        return difference

    def _single(self, entry: Entry) -> tuple[str, str]:
        score = words.spread(entry.top1, self.digits)
        return (
            f"{entry.label} reached {score} %",
            "It is the only method: there is nothing to compare it with.",
        )

    def _race(self, ahead: Entry, behind: Entry) -> tuple[str, str]:
        """Headline and first sentence on the better of two methods and the other one."""
        difference = self._difference(ahead, behind)
        scores = f"{self._name(ahead)} reached {self._score(ahead)}; {self._name(behind)} {self._score(behind)}."
        points = f"{words.number(difference.mean, self.digits)} points"
        if difference.low is None:
            meaning = "One training each: the difference may well be chance. Train more seeds to know."
        else:
            meaning = self._meaning(difference)
        if difference.certain:
            headline = f"{self._won(ahead, behind)} by {points}"
        elif not float(f"{difference.mean:.{self.digits}f}"):
            headline = f"A tie between {ahead.label} and {behind.label}"
        elif difference.low is None:
            headline = f"{ahead.label} leads by {points}, but one seed proves nothing"
        else:
            headline = f"No certain winner: {ahead.label} leads by {points}"
        return headline, f"{scores} {meaning}"

    def _won(self, ahead: Entry, behind: Entry) -> str:
        beat = f"{ahead.label} beat {behind.label}"
        if ahead.is_iakd == behind.is_iakd:
            return beat
        return f"IAKD won: {beat}" if ahead.is_iakd else f"IAKD lost: {beat}"

    def _name(self, entry: Entry) -> str:
        """Label, and how many of its kind it was chosen from where it stands for all of them."""
        kin = [other for other in self.pair.entries if other.is_iakd == entry.is_iakd]
        if len(kin) in (1, len(self.pair.entries)):
            return entry.label
        kind = "IAKD variants" if entry.is_iakd else "methods without swaps"
        return f"{entry.label}, the best of {len(kin)} {kind},"

    def _score(self, entry: Entry) -> str:
        return f"{words.spread(entry.top1, self.digits)} %"

    def _meaning(self, difference: Difference) -> str:
        bounds = words.interval(difference, self.digits)
        meaning = "leaves out zero: certain" if difference.certain else "includes zero: it may be chance"
        level = words.percent(self.level)
        return f"The {level} interval of the difference, {bounds} points over paired seeds, {meaning}."

    def _start(self, rivals: list[Entry]) -> list[str]:
        """A warning where the rivals did not start alike."""
        starts = {entry.label: entry.method.init for entry in rivals if entry.method}
        if len(set(starts.values())) < 2:
            return []
        warm = next(label for label, init in starts.items() if init == "teacher")
        return [f"Mind that {warm} starts from copies of the teacher's weights and the other from random ones."]

    def _gains(self, entry: Entry, rivals: list[Entry]) -> list[str]:
        """How a method stands to each reference that was not its rival anyway."""
        known = {rival.label for rival in rivals}
        phrases = [self._gain(reference, gain) for reference, gain in entry.gains.items() if reference not in known]
        sentences = [f"{entry.label} is {' and '.join(phrases)}."] if phrases else []
        if self.missing:
            names = " or ".join(self.missing)
            sentences.append(f"No method is called {names} here, so there is no gain over it to show.")
        return sentences

    def _gain(self, reference: str, gain: Difference) -> str:
        bounds = words.interval(gain, self.digits)
        inside = f"{bounds}, {gain.judgement}" if bounds else gain.judgement
        points = words.number(abs(gain.mean), self.digits)
        if not float(points):
            return f"level with {reference} ({inside})"
        return f"{points} points {'above' if gain.mean > 0 else 'below'} {reference} ({inside})"
