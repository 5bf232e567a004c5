"""The CIFAR-100 presets have the weights of the methods' authors; each number here names its public script."""

from pathlib import Path
from typing import Any

import pytest

from iakd.config import Network, Pair, Params, load
from iakd.experiment.jobs import plan_experiment
from iakd.models import build
from iakd.models.pairing import initialise_from_teacher

FOLDER = Path(__file__).parents[2] / "experiments"
TABLE, CROSS = (load(FOLDER / f"{name}.yaml") for name in ("cifar100_table", "cifar100_cross"))
PAIRS = {(pair.teacher, pair.student): (params, pair) for params in (TABLE, CROSS) for pair in params.paired}
SMALL = ("MobileNetV2", "ShuffleV1", "ShuffleV2")


def options(teacher: str, student: str, label: str, name: str) -> dict[str, Any]:
    """The options of method `name` in the method called `label`, for a pair."""
    params, pair = PAIRS[teacher, student]
    return params.method(pair, label).options(name).model_dump()  # type: ignore[no-any-return]


def test_the_pairs_are_those_of_the_published_tables() -> None:
    """RepDistiller's README, tables 1 and 2 (CRD, ICLR 2020)."""
    assert [(pair.teacher, pair.student) for pair in TABLE.paired] == [
        ("wrn_40_2", "wrn_16_2"),
        ("wrn_40_2", "wrn_40_1"),
        ("resnet56", "resnet20"),
        ("resnet110", "resnet20"),
        ("resnet110", "resnet32"),
        ("resnet32x4", "resnet8x4"),
        ("vgg13", "vgg8"),
    ]
    assert [(pair.teacher, pair.student) for pair in CROSS.paired] == [
        ("vgg13", "MobileNetV2"),
        ("ResNet50", "MobileNetV2"),
        ("ResNet50", "vgg8"),
        ("resnet32x4", "ShuffleV1"),
        ("resnet32x4", "ShuffleV2"),
        ("wrn_40_2", "ShuffleV1"),
    ]


def test_both_presets_compare_the_same_methods() -> None:
    """Only the start from the teacher differs: copies of its weights fit pairs of one architecture and width."""
    warm = {label.replace("-from-teacher", "-blockwise"): method for label, method in TABLE.methods.items()}
    assert list(warm) == list(CROSS.methods)
    for label, method in CROSS.methods.items():
        assert warm[label].model_copy(update={"init": method.init}).settings() == method.settings()
        assert (warm[label].init, method.init) in (("random", "random"), ("teacher", "blockwise"))
    for params in (TABLE, CROSS):
        assert {job.label for job in plan_experiment(params).students} == set(params.methods)


def test_students_start_with_copies_of_weights_only_where_these_fit() -> None:
    for (teacher, student), (params, pair) in PAIRS.items():
        starts = {params.method(pair, label).init for label in params.methods} - {"random"}
        assert len(starts) == 1
        if starts == {"teacher"}:
            networks = [build(Network(arch=arch), 3, 100) for arch in (student, teacher)]
            initialise_from_teacher(*networks)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_recipe(pair: tuple[str, str]) -> None:
    """RepDistiller's train_student.py and train_teacher.py: 240 epochs, batches of 64, SGD with momentum 0.9 and weight
    decay 5e-4, learning rate 0.05, or 0.01 for MobileNetV2, ShuffleV1 and ShuffleV2, times 0.1 at 150, 180 and 210.
    """
    params, chosen = PAIRS[pair]
    recipes = [params.student_recipe(chosen, method) for method in params.methods.values()]
    assert {recipe.lr for recipe in recipes} == {0.01 if pair[1] in SMALL else 0.05}
    assert params.teach.recipe.lr == 0.05
    for recipe in (*recipes, params.teach.recipe):
        assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (240, 64, "sgd")
        assert (recipe.momentum, recipe.weight_decay) == (0.9, 5e-4)
        assert [240 * at for at in recipe.lr_schedule.milestones] == [150, 180, 210]
        assert recipe.lr_schedule.gamma == 0.1


# megvii-research/mdistiller, configs/cifar100/dkd/*.yaml: DKD.BETA, 8 by default (mdistiller/engine/cfg.py).
# resnet110 → resnet20 is not among them. ResNet50 → vgg8: shicaiwei123/SDD-CVPR2024,
# configs/cifar100/sdd_dkd/res50_vgg8.yaml, which has the default.
DKD_BETA = {
    ("resnet56", "resnet20"): 2,
    ("resnet110", "resnet32"): 2,
    ("resnet32x4", "resnet8x4"): 8,
    ("vgg13", "vgg8"): 6,
    ("wrn_40_2", "wrn_16_2"): 6,
    ("wrn_40_2", "wrn_40_1"): 6,
    ("vgg13", "MobileNetV2"): 6,
    ("ResNet50", "MobileNetV2"): 8,
    ("ResNet50", "vgg8"): 8,
    ("resnet32x4", "ShuffleV1"): 8,
    ("resnet32x4", "ShuffleV2"): 8,
    ("wrn_40_2", "ShuffleV1"): 8,
}


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_dkd(pair: tuple[str, str]) -> None:
    """In all rows but that with standardised logits. The other values are the defaults of mdistiller/engine/cfg.py."""
    labels = [label for label, method in PAIRS[pair][0].methods.items() if "dkd" in method.names]
    assert len(labels) == 6
    for label in set(labels) - {"dkd+standardize"}:
        beta = DKD_BETA.get(pair, 2)  # resnet110 → resnet20 as resnet110 → resnet32
        expected = {"temperature": 4, "ce_weight": 1, "alpha": 1, "beta": beta, "warmup_epochs": 20}
        assert options(*pair, label, "dkd") == expected, label


# sunshangquan/logit-standardization-KD, README.md: the logs' names, TEACHER,STUDENT,BASE_TEMPERATURE,KD_WEIGHT and, for
# DKD, β, if it is not the 8 of mdistiller/engine/cfg.py. Its tools/train.py multiplies alpha (1) and β by KD_WEIGHT.
LOGS_OF_DKD = [
    "resnet32x4,resnet8x4,2,9",
    "vgg13,vgg8,2,15,2.0",
    "wrn_40_2,wrn_40_1,2,12,2.0",
    "wrn_40_2,wrn_16_2,2,12,2.0",
    "resnet56,resnet20,3,18,2.0",
    "resnet110,resnet32,2,15,2.0",
    "resnet110,resnet20,2,15,2.0",
    "resnet32x4,ShuffleV2,2,9",
    "vgg13,MobileNetV2,3,9,2.0",
    "ResNet50,MobileNetV2,2,15,2.0",
]
LOGS_OF_KD = [
    "resnet32x4,resnet8x4,2,9",
    "vgg13,vgg8,3,9",
    "wrn_40_2,wrn_40_1,2,9",
    "wrn_40_2,wrn_16_2,2,9",
    "resnet56,resnet20,2,9",
    "resnet110,resnet32,2,9",
    "resnet110,resnet20,4,12",
    "resnet32x4,ShuffleV2,2,9",
    "vgg13,MobileNetV2,3,9",
    "ResNet50,MobileNetV2,3,1",
]
COMMAND = "2,9"  # README.md: --base-temp 2 --kd-weight 9, for pairs without a log


def logged(logs: list[str]) -> dict[tuple[str, str], list[float]]:
    found = {(teacher, student): values for teacher, student, *values in (log.split(",") for log in logs)}
    return {pair: [float(value) for value in found.get(pair, COMMAND.split(","))] for pair in PAIRS}


def test_dkd_with_standardised_logits() -> None:
    for pair, (temperature, weight, *beta) in logged(LOGS_OF_DKD).items():
        expected = {"temperature": temperature, "alpha": weight, "beta": weight * (beta[0] if beta else 8)}
        used = options(*pair, "dkd+standardize", "dkd")
        assert {name: used[name] for name in expected} == expected, pair
        assert (used["ce_weight"], used["warmup_epochs"]) == (1, 20)


def test_lskd() -> None:
    for pair, (temperature, weight) in logged(LOGS_OF_KD).items():
        expected = {"temperature": temperature, "ce_weight": 0.1, "kd_weight": weight}
        assert options(*pair, "lskd", "lskd") == expected, pair


# dvlab-research/ReviewKD, CIFAR-100/script/reviewKD.sh: --kd-loss-weight. megvii-research/mdistiller, issue 39, for
# ResNet50 → MobileNetV2. The others were not published.
REVIEWKD_WEIGHT = {
    ("wrn_40_2", "wrn_16_2"): 5,
    ("wrn_40_2", "wrn_40_1"): 5,
    ("resnet56", "resnet20"): 0.6,
    ("resnet110", "resnet32"): 1,
    ("resnet32x4", "resnet8x4"): 5,
    ("resnet32x4", "ShuffleV1"): 5,
    ("resnet32x4", "ShuffleV2"): 8,
    ("wrn_40_2", "ShuffleV1"): 5,
    ("ResNet50", "MobileNetV2"): 30,
}


def test_reviewkd() -> None:
    for pair, weight in REVIEWKD_WEIGHT.items():
        assert options(*pair, "reviewkd", "reviewkd") == {"weight": weight, "warmup_epochs": 20}, pair


# LiuDongyang6/FCFD, classification/experiments/cifar/STUDENT-TEACHER.yaml: T, loss_mixture.kl_student[0], weight_l2.
# ResNet50 → vgg8 and the pairs of resnet110 are not among them.
FCFD = {
    ("wrn_40_2", "wrn_16_2"): (4, 0.2, 5),
    ("wrn_40_2", "wrn_40_1"): (4, 1, 5),
    ("resnet56", "resnet20"): (4, 1, 0.02),
    ("resnet110", "resnet20"): (4, 1, 0.02),
    ("resnet110", "resnet32"): (4, 1, 0.02),
    ("resnet32x4", "resnet8x4"): (4, 1, 5),
    ("vgg13", "vgg8"): (4, 1, 5),
    ("vgg13", "MobileNetV2"): (4, 1, 5),
    ("ResNet50", "MobileNetV2"): (8, 1, 5),
    ("ResNet50", "vgg8"): (4, 1, 5),
    ("resnet32x4", "ShuffleV1"): (8, 1, 5),
    ("resnet32x4", "ShuffleV2"): (8, 1, 5),
    ("wrn_40_2", "ShuffleV1"): (4, 1, 5),
}


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_fcfd(pair: tuple[str, str]) -> None:
    """With loss_student.label and loss_student.kl_student[0] of 1, for all pairs."""
    used = options(*pair, "fcfd", "fcfd")
    assert (used["ce_weight"], used["kd_weight"]) == (1, 1)
    assert (used["temperature"], used["path_weight"], used["appearance_weight"]) == FCFD[pair]


# HobbitLong/RepDistiller, scripts/run_cifar_distill.sh (-r, -a and -b), with the defaults of train_student.py
# (--kd_T, --hint_layer, --nce_k, --nce_t, --nce_m, --feat_dim) and of distiller_zoo/RKD.py (w_d, w_a).
REPDISTILLER: dict[str, dict[str, dict[str, float]]] = {
    "kd": {"kd": {"temperature": 4, "ce_weight": 0.1, "kd_weight": 0.9}},
    "fitnet": {"fitnet": {"weight": 100, "level": 2}},
    "at": {"at": {"weight": 1000}},
    "sp": {"sp": {"weight": 3000}},
    "cc": {"cc": {"weight": 0.02, "dim": 128}},
    "vid": {"vid": {"weight": 1}},
    "rkd": {"rkd": {"distance_weight": 25, "angle_weight": 50}},
    "pkt": {"pkt": {"weight": 30000}},
    "ab": {"ab": {"weight": 1, "margin": 1}},
    "ft": {"ft": {"weight": 200, "rate": 0.5}},
    "nst": {"nst": {"weight": 50}},
    "crd": {"crd": {"weight": 0.8, "dim": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5}},
    "crd+kd": {"crd": {"weight": 0.8}, "kd": {"temperature": 4, "kd_weight": 1}},
}


@pytest.mark.parametrize("label", REPDISTILLER)
def test_repdistillers_methods(label: str) -> None:
    for pair in PAIRS:
        for name, expected in REPDISTILLER[label].items():
            used = options(*pair, label, name)
            assert {setting: used[setting] for setting in expected} == expected, pair


def two_path(params: Params, pair: Pair) -> list[dict[str, Any]]:
    methods = [params.method(pair, label) for label in params.methods]
    return [method.iakd.model_dump() for method in methods if method.swaps and method.iakd.form == "two_path"]


def test_two_path_rows_have_the_settings_that_the_docs_describe() -> None:
    """docs/method.md: half of the blocks are the teacher's, hybrids learn its outputs only, γ is 1, and ends early."""
    for params, pair in PAIRS.values():
        used = two_path(params, pair)
        assert len(used) == 4
        for settings in used:
            assert (settings["weight"], settings["label_weight"], settings["teacher_weight"]) == (1, 0, 0.9)
            assert (settings["temperature"], settings["paths"], settings["seam_weight"]) == (4, "any", 0)
            assert settings["schedule"]["kind"] == "uniform" and settings["schedule"]["p0"] == 0.5
            assert settings["schedule"]["student_only"] == 0.2
