"""`iakd pairs`: the table of block slots, or one line that says why a pair is impossible."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from iakd.cli import app
from iakd.errors import UserError
from iakd.interactive.pair_table import short


def pairs(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["pairs", *arguments])
    if result.exception:
        raise result.exception
    return result.stdout


def rows(text: str) -> list[list[str]]:
    """Return the cells of the table's lines, which are separated by two or more spaces."""
    return [re.split(r"\s{2,}", line) for line in text.splitlines() if re.match(r"\d", line)]


def test_every_slot_with_its_blocks_shapes_and_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = pairs("resnet20", "resnet8", "--size", "16", "--channels", "1", "--classes", "10")
    assert text.startswith("resnet20 → resnet8, images 1×16×16, 10 classes: 3 block slots")
    small, large = 2 * 16 * 16 * 9, 2 * 32 * 32 * 9  # weights of a block's convolutions where the width stays
    first = rows(text)[0]
    assert first[:6] == ["1", "1", "16×16×16 → 16×16×16", "1–3", "16×16×16 → 16×16×16", "none"]
    assert first[6:] == [*map(short, (small + 64, 3 * (small + 64))), "–", *map(short, (small * 256, 3 * small * 256))]
    assert rows(text)[1][2:6] == ["16×16×16 → 32×8×8", "4–6", "16×16×16 → 32×8×8", "none"]
    reducing = 16 * 32 * 9 + 32 * 32 * 9 + 16 * 32
    assert rows(text)[1][7] == short(reducing + 3 * 64 + 2 * (large + 128))


def test_adapters_and_sizes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = pairs("resnet8x4", "ShuffleV2")
    assert rows(text)[0][5] == "in 24→32, out 64→116 32×32→16×16"
    assert rows(text)[0][8] == short((24 * 32 + 2 * 32) + (64 * 116 + 2 * 116))
    assert "parameters: student 1.36 M, teacher 1.23 M (0.9 times as many)" in text
    assert [row[1] for row in rows(text)] == ["1–4", "5–12", "13–16"]


def test_networks_of_the_settings_go_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = "teachers: [{name: big, arch: wrn_16_2}]\nstudents: [{name: big, arch: wrn_10_2}]\nmethods: {iakd: }\n"
    Path("params.yaml").write_text(settings)
    assert [row[3] for row in rows(pairs("big", "big"))] == ["1–2", "3–4", "5–6"]
    Path("params.yaml").rename("other.yaml")
    assert [row[3] for row in rows(pairs("big", "wrn_10_1", "--params", "other.yaml"))] == ["1–2", "3–4", "5–6"]
    with pytest.raises(UserError, match="unknown arch 'big'"):
        pairs("big", "big")
    with pytest.raises(UserError, match=r"absent\.yaml does not exist"):
        pairs("big", "big", "--params", "absent.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet8", "resnet20"), "impossible pair: stage 1 of the teacher has 1 blocks"),
        (("resnet20", "MobileNetV2"), "impossible pair: the student has 4 stages and the teacher 3"),
        (("resnet20", "resnet9"), "unknown arch 'resnet9'"),
        (("torchvision/vit_b_32", "torchvision/vit_b_32", "--size", "32"), "takes images of one size only, not 32×32"),
    ],
)
def test_an_impossible_pair_says_why(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        pairs(*arguments)


def test_a_teacher_of_the_users_own_is_shown_without_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(
        "teachers: [{name: mine, arch: resnet14, checkpoint: absent.pth, normalisation: imagenet}]\n"
        "students: [{arch: resnet8}]\nmethods: {kd: {}}\n"
    )
    assert pairs("mine", "resnet8").startswith("mine → resnet8")


def test_numbers_have_three_digits_and_a_unit() -> None:
    numbers = [0, 999, 9_994, 9_996, 99_960, 278_324, 999_600, 1_355_528, 23_705_252, 1_298_014_208]
    shown = ["0", "999", "9.99 k", "10.0 k", "100 k", "278 k", "1.00 M", "1.36 M", "23.7 M", "1.30 G"]
    assert [short(number) for number in numbers] == shown
