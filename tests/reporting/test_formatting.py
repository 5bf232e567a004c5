"""Numbers and settings as text."""

import dataclasses

import pytest

from iakd.config import Candidate, Method, Recipe
from iakd.reporting import formatting
from iakd.reporting.statistics import PairedDifference


@pytest.mark.parametrize(
    ("value", "text"), [(1.26, "+1.3"), (-1.26, "−1.3"), (0.0, "0.0"), (-0.04, "0.0"), (0.04, "0.0"), (0.06, "+0.1")]
)
def test_signed(value, text):
    assert formatting.signed(value, 1) == text


def test_a_bound_of_a_significant_difference_is_not_rounded_to_zero():
    assert formatting.interval(PairedDifference(3, -1.1, -2.25, -0.03, 0.04), 1) == "−2.25 to −0.03"
    assert formatting.interval(PairedDifference(3, -1.1, -2.25, 0.03, 0.06), 1) == "−2.2 to 0.0"
    assert formatting.interval(PairedDifference(1, 4.0, None, None, None), 1) == ""


def test_an_interval_without_zero_that_is_not_significant_says_why():
    alone = PairedDifference(3, 1.0, 0.1, 1.9, 0.04)
    assert formatting.judgement(alone) == "not significant among all differences"
    assert formatting.judgement(dataclasses.replace(alone, low=-0.1)) == "not significant"
    assert formatting.judgement(dataclasses.replace(alone, significant=True)) == "significant"


@pytest.mark.parametrize(
    ("value", "text"), [(78042, "78.0 k"), (269722, "270 k"), (40_800_000, "40.8 M"), (1.5e9, "1.50 G"), (12, "12")]
)
def test_with_prefix(value, text):
    assert formatting.with_prefix(value) == text


def test_cost_ratio():
    assert formatting.cost_ratio(270, 78, "fewer", "more") == "3.5× fewer"
    assert formatting.cost_ratio(100, 150, "fewer", "more") == "1.5× more"
    assert formatting.cost_ratio(100, 100, "fewer", "more") == "the same"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "scratch", "init": "teacher"}, "labels only; starts from the teacher"),
        ({"method": "kd", "kd": {"temperature": 2}}, "teacher's outputs, T = 2"),
        ({"method": "iakd", "iakd": {"schedule": {"kind": "uniform", "p0": 0.7}}}, "uniform p = 0.7"),
        (
            {"method": "iakd+kd", "iakd": {"schedule": {"kind": "linear", "slope": -0.3}, "head": "teacher"}},
            "linear p 0.5 → 1, slope −0.3, the teacher's head; teacher's outputs, T = 4",
        ),
        ({"method": "iakd", "iakd": {"schedule": "tuned"}}, "schedule from Optuna"),
        (
            {"method": "crd", "crd": {"weight": 0.5}},
            "embeddings contrasted with those of images of other classes, weight = 0.5",
        ),
        ({"method": "kd", "tune": {"kd.temperature": [1, 8]}}, "teacher's outputs, T = 4; from Optuna: temperature"),
        (
            {"method": "label_smoothing", "recipe": {"lr": 0.1, "epochs": 9}},
            "ε = 0.1; own recipe: epochs = 9, lr = 0.1",
        ),
    ],
)
def test_describe_settings(settings, text):
    assert formatting.describe_settings(Method(**settings)) == text


def test_a_brief_description_has_only_what_differs_from_the_defaults():
    assert formatting.describe_settings(Method(method="crd"), brief=True) == ""
    assert formatting.describe_settings(Method(method="crd+ot", ot={"blur": 0.1}, init="teacher"), brief=True) == (
        "blur = 0.1; starts from the teacher"
    )


def test_the_form_of_iakd_is_described():
    method = Method(method="iakd+kd", iakd={"form": "two_path", "weight": 0.5, "schedule": {"kind": "uniform"}})
    assert formatting.describe_settings(method).startswith("two-path: any, γ = 0.5; uniform p = 0.5; teacher's outputs")
    assert "two-path" not in formatting.describe_settings(Method(method="iakd+kd"))


def test_explain_method():
    explanation = formatting.explain_method("crd")
    assert explanation.startswith("Embeddings contrasted") and explanation.endswith("(Tian et al. 2020).")
    assert formatting.explain_method("ctkd").startswith("kd with")  # a method's name keeps its lower case


@pytest.mark.parametrize(
    ("expression", "group"),
    [
        ("scratch", "reference"),
        ("kd", "logits"),
        ("kd+crd", "relations"),
        ("crd+kd", "relations"),
        ("ot+kd", "features"),
        ("iakd+crd", "interactive"),
        ("kd+label_smoothing", "logits"),
    ],
)
def test_group_of_a_sum(expression, group):
    assert Method(method=expression).group == group


def test_a_tuned_method_is_described_by_what_its_study_has_found():
    entry = {
        "method": "iakd+kd",
        "iakd": {"schedule": "tuned"},
        "tune": {"kd.temperature": [2, 8], "recipe.lr": [0, 1]},
    }
    found = {"method": "iakd+kd", "iakd": {"schedule": {"kind": "uniform", "p0": 0.12345}}, "kd": {"temperature": 2.5}}
    trained = Candidate(Method.model_validate(found), Recipe(lr=0.054321))
    assert formatting.describe_settings(Method.model_validate(entry), trained=trained) == (
        "uniform p = 0.123; teacher's outputs, T = 2.5; from Optuna: schedule, temperature, lr = 0.0543"
    )
    assert formatting.describe_settings(Method.model_validate(entry)) == (
        "schedule from Optuna; teacher's outputs, T = 4; from Optuna: temperature, lr"
    )
