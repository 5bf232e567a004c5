"""Where hints are given and what they cost, against references written from the formulas."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from digit_training import TEACHER, digit_images, fixed_batch, network, teacher_weights
from numpy.typing import NDArray
from torch import nn

from iakd import config, models
from iakd.data.loader import BatchFormat
from iakd.distillation.losses.hints import block_similarity, centres, cluster, hint_loss, nearest
from iakd.errors import UserError
from iakd.models.features import FeatureSpec, forward_features
from iakd.models.pairing import pair_blocks
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
