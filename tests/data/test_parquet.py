"""Parquet files in the layout of the Hugging Face Hub."""

from pathlib import Path

import kinds
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iakd.config import Dataset
from iakd.data.source_data import SourceData
from iakd.data.sources import parquet
from iakd.errors import UserError

IMAGES = kinds.pixels(12, 0, (3, 8, 8))
LABELS = [0, 1, 2] * 4


def read(path: Path, **settings: object) -> SourceData:
    return parquet.read(Dataset.model_validate({"source": "parquet", "path": str(path), **settings}))


def save(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def test_parts_shards_and_class_names(tmp_path: Path) -> None:
    names = {"label": ["ant", "bee", "cat"]}
    for shard in range(2):
        rows = slice(6 * shard, 6 * shard + 6)
        table = kinds.image_table(IMAGES[rows], names, label=LABELS[rows])
        save(tmp_path / f"data/train-0000{shard}-of-00002.parquet", table)
    save(tmp_path / "data/validation-00000-of-00001.parquet", kinds.image_table(IMAGES[:3], names, label=[2, 1, 0]))
    save(tmp_path / "data/test-00000-of-00001.parquet", kinds.image_table(IMAGES[3:5], names, label=[0, 1]))
    raw = read(tmp_path)
    assert (raw.train_images == IMAGES).all() and raw.train_labels.tolist() == LABELS
    assert raw.val_labels is not None and raw.val_labels.tolist() == [2, 1, 0]
    assert (raw.test_images == IMAGES[3:5]).all() and raw.classes == ["ant", "bee", "cat"] and raw.problems == []
    folders = tmp_path / "by folder"
    save(folders / "train/0000.parquet", kinds.image_table(IMAGES, names, label=LABELS))
    save(folders / "test/0000.parquet", kinds.image_table(IMAGES[:3], names, label=LABELS[:3]))
    raw = read(folders)
    assert len(raw.train_images) == 12 and raw.test_images is not None and len(raw.test_images) == 3


@pytest.mark.parametrize(
    "name", ["testing", "test", "tests", "TEST", "test1", "testset", "test_set", "eval", "holdout"]
)
def test_the_held_out_file_is_never_trained_on(name: str, tmp_path: Path) -> None:
    save(tmp_path / "train.parquet", kinds.image_table(IMAGES, label=LABELS))
    for place in (f"{name}.parquet", f"{name}/0000.PARQUET", f"{name}.pq", f"flowers-{name}-of-2020.parquet"):
        path = save(tmp_path / place, kinds.image_table(IMAGES[:2], label=[0, 1]))
        raw = read(tmp_path)
        assert len(raw.train_labels) == 12 and raw.test_labels is not None and raw.test_labels.tolist() == [0, 1]
        path.unlink()
    save(tmp_path / "elsewhere/0.parquet", kinds.image_table(IMAGES[:3], label=[0, 1, 1]))
    photos = save(tmp_path / "photos/train.parquet", kinds.image_table(IMAGES, label=LABELS)).parent
    (photos / name).symlink_to(tmp_path / "elsewhere")
    raw = read(photos)
    assert len(raw.train_labels) == 12 and raw.test_labels is not None and raw.test_labels.tolist() == [0, 1, 1]


def test_files_of_parts_and_others_are_not_mixed(tmp_path: Path) -> None:
    save(tmp_path / "train.parquet", kinds.image_table(IMAGES, label=LABELS))
    save(tmp_path / "later.parquet", kinds.image_table(IMAGES[:2], label=[0, 1]))
    with pytest.raises(UserError, match=r"later\.parquet: its name says neither train, val nor test, but that of"):
        read(tmp_path)
    (tmp_path / "train.parquet").rename(tmp_path / "first.parquet")
    assert len(read(tmp_path).train_labels) == 14


def test_the_only_file_is_used_whatever_its_name(tmp_path: Path) -> None:
    path = save(tmp_path / "test.parquet", kinds.image_table(IMAGES, label=LABELS))
    raw = read(path)
    assert raw.train_labels.tolist() == LABELS and raw.test_labels is None
    assert raw.problems == [f"{path}: the only file, and so used for training, whatever its name says"]
    with pytest.raises(UserError, match="has no files for training"):
        read(tmp_path)
    assert read(save(tmp_path / "x/train.parquet", kinds.image_table(IMAGES, label=LABELS))).problems == []


def test_labels_mean_the_class_names_of_their_own_file(tmp_path: Path) -> None:
    names = {"label": ["ant", "bee", "cat"]}
    save(tmp_path / "train-0.parquet", kinds.image_table(IMAGES[:6], names, label=LABELS[:6]))
    other = {"label": ["cat", "ant", "bee"]}
    save(tmp_path / "train-1.parquet", kinds.image_table(IMAGES[6:], other, label=[1, 2, 0] * 2))
    save(tmp_path / "test.parquet", kinds.image_table(IMAGES[:3], {"label": ["bee", "cat"]}, label=[1, 0, 1]))
    save(tmp_path / "val.parquet", kinds.image_table(IMAGES[:2], label=[2, 1]))
    raw = read(tmp_path)
    assert raw.classes == ["ant", "bee", "cat"] and raw.train_labels.tolist() == LABELS
    assert raw.test_labels is not None and raw.test_labels.tolist() == [2, 1, 2]
    assert raw.val_labels is not None and raw.val_labels.tolist() == [2, 1]
    assert raw.problems == [
        f"{tmp_path}/val.parquet: has no class names; its numbers were taken for those of the training images"
    ]
    save(tmp_path / "val.parquet", kinds.image_table(IMAGES[:2], label=[2, 3]))
    with pytest.raises(UserError, match=r"val\.parquet: labels from 2 to 3 for 3 class names"):
        read(tmp_path)
    save(tmp_path / "val.parquet", kinds.image_table(IMAGES[:2], {"label": ["owl", "ant"]}, label=[0, 1]))
    with pytest.raises(UserError, match="val has labels that are not in train: owl"):
        read(tmp_path)


def test_names_that_occur_twice_stay_two_classes(tmp_path: Path) -> None:
    names = {"label": ["crane", "crane", "ant"]}
    assert read(save(tmp_path / "x.parquet", kinds.image_table(IMAGES, names, label=LABELS))).classes == [
        "crane (0)",
        "crane (1)",
        "ant",
    ]


def test_both_forms_of_a_letter_in_text_labels_are_one_class(tmp_path: Path) -> None:
    composed, split = "\u00e9", "e\u0301"
    save(tmp_path / "train.parquet", kinds.image_table(IMAGES, label=[composed, split, "x"] * 4))
    save(tmp_path / "test.parquet", kinds.image_table(IMAGES[:2], label=[split, "x"]))
    raw = read(tmp_path)
    assert raw.classes == ["x", composed] and raw.train_labels.tolist() == [1, 1, 0] * 4
    assert raw.test_labels is not None and raw.test_labels.tolist() == [1, 0]


def test_categorical_labels(tmp_path: Path) -> None:
    table = kinds.image_table(IMAGES, kind=["b", "a", "c"] * 4)
    table = table.set_column(1, "kind", table["kind"].dictionary_encode())
    save(tmp_path / "train.parquet", table)
    save(tmp_path / "test.parquet", kinds.image_table(IMAGES[:2], kind=["c", "a"]))
    raw = read(tmp_path)
    assert raw.classes == ["a", "b", "c"] and raw.train_labels.tolist() == [1, 0, 2] * 4
    assert raw.test_labels is not None and raw.test_labels.tolist() == [2, 0]


@pytest.mark.parametrize("names", [{"label": ["ant", "bee"]}, None])
def test_negative_labels_mark_images_without_one(names: dict[str, list[str]] | None, tmp_path: Path) -> None:
    path = save(tmp_path / "train.parquet", kinds.image_table(IMAGES, names, label=[0, 1, -1] * 4))
    with pytest.raises(UserError, match=r"train\.parquet: column 'label' has the label -1; negative numbers usually"):
        read(path)
    save(path, kinds.image_table(IMAGES, names, label=[0, 1] * 6))
    save(tmp_path / "test.parquet", kinds.image_table(IMAGES[:2], names, label=[-1, -1]))
    with pytest.raises(UserError, match=r"test\.parquet: column 'label' has the label -1; .*remove these rows, or the"):
        read(tmp_path)


def test_minus_one_and_one_are_two_classes(tmp_path: Path) -> None:
    path = save(tmp_path / "x.parquet", kinds.image_table(IMAGES, label=[-1, 1, 1] * 4))
    raw = read(path)
    assert raw.classes == ["-1", "1"] and raw.train_labels.tolist() == [0, 1, 1] * 4


def test_all_files_use_the_same_columns(tmp_path: Path) -> None:
    save(tmp_path / "train.parquet", kinds.image_table(IMAGES, label=LABELS))
    save(tmp_path / "test.parquet", kinds.image_table(IMAGES[:2], target=[0, 1]))
    with pytest.raises(UserError, match=r"test\.parquet: column 'label' differs from .*train\.parquet"):
        read(tmp_path)
    save(tmp_path / "test.parquet", kinds.image_table(IMAGES[:0], label=pa.array([], pa.int64())))
    with pytest.raises(UserError, match=r"test\.parquet: has no rows"):
        read(tmp_path)


def test_a_single_file_labels_of_text_and_bare_bytes(tmp_path: Path) -> None:
    table = pa.table({"picture": [kinds.png(image) for image in IMAGES], "class": ["b", "a"] * 6})
    raw = read(save(tmp_path / "flowers.parquet", table))
    assert raw.classes == ["a", "b"] and raw.train_labels.tolist() == [1, 0] * 6 and raw.test_images is None
    assert read(tmp_path / "flowers.parquet", size=4, channels=1).train_images.shape == (12, 1, 4, 4)


def test_gaps_in_the_labels_are_closed_and_told(tmp_path: Path) -> None:
    raw = read(save(tmp_path / "x.parquet", kinds.image_table(IMAGES, label=[1, 5, 3] * 4)))
    assert raw.classes == ["1", "3", "5"] and raw.train_labels.tolist() == [0, 2, 1] * 4
    assert raw.problems == ["labels without training images: 0, 2, 4; the others were renumbered"]
    names = {"label": ["ant", "bee", "cat"]}
    raw = read(save(tmp_path / "x.parquet", kinds.image_table(IMAGES, names, label=[0, 2] * 6)))
    assert raw.classes == ["ant", "cat"] and np.unique(raw.train_labels).tolist() == [0, 1]
    assert "training images: bee;" in raw.problems[0]


def test_columns_can_be_named(tmp_path: Path) -> None:
    table = kinds.image_table(IMAGES, kind=LABELS, colour=["red", "blue"] * 6)
    path = save(tmp_path / "x.parquet", table)
    with pytest.raises(UserError, match=r"column of labels could be kind or colour .*set dataset.label_column"):
        read(path)
    assert read(path, label_column="colour").classes == ["blue", "red"]
    assert read(path, label_column="kind", image_column="img").classes == ["0", "1", "2"]
    for change, words in (
        ({"label_column": "sort"}, "label_column: .* has no column 'sort'; it has img, kind, colour"),
        ({"label_column": "img"}, "holds no labels"),
        ({"label_column": "kind", "image_column": "colour"}, "holds no images"),
    ):
        with pytest.raises(UserError, match=words):
            read(path, **change)


def test_what_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no \*\.parquet files"):
        read(tmp_path)
    path = save(tmp_path / "a.parquet", pa.table({"x": [1.0]}))
    with pytest.raises(UserError, match="the column of images is not found"):
        read(path)
    content = save(path, kinds.image_table(IMAGES, label=LABELS)).read_bytes()
    for damaged in (b"", content[:-20], content[:200], b"PAR1" + b"\0" * 300 + b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"^[^\n]*a\.parquet is not a readable Parquet file[^\n]*$"):
            read(path)
    save(path, kinds.image_table(IMAGES, label=["ant", "bee\n"] * 6))
    with pytest.raises(UserError, match=r"a\.parquet: the label bee\\n is no readable text$"):
        read(path)
    save(path, kinds.image_table(IMAGES, label=[0] * 12))
    with pytest.raises(UserError, match="has 1 classes; at least two are needed"):
        read(path)
    save(path, kinds.image_table(IMAGES, {"label": ["ant", "bee"]}, label=LABELS))
    with pytest.raises(UserError, match="labels go up to 2 for 2 class names"):
        read(path)
    save(path, kinds.image_table(IMAGES[:3], label=[0, None, 1]))
    with pytest.raises(UserError, match="rows without a label"):
        read(path)
    path.unlink()
    save(tmp_path / "test.parquet", kinds.image_table(IMAGES, label=LABELS))
    with pytest.raises(UserError, match="no files for training"):
        read(tmp_path)
    save(tmp_path / "train.parquet", kinds.image_table(IMAGES[:2], label=LABELS[:2]))
    with pytest.raises(UserError, match="test has labels that are not in train: 2"):
        read(tmp_path)
    save(tmp_path / "train-2.parquet", kinds.image_table(IMAGES[:2], label=["a", "b"]))
    with pytest.raises(UserError, match="column 'label' differs from"):
        read(tmp_path)


def test_bytes_that_are_no_image(tmp_path: Path) -> None:
    rows: list[bytes | None] = [kinds.png(image) for image in IMAGES]
    rows[4], rows[7] = b"nonsense", None
    path = save(tmp_path / "x.parquet", kinds.image_table(rows, label=LABELS))
    with pytest.raises(UserError, match=r"x\.parquet, row 4, is not an image in a known format"):
        read(path)
    raw = read(path, on_bad_file="skip")
    assert len(raw.train_labels) == 10 and (raw.train_images[4] == IMAGES[5]).all()
    assert raw.train_labels.tolist() == [label for row, label in enumerate(LABELS) if row not in (4, 7)]
    assert "row 7, is empty" in raw.problems[0]
    rows = [kinds.png(image) for image in [*IMAGES[:11], kinds.pixels(1, 1, (3, 5, 5))[0]]]
    save(path, kinds.image_table(rows, label=LABELS))
    with pytest.raises(UserError, match=r"differ in size \(8×8, then 5×5 in .*row 11"):
        read(path)
