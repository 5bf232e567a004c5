"""Static quantisation of an exported model to 8-bit integers, by ONNX Runtime's own tools."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from iakd.data.splits import Indices
from iakd.data.store import PreparedData
from iakd.export.convert import INPUT, Images

CALIBRATION = 256  # training images, evenly spaced, from which the ranges of all values are taken


class _Reader(CalibrationDataReader):
    def __init__(self, images: Iterator[Images]) -> None:
        self._images = images

    def get_next(self) -> dict[str, Images] | None:
        """Return the next batch, or None after the last one."""
        batch = next(self._images, None)
        return None if batch is None else {INPUT: batch}


def to_int8(model: bytes, images: Iterator[Images]) -> bytes:
    """Return an ONNX model with QuantizeLinear and DequantizeLinear around its layers: weights and values as int8.

    `images` are batches of training images. Weights have a scale per channel. Both are signed, because processors
    without instructions for 8-bit products let sums of unsigned by signed ones saturate. Equal models and images give
    equal bytes.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        float_model, prepared, quantised = (str(Path(folder) / name) for name in ("float", "prepared", "int8"))
        Path(float_model).write_bytes(model)
        quant_pre_process(float_model, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            _Reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QInt8,
        )
        graph = onnx.load(quantised)
    del graph.metadata_props[:]
    graph.metadata_props.extend(onnx.load_from_string(model).metadata_props)
    onnx.checker.check_model(graph)
    return bytes(graph.SerializeToString(deterministic=True))


def calibration_positions(store: PreparedData) -> Indices:
    """Return the positions of the training images from which the ranges are taken."""
    n = len(store.labels("train"))
    return np.unique(np.linspace(0, n - 1, min(CALIBRATION, n)).astype(np.int64))


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Keep what the tools print and log about themselves away."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
