"""The sentences at the top of the page, for made-up accuracies whose outcome is clear."""

import fake_experiment
import pytest

from iakd.reporting import verdict
from iakd.reporting.results import read_comparison

IAKD = {"method": "iakd"}


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """Write made-up accuracies, and return the verdict on them and the comparison."""
    monkeypatch.chdir(tmp_path)

    def write_and_judge(scores, seeds=(0, 1, 2), **methods):
        known = {"scratch": {}, "kd": {}, "iakd-linear": IAKD, "iakd-review": IAKD}
        experiment = fake_experiment.plan(
            {label: methods.get(label, known.get(label, {})) for label in scores}, seeds=seeds, epochs=5
        )
        fake_experiment.write(experiment, scores)
        result = read_comparison(experiment)
        return verdict.pair_verdict(result, result.pairs[0]), result

    return write_and_judge


def test_clear_win(judge):
    found, _ = judge({"scratch": [89, 90, 88], "kd": [92.0, 92.4, 91.7], "iakd-linear": [94.1, 94.4, 93.9]})
    assert found.outcome == "iakd"
    assert found.headline == "IAKD won: iakd-linear beat kd by 2.1 points"
    text = " ".join(found.details)
    assert "iakd-linear reached 94.1 ± 0.3 %; kd, the best of 2 methods without swapping, reached 92.0 ± 0.4 %." in text
    assert "excludes zero: the difference is significant" in text
    assert "iakd-linear is 5.1 points above scratch (+3.3 to +7.0, significant)" in text
    assert "above kd" not in text  # mentioned before


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
    assert "iakd-linear, the best of 2 IAKD variants, reached 92.0 ± 0.4 %" in found.details[0]
    assert found.lead.mean == pytest.approx(-2.1)


def test_within_the_noise(judge):
    found, _ = judge({"scratch": [89, 90, 88], "kd": [92, 94, 93], "iakd-linear": [94, 93, 93.5]})
    assert found.outcome == "open"
    assert found.headline == "No clear winner: iakd-linear leads by 0.5 points"
    assert "includes zero: the difference may be chance" in found.details[0]


def test_tie(judge):
    found, _ = judge({"kd": [92, 93, 94], "iakd-linear": [93, 94, 92]})
    assert found.outcome == "open"
    assert found.headline.startswith("A tie between")


def test_one_seed_may_be_chance(judge):
    found, result = judge({"scratch": [80], "kd": [90], "iakd-linear": [99]}, seeds=(4,))
    assert found.outcome == "open"
    assert found.headline == "iakd-linear leads by 9.0 points, but with one seed this may be chance"
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
    assert verdict.caution(result) == ""


def test_only_one_kind_of_method(judge):
    found, _ = judge({"scratch": [89, 90, 88], "kd": [94.1, 95.4, 92.9]})
    assert found.outcome == "alone" and found.lead is None
    assert found.headline == "kd beat scratch by 5.1 points"
    assert "best of" not in found.details[0]


def test_only_one_method(judge):
    found, _ = judge({"kd": [94.0, 95.0, 93.0]})
    assert found.headline == "kd reached 94.0 ± 1.0 %"
    assert "no comparison" in found.details[0]


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
    assert len(result.gains) == 3
    assert verdict.caution(result).startswith("Of the 3 gains in this report, 3 are significant")


def test_what_was_compared(judge):
    _, result = judge({"scratch": [89, 90, 88], "kd": [94, 95, 93]})
    text = verdict.describe_setup(result)
    assert text.startswith(
        "2 methods of training resnet8, which has 3.5× fewer parameters than its teacher resnet20, were compared on "
    )
    assert "847 test images" in text


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
