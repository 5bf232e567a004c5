"""Where hints are given and what they cost, against references written from the formulas."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from digit_training import TEACHER, digit_images, fixed_batch, network, teacher_weights
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import nn

from iakd import config, models
from iakd.config import METHODS
from iakd.data.loader import BatchFormat
from iakd.distillation.loss import LossContext
from iakd.distillation.losses.at import attention_loss
from iakd.distillation.losses.hints import (
    best_count,
    block_similarity,
    centres,
    cluster,
    hint_loss,
    nearest,
    silhouettes,
)
from iakd.distillation.registry import loss_class
from iakd.errors import UserError
from iakd.models.features import FeatureSpec, forward_features
from iakd.models.pairing import levels, pair_blocks
from iakd.training.timeline import Timeline
from iakd.training.trainer import Trainer

Floats = NDArray[np.float64]


def criterion(x: Floats, y: Floats) -> float:
    """The unbiased Hilbert–Schmidt independence criterion, term by term (Song et al. 2012, equation 5)."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    middle = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return float((np.trace(k @ m) + middle - 2 / (n - 2) * (k @ m).sum()) / (n * (n - 3)))


def teacher() -> models.Network:
    net = network(TEACHER, 2)
    models.load_weights(net, teacher_weights(), "the teacher of the tests")
    return net.eval()


def test_similarity_of_blocks() -> None:
    net = teacher()
    batches = [batch.images for batch in digit_images(0, 44).plain(16)]  # 16, 16, 12
    found = block_similarity(net, batches).numpy()
    count = len(net.blocks)
    h = np.zeros((count, count))
    for images in batches:
        with torch.no_grad():
            seen = forward_features(net, images, FeatureSpec(blocks=frozenset(range(count)))).blocks
        flat = [seen[i].double().flatten(1).numpy() for i in range(count)]
        h += [[criterion(a, b) for b in flat] for a in flat]
    expected = h / np.sqrt(np.outer(np.diag(h), np.diag(h)))
    assert found == pytest.approx(expected, abs=1e-4)
    assert found.min() >= 0 and found.max() <= 1 and np.diag(found).tolist() == [1] * count


class Doubling(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x + 3


def test_similarity_ignores_scale_and_shift_and_is_finite_for_a_dead_block() -> None:
    net = models.build(config.Network(arch="resnet8"), 1, 10).eval()
    dead = Doubling()
    dead.forward = lambda x: torch.zeros_like(x)  # type: ignore[method-assign]
    net.stages = nn.ModuleList([nn.Sequential(Doubling(), Doubling()), nn.Sequential(dead)])
    found = block_similarity(net, [digit_images(0, 16).images.float()])
    assert found.tolist() == [
        [pytest.approx(1), pytest.approx(1), 0],
        [pytest.approx(1), pytest.approx(1), 0],
        [0, 0, 1],
    ]


BLOCKS = np.array(  # two alike, three alike of which the middle one is nearest to both others, one by itself
    [
        [1.0, 0.9, 0.2, 0.2, 0.2, 0.0],
        [0.9, 1.0, 0.3, 0.2, 0.2, 0.0],
        [0.2, 0.3, 1.0, 0.9, 0.7, 0.1],
        [0.2, 0.2, 0.9, 1.0, 0.9, 0.1],
        [0.2, 0.2, 0.7, 0.9, 1.0, 0.1],
        [0.0, 0.0, 0.1, 0.1, 0.1, 1.0],
    ]
)


def test_clusters_and_their_centres() -> None:
    clusters = cluster(BLOCKS, 3)
    assert clusters == [0, 0, 1, 1, 1, 2]
    assert centres(BLOCKS, clusters) == [0, 3, 5]
    assert cluster(BLOCKS, 1) == [0] * 6
    assert cluster(BLOCKS, 6) == [0, 1, 2, 3, 4, 5]
    assert cluster(np.ones((1, 1)), 1) == [0]
    shuffled = [5, 2, 0, 3, 1, 4]
    assert cluster(BLOCKS[np.ix_(shuffled, shuffled)], 3) == [0, 1, 2, 1, 2, 1]  # by the first of each
    assert len(set(cluster(np.ones((4, 4)), 3))) <= 3


def silhouette(distance: Floats, clusters: list[int]) -> float:
    """Mean over the blocks of (b − a)/max(a, b); 0 for a block alone."""
    values = []
    for i, own in enumerate(clusters):
        means = {
            number: np.mean([distance[i, j] for j, other in enumerate(clusters) if other == number and j != i])
            for number in set(clusters)
            if any(other == number and j != i for j, other in enumerate(clusters))
        }
        if own not in means:
            values.append(0.0)
            continue
        a = means.pop(own)
        b = min(means.values())
        values.append(float((b - a) / max(a, b)))
    return float(np.mean(values))


def test_the_number_of_clusters_is_that_with_the_highest_silhouette() -> None:
    found = silhouettes(BLOCKS)
    assert list(found) == [2, 3, 4]  # five would have to separate one of two equal pairs
    assert found == pytest.approx({k: silhouette(1 - BLOCKS, cluster(BLOCKS, k)) for k in found})
    assert best_count(found, 6) == max(found, key=lambda k: silhouette(1 - BLOCKS, cluster(BLOCKS, k))) == 3
    assert best_count({2: 0.4, 3: 0.6, 4: 0.6}, 5) == 3


def test_without_silhouettes_there_are_at_most_two_clusters() -> None:
    assert (
        silhouettes(np.ones((1, 1)))
        == silhouettes(np.array([[1, 0.5], [0.5, 1]]))
        == silhouettes(np.ones((4, 4)))
        == {}
    )
    assert [best_count({}, blocks) for blocks in (1, 2, 4)] == [1, 2, 2]


def test_the_student_s_block_is_the_nearest_of_the_same_stage() -> None:
    big, small = (models.build(config.Network(arch=arch), 3, 10) for arch in ("resnet56", "resnet20"))
    pairs = pair_blocks(big, small)  # each of the student's nine blocks stands for three
    assert [nearest(pairs, block).student.last for block in (0, 2, 3, 4, 8)] == [0, 0, 0, 1, 2]
    assert nearest(pairs, 9).student.last == 3  # though the end of the first stage is nearer
    assert nearest(pairs, 26).student.last == 8


def test_loss() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 3, 5, 4, 4))
    x = torch.tensor(ours, dtype=torch.float32, requires_grad=True)
    loss = hint_loss(x, torch.tensor(theirs, dtype=torch.float32))
    loss.backward()
    assert loss.item() == pytest.approx(((ours - theirs) ** 2).mean(), rel=1e-5)
    assert x.grad is not None and x.grad.numpy() == pytest.approx(2 * (ours - theirs) / ours.size, abs=1e-6)
    assert hint_loss(x, x).item() == 0
    large = torch.tensor(theirs.repeat(2, axis=2).repeat(2, axis=3), dtype=torch.float32)
    assert hint_loss(x, large).item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_points_depend_on_the_teacher_and_are_recorded(make_training: Callable[..., Trainer]) -> None:
    training = make_training("hints+kd", options={"hints": {"points": 2, "images": 64}})
    part = next(iter(training.objective.losses.values()))
    (record,) = training.objective.record().values()
    batch = next(training.data.epoch(0, 0, BatchFormat(64)))
    expected = block_similarity(teacher(), [batch.images]).numpy()
    assert np.array(record["cka"]) == pytest.approx(expected, abs=1e-4)
    assert record["clusters"] == cluster(expected, 2)
    assert record["points"] == centres(expected, record["clusters"]) == part.points.tolist()
    assert len(part.adapters) == len(record["points"]) == len(record["student"]) == 2
    again = make_training("hints", options={"hints": {"points": 2, "images": 64}}, path="digits/students/again")
    again.run.seed = 5
    assert again.objective.record() == training.objective.record()
    terms, _ = training.objective(fixed_batch(training), 0)
    assert set(terms) == {"ce", "hints", "kd"}


def test_a_checkpoint_with_other_points_is_refused(make_training: Callable[..., Trainer]) -> None:
    part = next(iter(make_training("hints").objective.losses.values()))
    state = part.state_dict()
    part.load_state_dict(state)
    with pytest.raises(UserError, match="other clusters than where the run was started"):
        part.load_state_dict({**state, "points": state["points"] + 1})


def test_a_resumed_training_with_other_points_is_refused(make_training: Callable[..., Trainer]) -> None:
    """The loss is a submodule then: loading the whole does not call its load_state_dict."""
    objective = make_training("hints+kd").objective
    state = objective.state_dict()
    objective.load_state_dict(state)
    (name,) = [name for name in state if name.endswith(".points")]
    with pytest.raises(UserError, match="other clusters than where the run was started"):
        objective.load_state_dict({**state, name: state[name] + 1})


def test_more_points_than_blocks(make_training: Callable[..., Trainer]) -> None:
    with pytest.raises(UserError, match=r"hints\.points is 7, but the teacher has only 6 blocks; lower it"):
        make_training("hints", options={"hints": {"points": 7}})


def test_the_record_is_among_the_final_metrics(make_training: Callable[..., Trainer]) -> None:
    training = make_training("hints", epochs=1)
    _, metrics = training.fit()
    assert metrics["hints"] == training.objective.record()["hints"]
    assert np.shape(metrics["hints"]["cka"]) == (6, 6)


def test_automatic_points_are_recorded_with_their_silhouettes(make_training: Callable[..., Trainer]) -> None:
    records = [
        make_training(
            expression, options={expression.split("+")[-1]: {"points": "auto", "images": 64}}
        ).objective.record()
        for expression in ("hints", "at+hint_points")
    ]
    assert records[0]["hints"] == records[1]["hint_points"]
    record = records[0]["hints"]
    scores = {int(number): score for number, score in record["silhouettes"].items()}
    assert scores == pytest.approx(silhouettes(np.array(record["cka"])), abs=1e-2)
    assert len(record["points"]) == max(scores, key=lambda number: scores[number]) == 3


def test_a_loss_between_levels_compares_the_points_instead(make_training: Callable[..., Trainer]) -> None:
    for expression in ("at+hint_points", "hint_points+at"):
        training = make_training(expression, options={"hint_points": {"points": 4, "images": 64}})
        training.objective.train()
        (record,) = training.objective.record().values()
        assert len(record["points"]) == 4 and record["points"] != [1, 3, 5]
        batch = fixed_batch(training)
        with torch.no_grad():
            terms, _ = training.objective(batch, 0)
            student, taught = (
                forward_features(net, batch.images, FeatureSpec(blocks=frozenset(range(len(net.blocks))))).blocks
                for net in (training.objective.student, training.objective.teacher)
            )
        pairs = zip(record["student"], record["points"], strict=True)
        expected = sum(attention_loss(student[ours], taught[theirs]).item() for ours, theirs in pairs)
        assert set(terms) == {"ce", "at"}
        assert terms["at"].item() == pytest.approx(1000 * expected, rel=1e-4)


@pytest.mark.parametrize("name", [name for name, spec in METHODS.items() if spec.compares_levels])
def test_all_losses_that_compare_levels_move_to_chosen_ones(name: str) -> None:
    student, big = (network(config.Network(arch=arch, width=8), 0) for arch in ("resnet14", "resnet20"))
    pairs = pair_blocks(big.eval(), student, (1, 8, 8))
    middle = pairs[::2]  # the first block of each stage
    assert not {pair.student.last for pair in middle} & {pair.student.last for pair in levels(big, student, (1, 8, 8))}
    method, data = config.Method(method=name), digit_images(0, 16)
    timeline = Timeline.of(config.Recipe(), 1)
    context = LossContext(method.options(name), student, big, data, timeline, 0, chosen_levels=middle)
    loss = loss_class(name)(context)
    ours, theirs = (spec.blocks | spec.preactivations for spec in (loss.student_features, loss.teacher_features))
    assert ours and ours <= {pair.student.last for pair in middle}
    assert theirs and theirs <= {pair.teacher.last for pair in middle}


def test_the_other_losses_of_the_sum_stay_where_they_are(make_training: Callable[..., Trainer]) -> None:
    plain = make_training("at+ft+ot+sp+hints").objective.losses
    options = {"hint_points": {"points": 2, "images": 64}}
    moved = make_training("at+ft+ot+sp+hint_points", options=options).objective.losses
    for name in ("ft", "ot", "sp"):
        assert moved[name].student_features == plain[name].student_features
        assert moved[name].teacher_features == plain[name].teacher_features
    assert moved["at"].teacher_features != plain["at"].teacher_features


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("hint_points", "hint_points changes other methods; add one of fitnet, at, nst"),
        ("kd+hint_points", "hint_points changes other methods; add one of"),
        ("ft+ot+sp+hint_points", "hint_points changes other methods; add one of"),
        ("at+hints+hint_points", "cannot be added to hints: it finds its own points"),
    ],
)
def test_sums_that_make_no_sense(expression: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config.Method(method=expression)


def test_fsp_needs_points_at_different_blocks_of_the_student(make_training: Callable[..., Trainer]) -> None:
    make_training("fsp+hint_points", options={"hint_points": {"points": 3}})
    with pytest.raises(UserError, match="two hint points are at the student's block 1; lower"):
        make_training("fsp+hint_points", options={"hint_points": {"points": 6}})
