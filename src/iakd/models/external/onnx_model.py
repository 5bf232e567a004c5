"""Models in ONNX's format as modules, computed by ONNX Runtime on the CPU."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iakd.errors import UserError, reason_of
from iakd.models.shapes import Shape

FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}  # inputs in ONNX


def open_onnx(model: bytes | str, threads: int) -> onnxruntime.InferenceSession:
    """Open an ONNX file, or its content, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxModel(nn.Module):
    """A model in ONNX's format as a module, computed by ONNX Runtime on the CPU.

    Images float32 (B, C, H, W) → float32 (B, K), whatever the precision in the file. One that was made for batches of a
    fixed size takes batches of any size, too. `model` is a path, or the content of a file. Raises UserError, naming
    `origin`, for what cannot be used.
    """

    def __init__(self, model: Path | bytes, origin: str) -> None:
        super().__init__()
        try:
            self._session = open_onnx(model if isinstance(model, bytes) else str(model), torch.get_num_threads())
        except Exception as error:  # its own exceptions have no common base
            reason = reason_of(error)
            raise UserError(f"{origin} is not a usable ONNX file ({reason})") from None
        if len(self._session.get_inputs()) != 1:
            raise UserError(f"{origin} has {len(self._session.get_inputs())} inputs; a classifier has one, the images")
        kind = self._session.get_inputs()[0].type
        if kind not in FLOATS:
            raise UserError(f"{origin} takes {kind}; only floating-point images are supported")
        self._type = FLOATS[kind]
        self._batch = self.image_shape[0] if isinstance(self.image_shape[0], int) else None

    @property
    def image_shape(self) -> list[int | str | None]:
        """What the file says about the input's shape (B, C, H, W); texts and None are free."""
        return list(self._session.get_inputs()[0].shape)

    def forward(self, images: Tensor) -> Tensor:
        batch = images.float().cpu().numpy().astype(self._type)
        size = self._batch or len(batch)
        rows = [self._run(batch[start : start + size], size) for start in range(0, len(batch), size)]
        return torch.from_numpy(np.concatenate(rows).astype(np.float32)).to(images.device)

    def _run(self, batch: NDArray[Any], size: int) -> NDArray[Any]:
        """Return the outputs (B, K) of B ≤ `size` images; the file is run with `size` of them."""
        filled = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
        names = [self._session.get_outputs()[0].name]
        outputs: NDArray[Any] = self._session.run(names, {self._session.get_inputs()[0].name: filled})[0]
        return outputs[: len(batch)]


def onnx_cost(content: bytes, image: Shape) -> tuple[int, int]:
    """Return the number of weights in an ONNX file, and its multiply–accumulates for one image (C, H, W).

    Convolutions and matrix products are counted; those whose shapes are not known before the file is run are not.
    """
    model = onnx.load_from_string(content)
    weights = sum(prod(each.dims) for each in model.graph.initializer)
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    batch = sizes[0].dim_value or 1  # other shapes in a file for batches of a fixed size are for that size
    for dimension, size in zip(sizes, (batch, *image), strict=False):
        dimension.Clear()
        dimension.dim_value = size
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dimension.HasField("dim_value") for dimension in dims):
            shapes[value.name] = tuple(dimension.dim_value for dimension in dims)
    return weights, sum(_macs(node, shapes) for node in graph.node) // batch


def _macs(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    first, second = (shapes.get(name) for name in (*node.input, "", "")[:2])
    output = shapes.get(node.output[0])
    if first is None or second is None or output is None:
        return 0
    match node.op_type:
        case "Conv":
            return prod(output) * prod(second[1:])
        case "ConvTranspose":
            return prod(first) * prod(second[1:])
        case "MatMul":
            return prod(output) * first[-1]
        case "Gemm":
            transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            return prod(output) * first[0 if transposed else 1]
        case _:
            return 0
