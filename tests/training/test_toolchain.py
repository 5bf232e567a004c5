"""What a compiler makes is there whole or not at all."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from iakd.training.toolchain import whole_outputs

COMPILER = """#!/bin/sh
# as `COMPILER ARGUMENTS… -o OUT`; waits for a line between the halves of what it writes
arguments=
while [ "$1" != -o ]; do arguments="$arguments<$1>"; shift; done
printf "half " > "$2"
echo ready
read line
printf "$arguments" >> "$2"
[ "$line" = good ]
"""


@pytest.fixture
def compiling(tmp_path: Path) -> subprocess.Popen[str]:
    compiler = tmp_path / "g++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    script = whole_outputs(str(compiler), tmp_path / "cache")
    assert script.name == "g++"
    command = [script, "a b", "-O2", "-o", tmp_path / "out.so"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert not (tmp_path / "out.so").exists()
    return process


def test_its_output_appears_when_it_is_whole(compiling: subprocess.Popen[str], tmp_path: Path) -> None:
    compiling.communicate("good\n")
    assert compiling.returncode == 0
    assert (tmp_path / "out.so").read_text() == "half <a b><-O2>"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "g++", "out.so"]


def test_what_fails_puts_nothing_in_place(compiling: subprocess.Popen[str], tmp_path: Path) -> None:
    compiling.communicate("bad\n")
    assert compiling.returncode == 1
    assert not (tmp_path / "out.so").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_is_killed_puts_nothing_in_place(
    compiling: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    os.killpg(compiling.pid, number)
    compiling.communicate()
    assert not (tmp_path / "out.so").exists()


def test_a_script_that_is_there_is_left_alone(tmp_path: Path) -> None:
    """Others may be reading it."""
    before = whole_outputs("g++", tmp_path).stat()
    assert whole_outputs("g++", tmp_path).stat() == before
    assert whole_outputs("/usr/bin/g++", tmp_path).stat().st_ino != before.st_ino
