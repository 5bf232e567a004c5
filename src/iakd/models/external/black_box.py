"""Teachers of any kind, of which nothing is known but their outputs: the user's own code, ONNX and torch.export files.

    teachers: [{callable: "my_teachers:large"}, {name: bought, checkpoint: bought.onnx}]

They have no blocks, so methods that compare outputs alone can learn from them.
"""

import contextlib
import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from iakd.config import Teacher
from iakd.errors import UserError
from iakd.experiment.provenance import source_sha
from iakd.files import sha256_bytes
from iakd.models.checkpoint_matching import readings
from iakd.models.checkpoints import StateDict, damaged, is_exported
from iakd.models.external.partition import Copy
from iakd.models.network import Network, are_probabilities
from iakd.models.shapes import Shape
from iakd.plugins import import_object

if TYPE_CHECKING:
    from iakd.models.external.onnx_model import OnnxModel

HALF_PRECISION = 1e-2  # how far from 1 a sum of probabilities may be


class BlackBox(Network):
    """A network without blocks: `body` maps images (B, C, H, W) to logits or probabilities (B, classes)."""

    def __init__(self, body: nn.Module, name: str, probabilities: bool, source: str = "") -> None:
        super().__init__(Copy(), [], _Logits(body, name, probabilities, source))

    @property
    def body(self) -> nn.Module:
        """The user's module, or the program in a file."""
        return cast(_Logits, self.head).body

    def check_outputs(self, images: Tensor, classes: int) -> None:
        """Raise UserError unless normalised images (B, C, H, W) have outputs that a student can learn from."""
        head = cast(_Logits, self.head)
        where = f"teacher {head.name}"
        self.eval()
        try:
            with torch.no_grad():
                outputs, again = (head.body(self.enter(images)) for _ in range(2))
                apart = [head.body(self.enter(half)) for half in images.split((len(images) + 1) // 2)]
        except UserError:
            raise
        except Exception as error:  # foreign code can fail in any way
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(
                f"{where} cannot compute images of {'×'.join(map(str, images.shape[1:]))} ({reason})"
            ) from None
        if not isinstance(outputs, Tensor) or outputs.shape != (len(images), classes):
            what = f"{tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
            raise UserError(f"{where} returns {what} for {len(images)} images, not logits ({len(images)}, {classes})")
        if not outputs.isfinite().all():
            raise UserError(f"{where} returns values that are not finite")
        if not torch.allclose(outputs, again, rtol=1e-3, atol=1e-4):
            raise UserError(
                f"{where} returns other outputs for the same images when asked again, so no training could be resumed: "
                "let nothing in it be random in evaluation mode"
            )
        if not torch.allclose(outputs, torch.cat(apart), rtol=1e-3, atol=1e-4):
            raise UserError(
                f"{where} returns other outputs for an image when others are in its batch, so what it teaches would be "
                "a matter of chance: let each image have outputs of its own"
            )
        if are_probabilities(outputs, HALF_PRECISION) != head.probabilities:
            wanted, found = ("probabilities", "logits") if head.probabilities else ("logits", "probabilities")
            raise UserError(f"{where} returns {found}, and should return {wanted}: set outputs: {found}")


class _Logits(nn.Module):
    """The outputs of a module as logits (B, classes); of probabilities their logarithms, whose softmax they are."""

    def __init__(self, body: nn.Module, name: str, probabilities: bool, source: str) -> None:
        super().__init__()
        self.body, self.name, self.probabilities, self.source = body, name, probabilities, source

    def extra_repr(self) -> str:
        return f"{self.name}, {self.probabilities=}, {self.source}"

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.body(images)
        return outputs.float().clamp_min(torch.finfo(torch.float32).tiny).log() if self.probabilities else outputs


def build(settings: Teacher) -> BlackBox:
    """Build the black box that the settings describe. One in a file is empty until its weights are loaded.

    Raises UserError if the user's function fails, or returns no module.
    """
    probabilities = settings.outputs == "probabilities"
    if settings.callable is None:
        return BlackBox(Program(), settings.name, probabilities)
    where = f"teacher {settings.name}: callable {settings.callable}"
    settings.check_callable()
    try:
        function = import_object(settings.callable)
    except UserError as error:
        raise UserError(f"teacher {settings.name}: callable {error}") from error
    try:
        module = function()  # type: ignore[operator]
    except (Exception, SystemExit) as error:  # foreign code can fail in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{where} failed ({reason}); it is called without arguments") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{where} returned a {type(module).__name__}, not a torch.nn.Module")
    source = source_sha(settings.callable.partition(":")[0])
    return BlackBox(module.eval().requires_grad_(False), settings.name, probabilities, source)


def load_weights_of_file(network: BlackBox, found: list[StateDict], origin: str) -> None:
    """Load the first of the state_dicts that fits into the user's module. Raises UserError if none does."""
    wanted = network.body.state_dict()
    for each in found:
        for names in readings({name: tuple(tensor.shape) for name, tensor in each.tensors.items()}):
            tensors = {name: each.tensors[full] for name, full in names.items()}
            if tensors.keys() == wanted.keys():
                with contextlib.suppress(RuntimeError):  # other shapes
                    network.body.load_state_dict(tensors)
                    return
    raise UserError(f"{origin} does not fit the module of the callable: its tensors have other names or shapes")


class Program(nn.Module):
    """A network in a file: ONNX, which ONNX Runtime computes on the CPU, or a program of torch.export.

    Images float32 (B, C, H, W) → (B, classes), in batches of any size, also where the file is for batches of a fixed
    one. The file itself is the module's state, so a state_dict holds all that is needed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.content = b""
        self._programs: dict[str, Any] = {}

    def extra_repr(self) -> str:
        return sha256_bytes(self.content)

    def get_extra_state(self) -> Tensor:
        """Return the file as uint8 (bytes,)."""
        return torch.frombuffer(bytearray(self.content), dtype=torch.uint8) if self.content else torch.empty(0).byte()

    def set_extra_state(self, state: Tensor) -> None:
        """Open the file. Raises UserError if it cannot be used."""
        self.open(state.cpu().numpy().tobytes(), "the teacher's program")

    def open(self, content: bytes, origin: str) -> None:
        """Open a file, given its content. Raises UserError, naming `origin`, if it cannot be used."""
        self.content = content
        self._programs = {}
        if content:
            self._programs["cpu"] = _opened(content, origin)

    def forward(self, images: Tensor) -> Tensor:
        program, device = self._programs["cpu"], str(images.device)
        if isinstance(program, _Exported) and device not in self._programs:
            self._programs[device] = program.on(images.device)
        return self._programs.get(device, program)(images)

    @property
    def batch(self) -> int:
        """The number of images that it computes when it is given one."""
        program = self._programs["cpu"]
        return program.least if isinstance(program, _Exported) else 1

    def cost(self, image: Shape) -> tuple[int, int]:
        """Return the number of its weights, and MACs for one image of shape (C, H, W) that torch does not see."""
        program = self._programs["cpu"]
        if isinstance(program, _Exported):
            return program.parameters, 0
        from iakd.models.external.onnx_model import onnx_cost

        return onnx_cost(self.content, image)


def _opened(content: bytes, origin: str) -> "OnnxModel | _Exported":
    if content.startswith(b"PK"):
        return _Exported(content, origin)
    from iakd.models.external.onnx_model import OnnxModel  # slow to import

    return OnnxModel(content, origin)


class _Exported:
    """A program of torch.export, on one device."""

    def __init__(self, content: bytes, origin: str, device: torch.device | None = None) -> None:
        self._content, self._origin = content, origin
        _check_program(content, origin)
        from torch.export.passes import move_to_device_pass

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.load(io.BytesIO(content))
                program = move_to_device_pass(program, str(device or "cpu"))
                self._module = program.module()
        except Exception as error:  # in a damaged file anything can go wrong
            raise damaged(origin, error) from None
        self.parameters = sum(program.state_dict[name].numel() for name in program.graph_signature.parameters)
        inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
        if len(inputs) != 1:
            raise UserError(f"{origin} has {len(inputs)} inputs; a classifier has one, the images")
        batch = inputs[0].meta["val"].shape[0]
        self._fixed = batch if isinstance(batch, int) else None
        bounds = None if self._fixed else program.range_constraints.get(batch.node.expr)
        self.least = self._fixed or (1 if bounds is None else max(1, int(bounds.lower)))
        self._dtype = inputs[0].meta["val"].dtype

    def on(self, device: torch.device) -> "_Exported":
        """Return the same program on another device."""
        return _Exported(self._content, self._origin, device)

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self._dtype)
        size = self._fixed or max(len(images), self.least)
        rows = [self._run(images[start : start + size], size) for start in range(0, len(images), size)]
        return torch.cat(rows).float()

    def _run(self, images: Tensor, size: int) -> Tensor:
        """Return the outputs (B, K) of B ≤ `size` images; the program is run with `size` of them."""
        filled = torch.cat([images, images[-1:].expand(size - len(images), *images.shape[1:])])
        outputs = self._module(filled.contiguous())
        return (outputs[0] if isinstance(outputs, list | tuple) and len(outputs) == 1 else outputs)[: len(images)]


FUNCTIONS = {  # of torch.export's formulas
    *("Symbol", "Integer", "Rational", "Float", "Max", "Min", "Add", "Mul", "Pow", "Mod", "PythonMod", "FloorDiv"),
    *("CeilDiv", "CleanDiv", "IntTrueDiv", "TruncToInt", "FloorToInt", "CeilToInt", "RoundToInt", "ToFloat", "floor"),
    *("ceiling", "Eq", "Ne", "Ge", "Gt", "Le", "Lt", "And", "Or", "Not", "Where", "ModularIndexing"),
}


def _is_arithmetic(formula: str) -> bool:
    """Return whether a formula calls nothing but functions of arithmetic."""
    calls = re.findall(r"(\w+)\s*\(", formula)
    plain = re.fullmatch(r"[\w\s'+*/%(),<>=.&|~-]*", formula) and not re.search(r"__|[^\d\s]\s*\.|\)\s*\(", formula)
    return bool(plain) and FUNCTIONS.issuperset(calls)


def _check_program(content: bytes, origin: str) -> None:
    """Raise UserError unless an archive is a program without pickled objects, which could run anything.

    Sizes in it are formulas, which torch evaluates; only arithmetic is let through.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if not is_exported(io.BytesIO(content)):
                raise UserError(f"{origin} is not a program of torch.export.save (torch 2.7 or later)")
            for member in archive.namelist():
                if member.endswith("_config.json"):
                    entries: Mapping[str, Any] = json.loads(archive.read(member)).get("config", {})
                    pickled = [name for name, entry in entries.items() if entry.get("use_pickle")]
                    custom = [name for name, entry in entries.items() if "custom_obj" in str(entry.get("path_name"))]
                    if pickled or custom:
                        raise UserError(f"{origin} holds pickled objects ({[*pickled, *custom][0]}) and is not opened")
                elif "/models/" in member and member.endswith(".json"):
                    formulas = re.findall(r'"expr_str"\s*:\s*"((?:[^"\\]|\\.)*)"', archive.read(member).decode())
                    strange = next((text for text in formulas if not _is_arithmetic(text)), None)
                    if strange is not None:
                        raise UserError(f"{origin} has a formula that is not arithmetic ({strange[:40]})")
                elif "/sample_inputs/" in member:
                    torch.load(io.BytesIO(archive.read(member)), weights_only=True)
    except UserError:
        raise
    except Exception as error:  # in a damaged file anything can go wrong
        raise damaged(origin, error) from None
