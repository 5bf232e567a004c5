"""Splits as people have them: lists of images, folds, and groups that stay together."""

import json
import runpy
from collections import defaultdict
from pathlib import Path

import kinds
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.neighbors import KNeighborsClassifier

from iakd.config import Dataset
from iakd.data import sources
from iakd.data.source_data import SourceData
from iakd.data.sources.download import fingerprint
from iakd.data.sources.image_list import read_list
from iakd.data.splits import dealt, grouped, split_source
from iakd.data.store import PreparedData
from iakd.data.writer import write_store
from iakd.errors import UserError


def settings(path: Path, **changes: object) -> Dataset:
    return Dataset.model_validate({"source": "image_folder", "path": str(path), "size": 8, **changes})


def read(path: Path, **changes: object) -> SourceData:
    return sources.read(settings(path, **changes))


def tracks(root: Path, per_class: int = 6, frames: int = 5) -> Path:
    """Two classes, each with folders of frames: `sign/track3/frame2.png`."""
    for position, name in enumerate(("stop", "yield")):
        for track in range(per_class):
            images = kinds.pixels(frames, 100 * position + track, (3, 8, 8))
            kinds.unpacked(root, {f"{name}/{name}{track}/{n}.png": kinds.png(image) for n, image in enumerate(images)})
    return root


def flat(root: Path, n: int = 12) -> Path:
    """Images beside each other: `0.png`, `1.png`, …"""
    kinds.unpacked(root, {f"{k}.png": kinds.png(image) for k, image in enumerate(kinds.pixels(n, 0, (3, 8, 8)))})
    return root


def rows_of(n: int = 12) -> list[dict[str, str]]:
    """Image k is of class c (even k) or b, in train, val or test by k % 3."""
    return [{"path": f"{k}.png", "label": "cb"[k % 2], "split": ("train", "val", "test")[k % 3]} for k in range(n)]


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    return "\n".join(delimiter.join(line) for line in [list(rows[0]), *(list(row.values()) for row in rows)])


LISTS = {
    "list.csv": as_csv(rows_of()),
    "excel.csv": "\ufeff" + as_csv(rows_of(), ";").replace("\n", "\r\n") + "\r\n",
    "list.tsv": as_csv(rows_of(), "\t"),
    "list.json": json.dumps(rows_of()),
    "list.jsonl": "\n".join(map(json.dumps, rows_of())),
    "names.csv": as_csv(
        [{"Filename": r["path"], "Class": r["label"], "subset": r["split"].title()} for r in rows_of()]
    ),
}


@pytest.mark.parametrize("storage", ["array", "files"])
@pytest.mark.parametrize("name", LISTS)
def test_a_list_says_class_and_split_of_each_image(name: str, storage: str, tmp_path: Path) -> None:
    pixels = kinds.pixels(12, 0, (3, 8, 8))
    root = flat(tmp_path / "photos")
    (tmp_path / name).write_bytes(LISTS[name].encode())
    chosen = settings(root, list_file=str(tmp_path / name), storage=storage)
    source = sources.read(chosen)
    write_store(tmp_path / "data", source, chosen)
    store = PreparedData.open(tmp_path / "data", settings=chosen.model_dump(mode="json"))
    assert store.classes == ["b", "c"] and source.problems == []
    for part, first in (("train", 0), ("val", 1), ("test", 2)):
        wanted = sorted(range(first, 12, 3), key=lambda k: (-(k % 2), str(k)))  # class b first; by name
        assert store.labels(part).tolist() == [0 if k % 2 else 1 for k in wanted]
        if storage == "array":
            assert (store.images(part) == pixels[wanted]).all()
        else:
            assert [row["path"].decode() for row in store.files(part)] == [f"{k}.png" for k in wanted]


def test_a_list_may_leave_columns_out(tmp_path: Path) -> None:
    root = tracks(tmp_path / "photos")
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    (root / "list.csv").write_text(as_csv([{"path": f"./{path}"} for path in paths[:-1]]))
    raw = read(root, list_file="list.csv")  # found below the folder; the innermost folders are the classes
    assert len(raw.classes) == 12 and "stop3" in raw.classes and raw.test_images is None
    assert raw.problems == [f"{root}: 1 image not listed in list.csv: {paths[-1]}"]
    (root / "list.csv").write_text(as_csv([{"path": path, "label": str(len(path) % 11 + 2)} for path in paths]))
    numbers = read(root, list_file="list.csv").classes
    assert numbers == sorted(numbers, key=int)
    (root / "list.csv").write_text(as_csv([{"path": path, "species": str(len(path) % 11)} for path in paths]))
    assert (
        "so the folders of the images are their classes; unused: species"
        in read(root, list_file="list.csv").problems[0]
    )
    named = [{"path": path, "label": str(len(path) % 11), "class": f"n{len(path) % 11}"} for path in paths]
    (root / "list.csv").write_text(as_csv(named))
    assert read(root, list_file="list.csv").classes == sorted({row["label"] for row in named}, key=int)


def test_a_text_in_a_list_may_have_a_line_separator(tmp_path: Path) -> None:
    """JSON allows Unicode's in its texts."""
    root = flat(tmp_path / "photos")
    rows = [json.dumps({**row, "note": "one\u2028two\x85three"}, ensure_ascii=False) for row in rows_of()]
    (root / "list.jsonl").write_text("\r\n".join(rows), encoding="utf-8")
    assert read(root, list_file="list.jsonl").classes == ["b", "c"]


def test_a_group_is_written_in_one_way(tmp_path: Path) -> None:
    """Or images of one patient would be in several splits."""
    root = flat(tmp_path / "photos")

    def groups(*names: str) -> list[str]:
        rows = [{"path": f"{i}.png", "label": "ab"[i % 2], "who": names[i % len(names)]} for i in range(12)]
        (root / "list.csv").write_text(as_csv(rows), encoding="utf-8")
        found = read_list(settings(root, list_file="list.csv", group_by={"column": "who"}, val=1), root, [])
        return sorted(set(found.groups or ()))

    assert groups("é", "e\u0301", "x") == ["x", "é"]
    with pytest.raises(UserError, match="the groups 1 and 01 are the same number, but would be two groups"):
        groups("1", "01", "2")


def test_a_list_may_have_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the folder is called: by its name, from where one is, or by a link. Long numbers stay what they are."""
    root = flat(tmp_path / "photos")
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    long = {"a": "9007199254740993", "b": "9007199254740992", "c": "9007199254740993"}
    rows = [{**row, "path": str(tmp_path / "link" / row["path"]), "label": long[row["label"]]} for row in rows_of()]
    (root / "list.csv").write_text(as_csv(rows))
    for path in (root, Path("photos"), Path("photos/"), tmp_path / "link"):
        raw = read(path, list_file="list.csv")
        assert raw.classes == ["9007199254740992", "9007199254740993"] and not raw.problems


def test_the_list_is_among_the_files_that_data_are_made_from(tmp_path: Path) -> None:
    root, table = flat(tmp_path / "photos"), tmp_path / "list.csv"
    table.write_text(LISTS["list.csv"])
    before = fingerprint(settings(root, list_file=str(table)))
    assert before != fingerprint(settings(root))
    table.write_text(LISTS["list.csv"].replace("5.png,b,test", "5.png,b,train"))
    assert fingerprint(settings(root, list_file=str(table))) != before


CSV = LISTS["list.csv"]
UNUSABLE = {
    "nothing": ("", "lists no images"),
    "no paths": (CSV.replace("path", "what"), "no column path .*its columns are what, label, split"),
    "twice": (f"{CSV}\n./3.png,b,test", "rows 4 and 13 list the same image"),
    "short": (f"{CSV}\nx.png,b", "line 14 has not as many fields as the first line"),
    "long": (f"{CSV}\nx.png,b,test,5", "line 14 has not as many fields as the first line"),
    "empty": (f"{CSV}\nx.png,,test", "row 13 has no readable text or whole number in column 'label'"),
    "split": (CSV.replace("4.png,c,val", "4.png,c,2"), "row 5 has the split '2': write train, val or test"),
    "no train": (CSV.replace("train", "test"), "has no images for training"),
    "class": (CSV.replace("5.png,b,test", "5.png,x,test"), "the class 'x' has no images for training"),
    "one class": (CSV.replace(",b,", ",c,"), "has 1 class for training; at least two"),
    "outside": (f"{CSV}\n../x.png,b,test", r"row 13 lists \.\./x\.png, which is not below dataset\.path"),
    "absolute": (f"{CSV}\n/x.png,b,test", r"row 13 lists /x\.png, which is not below dataset\.path"),
    "number": ("path,label\n0.png,1\n1.png,1.0\n2.png,x", r"the labels 1 and 1\.0 are the same number"),
    "two labels": (
        "path,class,label\n0.png,x,0\n1.png,y,0\n2.png,x,1",
        "could be column 'label' or 'class', which div",
    ),
    "column twice": ("path,label, label\n0.png,x,0\n1.png,y,0", "two columns are called 'label'"),
    "two splits": (
        "path,label,split,subset\n0.png,x,train,test\n1.png,y,train,train",
        "the split could be column 'split' or 'subset', which div",
    ),
    "gone": (f"{CSV}\nx.png,b,test", r"x\.png cannot be read \(No such file or directory\): repair or remove it"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_list_is_one_line(case: str, tmp_path: Path) -> None:
    content, words = UNUSABLE[case]
    root = flat(tmp_path / "photos")
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        read(root, list_file=str(tmp_path / "list.csv"))
    assert "\n" not in str(caught.value) and "list.csv" in str(caught.value) + "list.csv" * (case == "gone")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", "{"),
        ("x.json", '{"path": "0.png"}'),
        ("x.jsonl", "[1]"),
        ("x.csv", 'path,label\n"0.png,b'),
        ("x", "\xff"),
    ],
)
def test_a_damaged_list_is_one_line(name: str, content: str, tmp_path: Path) -> None:
    root = flat(tmp_path / "photos")
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=name) as caught:
        read(root, list_file=str(tmp_path / name))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"dataset\.list_file: .*missing\.csv does not exist"):
        read(root, list_file="missing.csv")


def group_names(raw: SourceData, indices: np.ndarray) -> set[str]:
    assert raw.groups is not None
    return set(raw.groups["train"][indices].tolist())


@pytest.mark.parametrize(
    "by", [{"folder": 1}, {"pattern": r"([a-z]+\d)/"}, {"pattern": r"stop\d|yield\d"}, {"column": "track"}]
)
@pytest.mark.parametrize("seed", range(4))
def test_no_group_is_on_two_sides(by: dict[str, object], seed: int, tmp_path: Path) -> None:
    root = tracks(tmp_path / "photos")
    extra: dict[str, object] = {}
    if "column" in by:
        paths = sorted(path.relative_to(root) for path in root.rglob("*.png"))
        rows = [{"path": str(path), "label": path.parts[0], "track": path.parts[1]} for path in paths]
        (tmp_path / "list.csv").write_text(as_csv(rows))
        extra["list_file"] = str(tmp_path / "list.csv")
    chosen = settings(root, group_by=by, val=10, test=0.34, split_seed=seed, **extra)
    raw = sources.read(chosen)
    parts = split_source(raw, chosen)
    names = {name: group_names(raw, part.indices) for name, part in parts.items()}
    assert {name: len(found) for name, found in names.items()} == {"train": 6, "val": 2, "test": 4}
    assert len(set().union(*names.values())) == 12  # of 12: none is in two
    assert {name: part.per_class(2) for name, part in parts.items()} == {
        "train": [15, 15],
        "val": [5, 5],
        "test": [10, 10],
    }
    write_store(tmp_path / "data", raw, chosen)
    assert PreparedData.open(tmp_path / "data").manifest["groups"] == {"train": 6, "val": 2, "test": 4}
    again = split_source(sources.read(chosen), chosen)
    assert all((part.indices == again[name].indices).all() for name, part in parts.items())
    without = split_source(read(root), settings(root, val=10, test=20, split_seed=seed))
    assert any(  # as the same folder is divided at random
        group_names(raw, without["train"].indices) & group_names(raw, without[name].indices) for name in ("val", "test")
    )


def test_a_group_may_have_several_classes_and_any_size() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        groups = rng.integers(0, 60, 900).astype(str)
        groups[rng.random(900) < 0.1] = "large"
        labels = rng.choice(4, 900, p=[0.6, 0.3, 0.08, 0.02])
        parts = grouped(labels, groups, [0.2, 0.8], seed, spare=True)
        of_group = defaultdict(set)
        for part, group in zip(parts.tolist(), groups.tolist(), strict=True):
            of_group[group].add(part)
        assert all(len(found) == 1 for found in of_group.values())
        share = [(parts[labels == label] == 0).mean() for label in range(3)]
        assert np.allclose(share, 0.2, atol=0.06), (seed, share)


def test_training_keeps_a_group_of_each_class(tmp_path: Path) -> None:
    root = tracks(tmp_path / "photos", per_class=2)
    kinds.unpacked(root, {"zebra/only/0.png": kinds.png(kinds.pixels(1, 99, (3, 8, 8))[0])})
    for seed in range(8):
        chosen = settings(root, group_by={"folder": 1}, val=0.2, test=0.2, split_seed=seed)
        parts = split_source(sources.read(chosen), chosen)
        assert parts["train"].per_class(3)[2] == 1 and min(parts["train"].per_class(3)) > 0
    with pytest.raises(UserError, match=r"none of the 3 groups of dataset\.group_by can be spared"):
        chosen = settings(root, group_by={"folder": 2}, val=0.2, test=0.2)
        split_source(sources.read(chosen), chosen)
    with pytest.raises(UserError, match=r"^dataset.group_by.folder: .* is in 2 folders, not 3"):
        read(root, group_by={"folder": 3})
    with pytest.raises(
        UserError, match=r"^dataset.group_by.pattern: 'day\(\\\\d\)' is not found in 'stop/stop0/0.png'"
    ):
        read(root, group_by={"pattern": r"day(\d)"})


def test_a_group_is_one_in_all_classes(tmp_path: Path) -> None:
    for position, name in enumerate(("healthy", "sick")):
        for patient in range(10):
            images = kinds.pixels(3, 50 * position + patient, (3, 8, 8))
            kinds.unpacked(tmp_path, {f"{name}/p{patient}/{n}.png": kinds.png(image) for n, image in enumerate(images)})
    with pytest.raises(UserError, match=r"both have the folders p0/ and p1/: .* or set dataset\.group_by if these"):
        read(tmp_path)
    chosen = settings(tmp_path, group_by={"folder": 1}, val=0.2, test=0.2)
    raw = sources.read(chosen)
    names = [group_names(raw, part.indices) for part in split_source(raw, chosen).values()]
    assert sorted(map(len, names)) == [2, 2, 6] and len(set.union(*names)) == 10


def test_given_parts_that_share_a_group_are_refused(tmp_path: Path) -> None:
    root = flat(tmp_path / "photos")
    rows = [{**row, "patient": f"p{int(row['path'][:-4]) // 4}"} for row in rows_of()]
    (tmp_path / "list.csv").write_text(as_csv(rows))
    chosen = settings(root, list_file=str(tmp_path / "list.csv"), group_by={"column": "patient"})
    with pytest.raises(
        UserError, match="3 groups have images in both train and test, as the data are given, such as p0"
    ):
        split_source(sources.read(chosen), chosen)
    with pytest.raises(UserError, match=r"has no column 'scan'; its columns are path, label, split, patient"):
        read(root, list_file=str(tmp_path / "list.csv"), group_by={"column": "scan"})


def test_groups_of_parquet_files(tmp_path: Path) -> None:
    images = kinds.pixels(40, 0, (3, 8, 8))
    rows = [{"image": {"bytes": kinds.png(image), "path": None}} for image in images]
    table = pa.Table.from_pylist([{**row, "label": k % 2, "patient": k // 4} for k, row in enumerate(rows)])
    pq.write_table(table, tmp_path / "x.parquet")
    raw = {"source": "parquet", "path": str(tmp_path / "x.parquet"), "val": 8, "test": 8}
    chosen = Dataset.model_validate({**raw, "group_by": {"column": "patient"}})
    parts = split_source(sources.read(chosen), chosen)
    patients = [set((part.indices // 4).tolist()) for part in parts.values()]
    assert sorted(map(len, patients)) == [2, 2, 6] and len(set.union(*patients)) == 10
    with pytest.raises(UserError, match="has no column 'doctor'; it has image, label, patient"):
        sources.read(Dataset.model_validate({**raw, "group_by": {"column": "doctor"}}))


@pytest.mark.parametrize("by", [None, {"folder": 1}])
def test_each_image_is_tested_in_one_fold(by: dict[str, int] | None, tmp_path: Path) -> None:
    root = tracks(tmp_path / "photos")
    tested: list[int] = []
    for fold in range(3):
        chosen = settings(root, folds=3, fold=fold, val=0.2, group_by=by)
        raw = sources.read(chosen)
        parts = split_source(raw, chosen)
        assert parts["test"].per_class(2) == [10, 10]
        assert sorted(np.concatenate([part.indices for part in parts.values()]).tolist()) == list(range(60))
        tested += parts["test"].indices.tolist()
        if by:
            assert not group_names(raw, parts["test"].indices) & group_names(raw, parts["train"].indices)
    assert sorted(tested) == list(range(60))
    other = split_source(raw, settings(root, folds=3, fold=2, val=0.2, group_by=by, split_seed=1))
    assert other["test"].indices.tolist() != parts["test"].indices.tolist()


def test_folds_differ_by_one_image_at_most() -> None:
    labels = np.random.default_rng(0).choice(5, 203, p=[0.5, 0.3, 0.1, 0.07, 0.03])
    parts = dealt(labels, 4, seed=1)
    assert np.ptp(np.bincount(parts)) <= 1
    for label in range(5):
        assert np.ptp(np.bincount(parts[labels == label], minlength=4)) <= 1


def test_folds_of_a_list(tmp_path: Path) -> None:
    root = flat(tmp_path / "photos")
    rows = [{"path": row["path"], "label": row["label"], "fold": str(k // 4 + 1)} for k, row in enumerate(rows_of())]
    (tmp_path / "list.csv").write_text(as_csv(rows))
    pixels = kinds.pixels(12, 0, (3, 8, 8))
    for fold in (1, 2, 3):
        chosen = settings(root, list_file=str(tmp_path / "list.csv"), fold=fold, val=2)
        raw = sources.read(chosen)
        tested = raw.train_images[split_source(raw, chosen)["test"].indices]
        wanted = pixels[4 * fold - 4 : 4 * fold]
        assert sorted(image.tobytes() for image in tested) == sorted(image.tobytes() for image in wanted)
    for changes, words in (
        ({"fold": 4}, r"there is no fold 4 in the list, which has \[1, 2, 3\]"),
        ({"folds": 3, "fold": 0}, "list.csv has a column fold: leave out folds, or the column"),
    ):
        chosen = settings(root, list_file=str(tmp_path / "list.csv"), **changes)
        with pytest.raises(UserError, match=words):
            split_source(sources.read(chosen), chosen)
    (problem,) = read(root, list_file=str(tmp_path / "list.csv")).problems
    assert problem.endswith("list.csv: its column fold is not used, since dataset.fold is not set")
    (tmp_path / "list.csv").write_text(as_csv(rows_of()))
    with pytest.raises(UserError, match=r"dataset\.fold: .*list\.csv has no column fold: set dataset\.folds"):
        read(root, list_file=str(tmp_path / "list.csv"), fold=1)
    chosen = settings(root, list_file=str(tmp_path / "list.csv"), folds=2, fold=1)
    with pytest.raises(UserError, match="the data have test images of their own"):
        split_source(sources.read(chosen), chosen)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folds": 3}, "folds needs `fold`, the one that is tested: 0 to 2"),
        ({"folds": 3, "fold": 3}, "folds needs `fold`, the one that is tested: 0 to 2"),
        ({"fold": 1}, "fold needs `folds`"),
        ({"group_by": {}}, "set one of column, folder and pattern"),
        ({"group_by": {"folder": 1, "pattern": "x"}}, "set one of column, folder and pattern"),
        ({"group_by": {"pattern": "("}}, "is no regular expression"),
        ({"group_by": {"column": "x"}}, "group_by.column needs a list_file that has the column"),
        ({"source": "parquet", "group_by": {"folder": 1}}, "group_by of source parquet needs `column`"),
        ({"source": "svhn", "group_by": {"folder": 1}}, "group_by is not a setting of source svhn"),
    ],
)
def test_settings_that_exclude_each_other(changes: dict[str, object], words: str) -> None:
    base = {"source": "image_folder", "path": "x"}
    if changes.get("source") in ("svhn", "parquet"):
        base = {"path": "x"}
    with pytest.raises(ValueError, match=words):
        Dataset.model_validate({**base, **changes})


def test_the_frames_of_the_documentation_show_what_a_random_split_hides(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    runpy.run_path(str(root / "examples/frames.py"))["main"](tmp_path)
    example = yaml.safe_load((root / "examples/frames.yaml").read_text())["dataset"]
    accuracy = {}
    for by in (example["group_by"], None):
        chosen = Dataset.model_validate({**example, "path": str(tmp_path), "group_by": by})
        raw = sources.read(chosen)
        parts = split_source(raw, chosen)
        flat = raw.train_images.reshape(len(raw.train_labels), -1).astype(np.float32)
        train, test = parts["train"].indices, parts["test"].indices
        nearest = KNeighborsClassifier(1).fit(flat[train], raw.train_labels[train])
        accuracy["random" if by is None else "grouped"] = nearest.score(flat[test], raw.train_labels[test])
        if by is not None:
            assert not group_names(raw, train) & group_names(raw, test) and len(group_names(raw, train)) == 30
    assert accuracy["grouped"] < 0.96 < 0.99 < accuracy["random"], accuracy
