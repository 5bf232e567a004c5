"""What the fuzzers share: how long they search, values that settings do not expect, and limits."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings

SCALE = int(os.environ.get("IAKD_FUZZ", "0"))  # settings of the long form; 0: the short form, as in CI
SECONDS = 30  # of processor time, which a busy machine does not stretch


def examples(short: int, share: float = 1.0) -> settings:
    """Search `short` examples, always the same ones.

    In the long form: this `share` of IAKD_FUZZ, other ones each time, or those of `--hypothesis-seed`.
    """
    return settings(
        max_examples=round(SCALE * share) or short,
        derandomize=not SCALE,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


class TakesTooLong(Exception):
    """A call that has not ended within `SECONDS`."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise TakesTooLong in a block that takes more than `SECONDS` of processor time."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TakesTooLong(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


ODD_TEXTS = [
    "", " ", ".", "..", "...", "../../up", "/", "/dev/null", "~", "null", "true", "yes", "on", "off", "nan", "inf",
    "-1", "1e3", "0x10", "2020-13-45", "[draft", "{a: 1", "a: b: c", "#",
    "!!float x", "&a", "*a", "a+b", "kd+kd", "iakd+kd",
    "rcn+fcfd", "teacher", "tuned", "auto", "-", "--help", "resnet8", "vgg8", "MobileNetV2", "torchvision/resnet18",
    "torchvision/none", "timm/none", "none/none", "\0", "\n", "\x1b[31m", "\ud800", "ä" * 300, "a" * 300, "𝔘",
    "image_folder", "cifar10", "models:/x/1", "sqlite:////dev/null", "http://[", "%s {x} ${y}", "$(id)",
    "`id`", "'", '"', "\\",
]  # fmt: skip
ODD_NUMBERS = [
    0, 1, -1, 2, 3, 5, 7, 9, 10, 16, 99, 100, 128, 1000, 4096, 10**6, 2**31 - 1, 2**31, 2**63, 10**30, 10**4000,
    True, False, 0.0, -0.0, 1.0, 0.5, 0.1, 0.999999, 1e-3, 1e-17, 1e-30, 1e-45, 5e-324, 1.5, 4.0, 1420.0,
    1e9, 1e30, 1e39, 1e300, -0.5, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TEXTS),
    st.integers(-10, 1000),
    st.floats(-2, 20),
    st.floats(),
    st.text(max_size=12),
)
KEYS = st.sampled_from(
    ["", "kind", "low", "high", "choices", "epochs", "lr", "a.b", "recipe.lr", "kd.temperature", ".."]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
