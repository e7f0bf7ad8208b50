"""The encoder as a program of PyTorch (`torch.export`) or of ONNX, and the check that it computes the same."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extensions.pointnet2_ops.reference import PADDING_SQUARED_NORM
from models import Encoder
from models.tokenizer import take
from utils.files import atomic_write

INSTALL = "pip install -r requirements-library.txt"
ONNX, EXPORTED = ".onnx", ".pt2"
TOLERANCE = 1e-4  # of what an exported program gives, in times of the largest value
EXAMPLE = (2, 256)  # clouds and points of a trace; programs take other numbers


class Chosen(nn.Module):
    """An encoder to which sampling and search are given: standard operators, a batch of any size, clouds of any."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, points: Tensor, *chosen: Tensor) -> tuple[Tensor, ...]:
        """Feature and tokens of each level of (B, N, 3) points; `chosen` are samples and members, level by level."""
        out = self.encoder.encode_chosen(points, chosen[::2], chosen[1::2])
        return out.feature, *out.tokens


class Whole(nn.Module):
    """An encoder with sampling and search in standard operators; N is at least the points of a group."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, points: Tensor) -> tuple[Tensor, ...]:
        """Feature and tokens of each level of (B, N, 3) points."""
        samples, members, finer = [], [], points
        for groups, size in zip(self.encoder.num_groups, self.encoder.group_sizes, strict=True):
            samples.append(_farthest(finer, groups))
            centers = take(finer, samples[-1])
            members.append(_squared(centers.unsqueeze(2), finer.unsqueeze(1)).topk(size, largest=False).indices)
            finer = centers
        out = self.encoder.encode_chosen(points, samples, members)
        return out.feature, *out.tokens


def _farthest(points: Tensor, count: int) -> Tensor:
    """`furthest_point_sample` as one scan, (B, count) int64."""
    from torch._higher_order_ops.scan import scan  # of new releases of PyTorch alone

    padding = _squared(points, torch.zeros_like(points)) <= PADDING_SQUARED_NORM
    nearest = torch.where(padding, -1.0, torch.full_like(points[..., 0], torch.finfo(points.dtype).max))
    first = torch.zeros_like(points[:, :1, 0], dtype=torch.int64)

    def step(carry: tuple[Tensor, Tensor], _: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        nearest, last = carry
        nearest = torch.minimum(nearest, _squared(points, take(points, last)))
        farthest = nearest.argmax(1, keepdim=True)
        return (nearest, farthest), farthest.clone()

    _, picked = scan(step, (nearest, first), points.new_zeros(count - 1, 1))
    return torch.cat([first, picked.squeeze(-1).t()], dim=1)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances along the last dimension, summed in the order of the kernels."""
    x, y, z = (a - b).square().unbind(-1)
    return x + y + z


def example(encoder: Encoder, clouds: int, points: int, whole: bool) -> tuple[Tensor, ...]:
    """Inputs of a program: random clouds in the unit sphere and, unless it is whole, what `Encoder.choose` chose."""
    generator = torch.Generator().manual_seed(clouds * points)
    cloud = torch.randn(clouds, max(points, encoder.group_sizes[0]), 3, generator=generator)
    cloud = cloud / cloud.norm(dim=-1, keepdim=True).amax(1, keepdim=True)
    if whole:
        return (cloud,)
    pairs = zip(*encoder.choose(cloud), strict=True)
    return (cloud, *(index for pair in pairs for index in pair))


def names(encoder: Encoder, whole: bool) -> tuple[list[str], list[str]]:
    """What the inputs and the outputs of a program are called."""
    levels = range(len(encoder.num_groups))
    chosen = [f"{what}_{level}" for level in levels for what in ("sample", "members")]
    return ["points", *([] if whole else chosen)], ["feature", *(f"tokens_{level}" for level in levels)]


def export(encoder: Encoder, path: Path, whole: bool = False, about: dict[str, Any] | None = None) -> float:
    """Write an encoder as a program and compare what it computes with the encoder.

    Args:
        encoder: on the CPU, float32.
        path: ends in .onnx or .pt2; whole or absent.
        whole: with sampling and search; otherwise they are inputs, as `Encoder.choose` returns them.
        about: plain values that an ONNX file keeps as its metadata.

    Returns:
        The largest difference, in times of the largest value, on clouds of another number and size than traced.

    Raises:
        ValueError: if a library is missing, or the program does not compute the same.
    """
    for name in ("onnx", "onnxscript", "onnxruntime") if path.suffix == ONNX else ():
        _library(name)  # said before the minute that tracing takes
    module = (Whole if whole else Chosen)(encoder).eval()
    inputs = example(encoder, *EXAMPLE, whole)
    batch, points = torch.export.Dim("batch"), torch.export.Dim("points", min=encoder.group_sizes[0])
    sizes = ({0: batch, 1: points}, *({0: batch} for _ in inputs[1:]))
    shapes = sizes if whole else (sizes[0], sizes[1:])
    with torch.no_grad():
        program = torch.export.export(
            module, inputs, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
        )
        if path.suffix == EXPORTED:
            difference = compare(encoder, lambda *given: program.module()(*given), whole)
            with atomic_write(path) as file:
                torch.export.save(program, file)
            return difference
        data = _onnx(program, *names(encoder, whole), about or {})
        difference = compare(encoder, onnx_session(data, names(encoder, whole)[0]), whole)
    with atomic_write(path) as file:
        file.write(data)
    return difference


def _onnx(program: Any, inputs: list[str], outputs: list[str], about: dict[str, Any]) -> bytes:
    """An exported program as the bytes of an ONNX file."""
    program = program.run_decompositions({torch.ops.aten.cdist.default: _cdist})
    model = torch.onnx.export(program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False).model_proto
    for key, value in about.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    return model.SerializeToString()


def _cdist(a: Tensor, b: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """Euclidean distances between (B, M, 3) and (B, N, 3) points, for which ONNX has no operator."""
    assert p == 2
    return _squared(a.unsqueeze(2), b.unsqueeze(1)).sqrt()


def onnx_session(data: bytes, inputs: list[str], threads: int = 0) -> Any:
    """A function that runs the bytes of an ONNX file on the CPU: tensors in, tensors out; 0 threads = all cores."""
    runtime = _library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> list[Tensor]:
        arrays = dict(zip(inputs, (tensor.numpy() for tensor in tensors), strict=True))
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run


def compare(encoder: Encoder, run: Any, whole: bool) -> float:
    """The largest difference between a program and the encoder; ValueError if it is more than `TOLERANCE`."""
    worst = 0.0
    for clouds, points in ((1, 100), (3, 500)):
        inputs = example(encoder, clouds, points, whole)
        expected = encoder(inputs[0])
        for ours, theirs in zip([expected.feature, *expected.tokens], run(*inputs), strict=True):
            worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max()))
    if not worst <= TOLERANCE:
        raise ValueError(
            f"the program differs from the encoder by {worst:.1e} of the largest value; nothing is written"
        )
    return worst


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} is not installed, which ONNX files need; run `{INSTALL}`") from error
