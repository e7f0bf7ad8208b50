"""One step of pre-training: ours and the literal formulation, cut into stages, and a floor under both."""

import contextlib
import functools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from benchmarks.released import released, scale_and_translate_by_cloud
from datasets import build_dataset
from datasets.transforms import scale_and_translate
from models import build_model
from models.i2p_mae import I2P_MAE, TeacherViews
from models.point_mae import Point_MAE
from models.projection import project
from tools.training.builder import build_optimizer
from tools.training.precision import DTYPES, Precision
from utils.config import load_config

CLOUD_POINTS = 8192  # in each file, as in ShapeNet-55
STAGES = (
    *("data", "group", "project", "teacher", "look-up", "mask", "encode", "decode", "loss 3d", "loss 2d"),
    *("backward", "optimizer", "other"),
)
Stage = Callable[[str], contextlib.AbstractContextManager[None]]
Product = tuple[int, int, int, int]  # (batch, m, k, n): batch products of (m, k) and (k, n)


@dataclass(frozen=True)
class Size:
    """One size of the work, as plain values that another process takes.

    Args:
        config: the pre-training config; a teacher is left untrained, which costs the same.
        data: folder with ShapeNet's layout.
        device: its name.
        batch: clouds.
        points: points of each.
    """

    config: Path
    data: Path
    device: str
    batch: int
    points: int


class Training:
    """A formulation in training.

    Args:
        size: of the work.
        formulation: ours or released.
        amp: as in `Precision`.
    """

    def __init__(self, size: Size, formulation: str, amp: str = "none"):
        config = load_config(size.config)
        self.device = torch.device(size.device)
        self.precision = Precision(amp, self.device)
        self.model = build_pretraining_model(config).to(self.device)
        self.augment: Callable[[Tensor], Tensor] = functools.partial(scale_and_translate, generator=None)
        if formulation == "released":
            self.model = released(self.model)
            self.augment = functools.partial(scale_and_translate_by_cloud, rng=np.random.default_rng(0))
        self.optimizer = build_optimizer(self.model, config["optimizer"])
        self.batches = batches(size)

    def step(self, stage: Stage = lambda name: contextlib.nullcontext()) -> None:
        """Load a batch, and update the model once; `stage` surrounds what is no method of the model."""
        with stage("data"):
            points = self.augment(next(self.batches).to(self.device, non_blocking=True))
        with self.precision.autocast():
            loss = self.model(points)["loss"]
        with stage("backward"):
            self.precision.backward(loss)
        with stage("optimizer"):
            self.precision.update(self.optimizer)
            self.optimizer.zero_grad(set_to_none=True)

    def stage_seconds(self) -> dict[str, float]:
        """Seconds of each stage of one step; on a GPU each waits for the one before, so their sum exceeds a step."""
        clock = StageClock(torch.cuda.synchronize if self.device.type == "cuda" else lambda: None)
        with timed_methods(self.model, clock), clock.stage("other"):
            self.step(clock.stage)
        return clock.seconds


def build_pretraining_model(config: dict[str, Any]) -> I2P_MAE | Point_MAE:
    """The model of a config in training mode, the same weights each time; its teacher, if it has one, is untrained."""
    torch.manual_seed(0)
    settings = dict(config["model"])
    if "clip_config" in settings:
        settings["clip_config"] = {**settings["clip_config"], "pretrained": "untrained"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the 2D teacher is untrained")
        model = build_model(settings)
    assert isinstance(model, I2P_MAE | Point_MAE)
    return model


def batches(size: Size) -> Iterator[Tensor]:
    """Batches (B, N, 3) without end, read by this process."""
    dataset = build_dataset(
        {
            "NAME": "ShapeNet",
            "DATA_PATH": str(size.data / "ShapeNet-55"),
            "PC_PATH": str(size.data / "shapenet_pc"),
            "N_POINTS": CLOUD_POINTS,
            "others": {"subset": "train", "npoints": size.points},
        }
    )
    loader = DataLoader(dataset, size.batch, shuffle=True, drop_last=True, pin_memory=size.device == "cuda")
    while True:
        for points, _ in loader:
            yield points


class StageClock:
    """Seconds by stage; while a stage runs inside another, the outer one's time stands still.

    Args:
        synchronize: waits until the device is done.
    """

    def __init__(self, synchronize: Callable[[], None]):
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._synchronize = synchronize
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block under `name`."""
        self._lap()
        self._open.append(name)
        try:
            yield
        finally:
            self._lap()
            self._open.pop()

    def _lap(self) -> None:
        self._synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextlib.contextmanager
def timed_methods(model: I2P_MAE | Point_MAE, clock: StageClock) -> Iterator[None]:
    """Surround the methods of a model by the stages they stand for."""
    methods: list[tuple[Any, str, str]] = [
        (model, "group", "group"),
        (model, "decode", "decode"),
        (model, "loss_3d", "loss 3d"),
    ]
    if isinstance(model, Point_MAE):
        methods += [(model, "split", "mask"), (model.MAE_encoder, "encode_group", "encode")]
    else:
        methods += [
            (model, "look", "project"),
            (model.teacher, "forward", "teacher"),
            (TeacherViews, "saliency_at", "look-up"),
            (TeacherViews, "features_at", "look-up"),
            (model, "mask", "mask"),
            (model.h_encoder, "embed_points", "encode"),
            (model.h_encoder, "forward", "encode"),
            (model, "loss_2d", "loss 2d"),
        ]
    with contextlib.ExitStack() as stack:
        for owner, method, name in methods:
            timed = clock.stage(name)(getattr(owner, method))
            stack.enter_context(mock.patch.object(owner, method, timed))
        yield


class Floor:
    """The arithmetic of the networks without all else: the teacher's forward pass, and the student's products.

    Args:
        size: of the work.
        precisions: those of `Precision` in which the products are taken.
    """

    def __init__(self, size: Size, precisions: Iterable[str]):
        model = build_pretraining_model(load_config(size.config)).to(size.device)
        points = scale_and_translate(next(batches(size)).to(size.device), None)
        self.has_teacher = isinstance(model, I2P_MAE)
        if self.has_teacher:
            self._teacher = model.teacher
            self._images, _ = project(points, model.teacher.image_size)
        products = products_of(model, points)
        self.gflop = 3 * sum(2 * math.prod(product) for product in products) / 1e9
        self._replays = {amp: Replay(products, size.device, DTYPES.get(amp, torch.float32)) for amp in precisions}

    @torch.no_grad()
    def teacher(self) -> None:
        """Pass the images of a batch through the teacher; there must be one."""
        self._teacher(self._images)

    def products(self, amp: str) -> None:
        """Take the products of a step's student, forward and backward."""
        self._replays[amp].run()


class Replay:
    """Plain matrix products: those of a forward pass, and for each the two of equal size that its gradients take.

    Args:
        products: of the forward pass.
        device, dtype: of the matrices.
    """

    def __init__(self, products: list[Product], device: str, dtype: torch.dtype):
        @functools.cache
        def matrices(batch: int, m: int, k: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
            shapes = ((batch, m, k), (batch, k, n), (batch, m, n))
            left, right, out = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
            return (left[0], right[0], out[0]) if batch == 1 else (left, right, out)

        self._forward = [matrices(*product) for product in products]

    def run(self) -> None:
        """Take all products."""
        for left, right, out in self._forward:
            torch.matmul(left, right, out=out)
        for left, right, out in reversed(self._forward):
            torch.matmul(out, right.mT)
            torch.matmul(left.mT, out)


class _ProductRecorder(TorchDispatchMode):
    """Notes the shapes of each matrix product that has a given tensor, or a view of one, as an operand."""

    def __init__(self, weights: Iterable[Tensor]):
        super().__init__()
        self.products: list[Product] = []
        self._weights = {weight.untyped_storage().data_ptr() for weight in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        if operation in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm):
            self._note(*args[-2:])
        elif operation is torch.ops.aten.convolution:
            x, weight = args[:2]  # (B, C, M), (D, C, 1)
            self._note(weight.flatten(1).expand(len(x), -1, -1), x)
        return result

    def _note(self, left: Tensor, right: Tensor) -> None:
        if {tensor.untyped_storage().data_ptr() for tensor in (left, right)} & self._weights:
            batch = left.shape[0] if left.ndim == 3 else 1
            self.products.append((batch, *left.shape[-2:], right.shape[-1]))


def products_of(model: nn.Module, points: Tensor) -> list[Product]:
    """The products with weights of the model in its forward pass of (B, N, 3) points; the frozen teacher has none."""
    with torch.no_grad(), _ProductRecorder(model.parameters()) as recorder:
        model(points)
    return recorder.products
