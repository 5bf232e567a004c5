"""The sentences at the top of the page, for made-up accuracies whose outcome is clear."""

import fake_experiment
import pytest
import yaml

from iakd import files
from iakd.config import parse
from iakd.experiment.jobs import plan_experiment
from iakd.reporting import paper, review, verdict
from iakd.reporting.exported import read_exports
from iakd.reporting.results import read_comparison

IAKD = {"method": "iakd"}


@pytest.fixture
def slow():
    """How much longer than others a method's epochs take, by label; empty until a test fills it."""
    return {}


@pytest.fixture
def judge(tmp_path, monkeypatch, slow):
    """Write made-up accuracies, and return the verdict on them and the comparison."""
    monkeypatch.chdir(tmp_path)

    def write_and_judge(scores, seeds=(0, 1, 2), **methods):
        known = {"scratch": {}, "kd": {}, "iakd-linear": IAKD, "iakd-review": IAKD}
        experiment = fake_experiment.plan(
            {label: methods.get(label, known.get(label, {})) for label in scores}, seeds=seeds, epochs=5
        )
        fake_experiment.write(experiment, scores, slow=slow)
        result = read_comparison(experiment)
        return verdict.pair_verdict(result, result.pairs[0]), result

    return write_and_judge


def test_clear_win(judge):
    found, _ = judge({"scratch": [89, 90, 88], "kd": [92.0, 92.4, 91.7], "iakd-linear": [94.1, 94.4, 93.9]})
    assert found.outcome == "iakd"
    assert found.headline == "IAKD won: iakd-linear beat kd by 2.1 points"
    assert found.interval == "95 % interval +1.4 to +2.8"
    text = " ".join(found.details)
    assert "iakd-linear reached 94.1 ± 0.3 %; kd, the best of 2 methods without, reached 92.0 ± 0.4 %." in text
    assert "excludes zero: it is significant, also among the 3 differences of this report" in text
    assert "iakd-linear is 5.1 points above scratch (+2.9 to +7.3, significant)" in text
    assert "above kd" not in text  # mentioned before


def test_a_terminal_gets_winner_and_interval_in_two_lines(judge):
    _, result = judge({"scratch": [89, 90, 88], "kd": [92.0, 92.4, 91.7], "iakd-linear": [94.1, 94.4, 93.9]})
    assert verdict.verdict_lines(result).splitlines() == [
        "IAKD won: iakd-linear beat kd by 2.1 points",
        "95 % interval +1.4 to +2.8 points",
    ]


def test_a_terminal_gets_a_line_for_each_of_several_pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [("resnet20", "resnet8"), ("resnet56", "resnet8")]
    experiment = fake_experiment.plan({"kd": {}, "iakd-linear": IAKD}, pairs=pairs, epochs=5)
    fake_experiment.write(experiment, {"kd": [92.0, 92.4, 91.7], "iakd-linear": [94.1, 94.4, 93.9]})
    first, *others = verdict.verdict_lines(read_comparison(experiment)).splitlines()
    assert first.startswith("IAKD won 2 and lost 0 of 2 pairs")
    assert [line.partition(" (95 % interval +")[0] for line in others] == [
        f"{teacher} → resnet8: IAKD won: iakd-linear beat kd by 2.1 points" for teacher in ("resnet20", "resnet56")
    ]


def test_clear_loss(judge):
    found, _ = judge(
        {
            "scratch": [89, 90, 88],
            "kd": [94.1, 94.4, 93.9],
            "iakd-linear": [92.0, 92.4, 91.7],
            "iakd-review": [91, 91, 91],
        }
    )
    assert found.outcome == "other"
    assert found.headline == "IAKD lost: kd beat iakd-linear by 2.1 points"
    assert "iakd-linear, the best of 2 methods with swapping, reached 92.0 ± 0.4 %" in found.details[0]
    assert found.lead.mean == pytest.approx(-2.1)
    assert found.interval == "95 % interval +1.4 to +2.8"  # the winner's


def test_within_the_noise(judge):
    found, _ = judge({"scratch": [89, 90, 88], "kd": [92, 94, 93], "iakd-linear": [94, 93, 93.5]})
    assert found.outcome == "open"
    assert found.headline == "No clear winner: iakd-linear leads kd by 0.5 points"
    assert "includes zero: it may be chance" in found.details[0]


def test_tie(judge):
    found, _ = judge({"kd": [92, 93, 94], "iakd-linear": [93, 94, 92]})
    assert found.outcome == "open"
    assert found.headline.startswith("A tie between")


def test_one_of_many_is_no_winner(judge):
    """Its interval excludes zero, as that of the best of four may by chance."""
    scores = {"scratch": [91, 92, 91], "kd": [92.0, 92.4, 91.7], "iakd-linear": [93.0, 94.3, 93.2]}
    found, result = judge({**scores, "iakd-review": [93.0, 93.4, 92.9]})
    assert result.lead(result.pairs[0]).excludes_zero and found.outcome == "open"
    assert found.headline == "No clear winner: iakd-linear leads kd by 1.5 points"
    assert "excludes zero, but among the 5 differences of this report it may be chance" in found.details[0]


def test_two_seeds_have_no_winner(judge):
    found, _ = judge({"scratch": [80, 80], "kd": [90, 90], "iakd-linear": [99, 99]}, seeds=(0, 1))
    assert (found.outcome, found.headline) == ("open", "No clear winner: iakd-linear leads kd by 9.0 points")
    assert "2 seeds are too few to call their difference significant" in found.details[0]


def test_channels_that_are_swapped_are_swaps_too(judge):
    """rcn is no iakd, but takes its side; its counterpart is the loss without it."""
    found, result = judge({"kd": [90, 90.2, 89.9], "kd+rcn": [95, 95.3, 94.8], "scratch": [80, 81, 82]})
    assert found.headline == "Swapping won: kd+rcn beat kd by 5.0 points"
    assert "kd, the best of 2 methods without," in found.details[0]
    effects = {(effect.condition, effect.counterpart) for effect in result.swap_effects["resnet20-resnet8"]}
    assert effects == {("equal_epochs", "kd"), ("equal_time", "kd")}
    found, result = judge({"dkd": [90, 90.2, 89.9], "kd+rcn": [95, 95.3, 94.8]})
    (line,) = verdict.missing_counterparts(result, result.pairs[0])
    assert line.entry == "kd: {}"


@pytest.mark.parametrize(
    ("iakd", "reason"),
    [
        ({"schedule": {"student_only": 1.0}}, "p is 1 throughout"),
        ({"schedule": {"kind": "uniform", "p0": 1.0}}, "p is 1 throughout"),
        ({"form": "two_path", "weight": 0}, "the weight of the hybrid paths is 0"),
        ({"form": "two_path", "teacher_weight": 0}, "the weight of the hybrid paths is 0"),
    ],
)
def test_a_row_that_never_swaps_wins_nothing_for_swapping(judge, iakd, reason):
    """It is kd under another name: it can neither lead for swapping nor stand for kd where the others are compared."""
    never = {"method": "iakd+kd", "iakd": iakd}
    scores = {"kd": [90, 90.2, 89.9], "never": [95, 95.3, 94.8], "iakd-linear": [80, 81, 82]}
    found, result = judge(scores, never=never)
    assert "never beat iakd-linear" in found.headline and "IAKD lost" in found.headline
    assert verdict.warnings(result) == [
        f"resnet20 → resnet8: never was trained without swaps ({reason}), so it counts as a method without swapping"
    ]
    assert {effect.method for effect in result.swap_effects["resnet20-resnet8"]} == {"iakd-linear"}


def test_one_seed_may_be_chance(judge):
    found, result = judge({"scratch": [80], "kd": [90], "iakd-linear": [99]}, seeds=(4,))
    assert found.outcome == "open"
    assert found.headline == "iakd-linear leads kd by 9.0 points, but with one seed this may be chance"
    assert "±" not in " ".join(found.details)
    assert "19.0 points above scratch (one seed only)" in found.details[-1]
    assert "no intervals" in verdict.caution(result)


def test_a_missing_reference_is_named(judge):
    found, result = judge({"scratch": [89, 90, 88], "iakd-linear": [94.1, 94.4, 93.9]})
    assert "The settings have no method called kd," in found.details[-1]
    assert result.references == ["scratch"] and result.missing_references == ["kd"]


def test_no_reference_at_all(judge):
    found, result = judge({"kd-hot": [94.2, 94.4, 94.0], "iakd-linear": [93, 93, 93.1]}, **{"kd-hot": {"method": "kd"}})
    assert found.headline == "IAKD lost: kd-hot beat iakd-linear by 1.2 points"
    assert "The settings have no method called scratch or kd," in found.details[-1]
    assert len(result.counted) == 1  # the lead of the headline


def test_only_one_kind_of_method(judge):
    found, _ = judge({"scratch": [89, 90, 88], "kd": [94.1, 95.4, 92.9]})
    assert found.outcome == "alone" and found.lead is None
    assert found.headline == "kd beat scratch by 5.1 points"
    assert "best of" not in found.details[0]


def test_only_one_method(judge):
    found, _ = judge({"kd": [94.0, 95.0, 93.0]})
    assert found.headline == "kd reached 94.0 ± 1.0 %"
    assert "no comparison" in found.details[0]


def test_leading_without_swaps_is_no_win_either(judge):
    found, _ = judge({"scratch": [89, 90, 88], "kd": [94, 93, 93.5], "iakd-linear": [92, 94, 93]})
    assert (found.outcome, found.headline) == ("open", "No clear winner: kd leads iakd-linear by 0.5 points")


def test_more_epochs_and_tuning_are_mentioned(judge):
    scores = {"kd-longer": [90.0, 90.2, 90.1], "iakd-tuned": [95.0, 95.2, 95.3]}
    longer = {"method": "kd", "recipe": {"epochs": 7}}
    found, _ = judge(scores, **{"kd-longer": longer, "iakd-tuned": {"method": "iakd", "iakd": {"schedule": "tuned"}}})
    assert "Note that iakd-tuned was trained for 5 epochs, kd-longer for 7." in found.details
    assert "Note that iakd-tuned was tuned on the validation images, kd-longer was not." in found.details


def test_what_swapping_added_to_the_best_method_that_swaps(judge):
    """It beats kd by 2 points, but the same loss without swaps, which starts from the teacher too, reaches more."""
    scores = {
        "scratch": [89, 90, 88],
        "kd": [92.0, 92.4, 91.7],
        "iakd+kd": [94.1, 94.4, 93.6],
        "kd-from-teacher": [94.2, 94.4, 94.0],
    }
    start = {"init": "teacher"}
    found, result = judge(scores, **{"iakd+kd": start, "kd-from-teacher": {"method": "kd", **start}})
    assert (
        "What swapping itself added to iakd+kd: −0.2 points over kd-from-teacher at equal epochs and training time "
        "(−0.7 to +0.4, not significant)."
    ) in found.details
    assert verdict.swapping_summary(result) == (
        "Significant differences from the same loss without swaps, at equal epochs: 0 of 1 better, 0 worse; "
        "at equal training time: 0 of 1 better, 0 worse."
    )


def test_unknown_what_swapping_added(judge):
    found, result = judge({"scratch": [89, 90, 88], "iakd+kd": [94.1, 94.4, 93.9]})
    sentence = "What swapping itself added to iakd+kd is unknown: the same loss without swaps was not trained."
    assert sentence in found.details
    assert verdict.swapping_summary(result) == ""


def test_missing_counterparts_name_the_row_to_add(judge, slow):
    slow.update({"iakd-linear": 1.5, "iakd-review": 1.4, "iakd+kd": 1.5, "hot": 0.9})
    methods = {
        "kd-6": {"method": "kd", "recipe": {"epochs": 6}},
        "hot": {"method": "iakd+kd", "init": "teacher", "kd": {"temperature": 8.0}},
    }
    labels = ["scratch", "iakd-linear", "iakd-review", "iakd+kd", "hot", "kd", "kd-6"]
    _, result = judge({label: [90.0, 91.0, 92.0] for label in labels}, **methods)
    missing = verdict.missing_counterparts(result, result.pairs[0])
    assert [(line.text, line.entry) for line in missing] == [
        (
            "No comparison at equal training time for iakd-linear, iakd-review. scratch took 0.67× its time. "
            "Add the same with more epochs:",
            "scratch-longer: {method: scratch, recipe: {epochs: 8}}",
        ),
        (
            "No comparison at equal training time for iakd+kd. kd-6 took 0.80× its time. Raise its recipe.epochs to 8.",
            "",
        ),
        (
            "No comparison at equal epochs for hot. kd differs in init, kd.temperature. "
            "Add the same loss without swaps:",
            "hot-without-swaps: {method: kd, init: teacher, kd: {temperature: 8.0}}",
        ),
    ]
    for line in missing:
        methods |= yaml.safe_load(line.entry) or {}
    methods["kd-6"]["recipe"]["epochs"] = 8
    _, result = judge({label: [90.0, 91.0, 92.0] for label in dict.fromkeys([*labels, *methods])}, **methods)
    assert verdict.missing_counterparts(result, result.pairs[0]) == []


def test_tuned_counterpart_that_is_missing(judge):
    tuned = {"method": "iakd", "iakd": {"schedule": "tuned"}}
    _, result = judge({"scratch": [89, 90, 88], "tuned": [94.1, 94.4, 93.9]}, tuned=tuned)
    (line,) = verdict.missing_counterparts(result, result.pairs[0])
    assert line.text == (
        "No comparison at equal epochs, both tuned, for tuned. "
        "Add the same loss without swaps and with settings to tune."
    )


def test_overrides_of_a_pair_decide_what_its_counterpart_is(tmp_path, monkeypatch):
    """kd has another temperature in the second pair, so there it is not the same loss."""
    monkeypatch.chdir(tmp_path)
    pairs = [("resnet20", "resnet8"), ("resnet56", "resnet8")]
    experiment = fake_experiment.plan({"kd": {}, "iakd+kd": {}}, pairs=pairs, epochs=5)
    raw = experiment.params.model_dump(mode="json", exclude_unset=True)
    raw["pairs"][1] = {"teacher": "resnet56", "student": "resnet8", "methods": {"kd": {"kd": {"temperature": 2.0}}}}
    experiment = plan_experiment(parse(raw, "test"))
    fake_experiment.write(experiment, {"kd": [90.0, 91.0, 92.0], "iakd+kd": [91.0, 92.5, 93.0]})
    result = read_comparison(experiment)
    first, second = (result.swap_effects[pair.name][0] for pair in result.pairs)
    assert (first.counterpart, second.counterpart, second.differs_in) == ("kd", None, ("kd.temperature",))


def test_different_starts_are_mentioned(judge):
    scores = {"kd": [90.0, 90.2, 90.1], "warm": [95.0, 95.2, 95.3], "iakd-linear": [93, 93, 93.1]}
    found, _ = judge(scores, warm={"method": "scratch", "init": "teacher"})
    note = "Note that warm starts from copies of the teacher's weights, iakd-linear from random weights."
    assert note in found.details
    found, _ = judge({"kd": [90.0, 90.2, 90.1], "iakd-linear": [93, 93, 93.1]})
    assert not any("Note" in sentence for sentence in found.details)


def test_two_seeds_are_few(judge):
    _, result = judge({"scratch": [89, 90], "kd": [94, 95], "iakd-linear": [93, 94]}, seeds=(0, 1))
    assert "two seeds" in verdict.caution(result)


def test_caution_counts_each_comparison_once(judge):
    """scratch over kd is kd over scratch with the sign changed: 1, and two for the third method."""
    _, result = judge({"scratch": [89, 90, 88.2], "kd": [94, 95, 93.1], "iakd-linear": [93, 94, 92.3]})
    assert len(result.counted) == 3
    assert verdict.caution(result) == (
        "Of many intervals some exclude zero by chance. This report shows, or chose its headline from, 3 differences: "
        "3 have an interval without zero, 3 have a ✓, which takes their number into account (Holm's correction). "
        "Without any real difference, at most 5 % of reports have a ✓ at all. With three seeds only huge differences "
        "have one."
    )


def test_what_was_compared(judge):
    _, result = judge({"scratch": [89, 90, 88], "kd": [94, 95, 93]})
    text = verdict.describe_setup(result)
    assert text.startswith(
        "2 methods of training resnet8, which has 3.5× fewer parameters than its teacher resnet20, were compared on "
    )
    assert "1\u202f000 test images" in text


def test_methods_with_fewer_seeds_are_named_and_compared_on_those_they_share(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = {"scratch": {"seeds": 3}, "kd": {}, "iakd-linear": {**IAKD, "seeds": 3}}
    experiment = fake_experiment.plan(methods, seeds=range(5), epochs=5)
    scores = {"scratch": [89, 90, 88], "kd": [92.0, 92.4, 91.7, 99, 99], "iakd-linear": [94.1, 94.4, 93.9]}
    fake_experiment.write(experiment, scores)
    result = read_comparison(experiment)
    assert "with 3 to 5 seeds each" in verdict.describe_setup(result)
    seeds = dict(review.answers(result, [], {"problems": []}))["Seeds"]
    assert seeds == "5 per method (0, 1, 2, 3, 4); 3 for scratch, iakd-linear (0, 1, 2); no run was left out."
    lead = result.difference(result.pairs[0], "iakd-linear", "kd")
    assert lead is not None and lead.n == 3
    assert lead.mean == pytest.approx(2.1, abs=0.15), "seeds 3 and 4 of kd have no counterpart"
    found = verdict.pair_verdict(result, result.pairs[0])
    assert result.pairs[0].ranked[0].label == "kd", "on average over all of its seeds"
    assert found.headline.startswith("IAKD won: iakd-linear beat kd by 2.1 points")
    assert found.details[0].endswith("Only seeds that both have are compared.")
    manifest = files.read_json(experiment.data.folder / "manifest.json", "")
    assert "Each method is trained with 3 to 5 seeds;" in paper.paragraph(result, [], manifest)


def test_several_pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [("resnet20", "resnet8"), ("resnet56", "resnet8"), ("resnet110", "resnet8")]
    experiment = fake_experiment.plan({"kd": {}, "iakd": {}}, pairs=pairs, epochs=5)
    level = {"resnet20": 96.0, "resnet56": 88.0, "resnet110": 92.0}

    def score(job):
        return (level[job.teacher.network.name] if job.label == "iakd" else 92.0) + [0.0, 0.3, -0.2][job.seed]

    fake_experiment.write(experiment, score)
    result = read_comparison(experiment)
    assert verdict.overview(result) == "IAKD won 1 and lost 1 of 3 pairs; 1 is undecided"
    assert "for 3 pairs of teacher and student" in verdict.describe_setup(result)


TUNED = {"method": "iakd", "iakd": {"schedule": "tuned"}}


def test_tuning_that_did_not_pay_is_said_whatever_wins(judge):
    """The study of iakd-tuned starts with the three kinds of the paper; iakd-linear is one of them."""
    scores = {"scratch": [95.0, 95.5, 96.0], "iakd-linear": [94.0, 94.5, 95.0], "iakd-tuned": [93.0, 93.7, 93.8]}
    found, result = judge(scores, **{"iakd-tuned": TUNED})
    sentence = found.details[-1]
    assert sentence.startswith(
        "Tuning did not pay for iakd-tuned: on the test images it is 1.0 points worse than iakd-linear, with which its "
        "study started (95 % interval −"
    )
    origin, difference = result.tuning_effect(result.pairs[0], result.pairs[0].methods[2])
    assert (origin.label, round(difference.mean, 6), difference.significant) == ("iakd-linear", -1.0, False)


def test_tuning_that_changed_less_than_a_digit_shows_is_no_loss_of_zero_points(judge):
    scores = {"scratch": [95.0, 95.5, 96.0], "iakd-linear": [94.0, 94.5, 95.0], "iakd-tuned": [94.0, 94.4, 95.0]}
    found, _ = judge(scores, **{"iakd-tuned": TUNED})
    assert "on the test images it is no better than iakd-linear, with which its study started (" in found.details[-1]


def test_tuning_that_paid_needs_no_sentence(judge):
    scores = {"scratch": [95.0, 95.5, 96.0], "iakd-linear": [94.0, 94.5, 95.0], "iakd-tuned": [95.0, 95.1, 95.2]}
    found, _ = judge(scores, **{"iakd-tuned": TUNED})
    assert "Tuning did not pay" not in " ".join(found.details)


def test_what_a_tuned_method_came_from_has_the_same_settings_otherwise(judge):
    """Other options, another recipe, or another start are another method."""
    tuned = {"method": "kd", "tune": {"kd.temperature": [1, 8], "recipe.lr": [0.01, 0.1]}}
    others = {
        "kd-hot": {"method": "kd", "kd": {"temperature": 8}},
        "kd-long": {"method": "kd", "recipe": {"epochs": 9}},
        "kd-start": {"method": "kd", "init": "teacher"},
    }
    scores = {label: [90.0, 91.0, 92.0] for label in ("scratch", "kd", *others, "kd-tuned")}
    _, result = judge(scores, **others, **{"kd-tuned": tuned})
    found = {results.label: results.started_from for results in result.pairs[0].methods}
    assert found == {label: ["kd"] if label == "kd-tuned" else [] for label in scores}


def test_the_recommended_model_is_chosen_on_validation_images(judge):
    """kd is better on the test images, iakd-linear on the validation images, with seed 2; so the test set chooses
    nothing."""
    _, result = judge({"scratch": [89, 90, 88], "kd": [94.0, 94.2, 94.1], "iakd-linear": [92.0, 92.4, 91.7]})
    for results, values in zip(result.pairs[0].methods, ((50, 50, 50), (80, 80, 80), (81, 79, 82)), strict=True):
        for model, value in zip(results.models, values, strict=True):
            model.metrics["val_top1"] = value
    assert result.pairs[0].recommended.label == "iakd-linear"
    assert verdict.recommendation(result) == (
        "resnet8 trained with iakd-linear, seed 2 (results/digits/students/resnet20-resnet8/iakd-linear/seed2): the "
        "best of 3 methods on the validation images (80.7 %), with 92.0 ± 0.4 % on the test images, 5.2 points below "
        "resnet20 with 3.5× fewer parameters."
    )


def test_of_several_pairs_one_model_is_recommended_with_its_costs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [("resnet20", "resnet8"), ("resnet56", "resnet14")]
    experiment = fake_experiment.plan({"kd": {}, "iakd-linear": IAKD}, pairs=pairs, epochs=5)
    fake_experiment.write(experiment, lambda job: 90.0 + 2 * (job.student.name == "resnet14") + job.seed / 10)
    fake_experiment.measured(experiment)
    result = read_comparison(experiment)
    text = verdict.recommendation(result, read_exports(experiment, result))
    assert text.startswith(
        "resnet14 trained with kd, seed 2 (results/digits/export/resnet56-resnet14/kd): the best of 2"
    )
    assert text.endswith("; 0.140 ms per image and 0.448 MB as ONNX.")


def test_a_reviewer_gets_the_comparisons_and_what_was_not_uniform(judge):
    _, result = judge({"scratch": [89, 90, 88], "kd": [92.0, 92.4, 91.7], "iakd-linear": [94.1, 94.4, 93.9]})
    manifest = {"problems": ["one", "two"]}
    answers = dict(review.answers(result, [], manifest))
    assert answers["Comparisons"].startswith("3 differences may be called significant here")
    assert answers["Seeds"] == "3 per method (0, 1, 2); no run was left out."
    assert answers["Tuning"] == "No method was tuned." and answers["Data problems"] == "one; two"
    assert answers["Runs"] == "all at one commit, with the same versions, on the same kind of device."
    result.models[2].record.update(git_commit="c0ffee-dirty", device="NVIDIA H100")
    assert dict(review.answers(result, [], {"problems": []}))["Runs"] == (
        "the models were trained at 2 commits; some were trained with uncommitted changes, or outside a checkout; "
        "on 2 kinds of device."
    )
