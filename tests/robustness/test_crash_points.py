"""A chain that dies at any fsync or rename, and is run again, ends with the bits of one that was never disturbed.

Some points of all, which a seed draws, are tried. `CRASH_POINTS=130 pytest -s tests/robustness/test_crash_points.py`
tries as many, and `CRASH_POINTS=all` every one, which takes ten minutes on an idle core.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest
from short_chain import STAGES, log_of, undisturbed_chain

pytestmark = pytest.mark.robustness
WANTED = os.environ.get("CRASH_POINTS", "6")
REPORTED = 5  # one in so many goes on to the report, unless it died there: reports take half of the time


def test_a_crash_at_any_fsync_or_rename_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    with undisturbed_chain(tmp_path, "crash") as whole:
        assert len(whole.results) > 50 and len(whole.points) > 200
        tried = whole.some(WANTED)
        for count, (stage, number) in enumerate(tried, 1):
            folder = whole.copy(stage, f"{stage} {number}")
            code, _ = whole.chains.run(folder, "crash", number, only=stage)
            assert code == -signal.SIGKILL, f"{folder.name}: {log_of(folder)}"
            reported = stage in STAGES[-2:] or count % REPORTED == 0
            code, _ = whole.chains.run(folder, last=STAGES[-1 if reported else -2])
            assert code == 0, f"{folder.name}: {log_of(folder)}"
            assert whole.differences(folder, reported) == [], folder.name
            shutil.rmtree(folder)
            print(f"{count} of {len(tried)}, of {len(whole.points)}: {stage}, {number}: bit-identical", flush=True)
