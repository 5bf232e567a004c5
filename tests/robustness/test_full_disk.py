"""A chain that fills the disk ends in one line, and is completed with the same bits once there is space.

A seed draws some of all writes. `FULL_DISKS=100 pytest -s tests/robustness/test_full_disk.py` tries as many, and
`FULL_DISKS=all` every one, which takes half an hour on an idle core.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from short_chain import STAGES, Undisturbed, log_of, undisturbed_chain

pytestmark = pytest.mark.robustness
WANTED = os.environ.get("FULL_DISKS", "3")
REPORTED = 5  # as in test_crash_points.py
KIB = 1024


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    with undisturbed_chain(tmp_path_factory.mktemp("chain"), "full") as whole:
        yield whole


def ends_in_one_line(folder: Path) -> None:
    """The last line says what to do; the ones before are the progress of what was done."""
    log = log_of(folder)
    *before, last = log.splitlines()
    assert last.startswith("iakd: ")
    assert last.endswith(": No space left on device; free some disk space, then run again")
    assert "Traceback" not in log and not [line for line in before if line.startswith("iakd: ")], log


def test_a_disk_that_is_full_from_any_write_on(whole: Undisturbed) -> None:
    assert len(whole.points) > 400
    tried = whole.some(WANTED)
    for count, (stage, number) in enumerate(tried, 1):
        folder = whole.copy(stage, f"{stage} {number}")
        code, _ = whole.chains.run(folder, "full", number, only=stage)
        assert code == 2, f"{folder.name}: {log_of(folder)}"
        ends_in_one_line(folder)
        reported = stage in STAGES[-2:] or count % REPORTED == 0
        code, _ = whole.chains.run(folder, last=STAGES[-1 if reported else -2])
        assert code == 0, f"{folder.name}: {log_of(folder)}"
        assert whole.differences(folder, reported) == [], folder.name
        shutil.rmtree(folder)
        print(f"{count} of {len(tried)}, of {len(whole.points)}: {stage}, {number}: complete", flush=True)


def test_a_small_disk_that_grows(whole: Undisturbed, tmp_path: Path) -> None:
    """A real file system in memory, which only root may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 64 * KIB
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        full = 0
        while (code := whole.chains.run(disk, log=tmp_path / "log.txt")[0]) != 0:
            assert code == 2, log_of(tmp_path)
            ends_in_one_line(tmp_path)
            full += 1
            size *= 2
            subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
        assert full >= 3
        assert whole.differences(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
