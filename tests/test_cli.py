"""The command line: one clear line and exit code 2 for the user's mistakes, and earlier results untouched."""

import errno
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iakd import config
from iakd.config import Params

SETTINGS = """
dataset: {name: toy, source: digits, val: 100, test: 1000}
teachers: [{arch: resnet14, width: 4}]
students: [{arch: resnet8, width: 4}]
methods: {scratch: {}, kd: {}, iakd: {}}
teach: {recipe: {epochs: 1, augment: {pad: 1}}}
distill: {seeds: [0], transfer: 60, recipe: {epochs: 2, batch_size: 30}}
tracking: {enabled: false}
compute: {device: cpu}
"""
Iakd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(SETTINGS)
    return tmp_path


@pytest.fixture
def taught(project: Path, iakd: Iakd) -> Path:
    assert iakd("prepare")[0] == 0
    assert iakd("teach")[0] == 0
    return project


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "results").rglob("*")) if p.is_file()}


def mistake(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2 and one line on stderr that has all the words."""
    code, out, err = result
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("iakd: "), err
    assert "Traceback" not in err
    assert not out
    for word in words:
        assert word in last


def test_an_impossible_student_is_found_before_its_teacher_is_trained(project: Path, iakd: Iakd) -> None:
    assert iakd("prepare")[0] == 0
    mistake(iakd("teach", "--set", "students=[{arch: resnet21}]"), "network resnet21: unknown arch 'resnet21'")
    deeper = "students=[{arch: resnet32, width: 4}]"
    mistake(iakd("teach", "--set", deeper), "impossible pair: stage 1 of the teacher has 2 blocks and the student's 5")
    mistake(iakd("teach", "--set", "distill.transfer=5000"), "distill.transfer: 5000 images")
    unknown = "distill.recipe.class_weights={ten: 2}"
    mistake(iakd("teach", "--set", unknown), "recipe.class_weights: no class 'ten'")
    wide = "recipe.augment.pad: 8 pixels are too many for images of 8×8"
    mistake(iakd("teach", "--set", "distill.recipe.augment.pad=8"), wide)
    assert not (project / "results/toy/teachers").exists()
    mistake(iakd("teach", "--set", "teach.recipe.augment.pad=8"), wide)
    assert iakd("teach", "--set", deeper, "--set", "methods={kd: {}}")[0] == 0  # nothing is swapped


def test_the_chain_by_hand_names_each_product_last(taught: Path, iakd: Iakd) -> None:
    code, out, _ = iakd("distill", "--method", "kd")
    assert code == 0
    assert out.strip().splitlines()[-1] == "results/toy/students/resnet14w4-resnet8w4/kd/seed0"
    before = snapshot(taught)
    assert iakd("distill", "--method", "kd")[0] == 0
    assert snapshot(taught) == before


def test_an_option_given_twice_chooses_both(taught: Path, iakd: Iakd) -> None:
    code, out, _ = iakd("distill", "--method", "kd", "--method", "scratch")
    assert code == 0 and out.count("seed0") == 2
    trained = {folder.name for folder in (taught / "results/toy/students").glob("*/*")}
    assert trained == {"kd", "scratch"}


def test_mistakes_in_settings(project: Path, iakd: Iakd) -> None:
    mistake(iakd("prepare", "--set", "distil.x=1"), "params.yaml", "distil: unknown key", "'distill'")
    mistake(iakd("prepare", "--set", "dataset.val=few"), "dataset.val", "valid integer", "'few'")
    mistake(iakd("prepare", "--params", "absent.yaml"), "absent.yaml does not exist")
    mistake(iakd("distill", "--method", "iakdd"), "no such student", "did you mean 'iakd'")
    assert not (project / "results").exists()


def test_stages_out_of_order_name_the_command_to_run(project: Path, iakd: Iakd) -> None:
    mistake(iakd("teach"), "results/toy/data", "iakd prepare")
    assert iakd("prepare")[0] == 0
    mistake(iakd("distill", "--method", "kd"), "results/toy/teachers/resnet14w4/seed0/run.json does not exist")


def test_truncated_data(taught: Path, iakd: Iakd) -> None:
    before = snapshot(taught)
    path = taught / "results/toy/data/train.images.npy"
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    mistake(iakd("distill", "--method", "scratch"), "train.images.npy", "iakd prepare")
    path.write_bytes(content)
    assert snapshot(taught) == before


def test_a_damaged_teacher(taught: Path, iakd: Iakd) -> None:
    path = taught / "results/toy/teachers/resnet14w4/seed0/model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-5] + b"wrong")
    before = snapshot(taught)
    mistake(iakd("distill", "--method", "kd"), "model.safetensors is damaged")
    assert snapshot(taught) == before


def test_an_impossible_pair(taught: Path, iakd: Iakd) -> None:
    before = snapshot(taught)
    deep = ("--set", "students.0.arch=resnet20")
    mistake(iakd("distill", "--method", "iakd", *deep), "impossible pair", "stage 1 of the teacher has 2 blocks")
    narrow = ("--set", "students.0.width=8", "--set", "methods.kd.init=teacher")
    mistake(iakd("distill", "--method", "kd", *narrow), "the teacher's stem does not fit")
    mistake(iakd("distill", "--method", "kd", "--set", "students.0.arch=resnet9"), "unknown arch 'resnet9'")
    assert snapshot(taught) == before


def test_a_gpu_that_is_not_there(taught: Path, iakd: Iakd) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    mistake(iakd("distill", "--method", "kd", "--set", "compute.device=cuda"), "compute.device is cuda", "no GPU")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; the tests that need it are skipped where one cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(taught: Path, iakd: Iakd, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where students go is full: one line, nothing half-written, and the run resumes once there is space."""
    (taught / "results/toy/students").symlink_to(small_disk, target_is_directory=True)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(64 * 1024 - 4096))
    mistake(iakd("distill", "--method", "scratch"), "No space left on device", "free some disk space")
    assert [p for p in small_disk.rglob("*") if p.is_file()] == [filler]
    filler.unlink()
    assert iakd("distill", "--method", "scratch")[0] == 0


def test_a_training_that_diverges_fails_with_one_line(taught: Path, iakd: Iakd) -> None:
    code, _, err = iakd(
        "distill", "--method", "scratch", "--set", "distill.recipe.lr=1e30", "--set", "distill.recipe.epochs=5"
    )
    assert code == 1
    assert "no longer finite" in err.strip().splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize(
    "command", [[], ["prepare"], ["teach"], ["tune"], ["distill"], ["evaluate"], ["report"], ["track"]]
)
def test_help_imports_nothing_slow(command: list[str]) -> None:
    slow = "torch optuna mlflow numpy sklearn scipy matplotlib snakemake pandas"
    code = (
        "import sys\nfrom iakd.cli import main\n"
        f"sys.argv = ['iakd', *{command!r}, '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print(sorted(set({slow.split()!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Usage: iakd" in done.stdout


def test_a_file_where_a_folder_has_to_be(iakd: Iakd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "params.yaml"
    settings.write_text("teachers: [{arch: resnet8}]\nstudents: [{arch: resnet8}]\nmethods: {scratch: {}}\n")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "digits").touch()
    mistake(iakd("prepare", "--params", str(settings)), "results/digits", "move the file that is where a folder")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENAMETOOLONG, "choose a shorter one"),
        (errno.EISDIR, "move the folder that is where a file should be"),
        (errno.ELOOP, "remove the symbolic link that leads to itself"),
        (errno.EFBIG, "raise the limit with `ulimit -f`"),
        (errno.ENOLCK, "check the file system, then run again"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_line(
    iakd: Iakd, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def methods() -> None:
        raise OSError(number, "words of the system", "some/path")

    monkeypatch.setattr("iakd.config.methods.listing", methods)
    mistake(iakd("methods"), "some/path", remedy)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to")]
)
def test_too_little_memory_is_one_line(iakd: Iakd, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def methods() -> None:
        raise error

    monkeypatch.setattr("iakd.config.methods.listing", methods)
    code, out, err = iakd("methods")
    assert (code, out) == (1, "") and err.startswith("iakd: out of memory; choose smaller") and err.count("\n") == 1


def test_what_the_user_wrote_cannot_break_the_line(project: Path, iakd: Iakd) -> None:
    mistake(iakd("prepare", "--set", "distil\n\x1b[31m=1"), "distil\\n\\x1b[31m: unknown key")


def test_pairs_of_any_size_are_shown_without_computing(iakd: Iakd, project: Path) -> None:
    """4096×4096 images of 1024 channels take 64 GiB, and the head for a billion classes 256 GB."""
    code, out, _ = iakd("pairs", "resnet14", "resnet8", "--size", "4096", "--channels", "1024")
    assert code == 0 and "images 1024×4096×4096" in out
    code, out, _ = iakd("pairs", "resnet14", "resnet8", "--classes", "1000000000")
    assert code == 0 and "parameters: student 65.0 G, teacher 65.0 G" in out
    mistake(iakd("pairs", "", "resnet8"), "arch: String should have at least 1 character")


def slowly(load: Callable[..., Params], *arguments: object) -> Params:
    time.sleep(1)
    return load(*arguments)


def test_settings_that_take_long_to_read_are_not_read_in_silence(
    project: Path, iakd: Iakd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iakd.processes.SECONDS_OF_SILENCE", 0.0)
    monkeypatch.setattr(config, "load", functools.partial(slowly, config.load))
    code, _, err = iakd("track", "flush")
    assert (code, err) == (0, "reading the settings …\n")
