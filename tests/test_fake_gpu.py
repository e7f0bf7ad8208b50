"""Every model on a GPU that is only pretended: tensors without values, which know where they would be."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import vision_transformer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from datasets.transforms import AUGMENTATIONS, normalize_unit_sphere, random_subset
from extensions.streams import beside
from models import Encoder, build_model, i2p_mae
from models.feature_encoder import carry
from models.masking import Packing
from models.released import without_weights
from tests.test_model_configs import SMALL_TEACHER, SMALL_VIT
from tools.runner_finetune import sample_farthest
from utils.config import load_config

ROOT = Path(__file__).parent.parent
GPU = torch.device("cuda", 0)
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("pre-training/i2p-mae", {}),
    ("pre-training/point-m2ae", {}),
    ("pre-training/point-m2ae", {"padding_leak": True}),
    ("fine-tuning/modelnet40", {}),
    ("fine-tuning/point-m2ae_scan_pb", {}),
    ("part-segmentation/i2p-mae", {}),
    ("point-mae/pre-train", {}),
    ("point-mae/scan_pb", {}),
    ("point-mae/part-segmentation", {}),
    ("act/autoencoder", {**SMALL_VIT, "visual_embed_dim": 8}),
    ("act/pre-train", {"dvae_config": {**SMALL_TEACHER, "encoder_dims": 384}}),
]


@pytest.fixture(autouse=True)
def _pretence():
    try:
        with FakeTensorMode():
            torch.empty(2, device=GPU)[:1]
    except RuntimeError as error:  # PyTorch 2.4 asks the driver
        pytest.skip(f"this PyTorch cannot pretend a GPU: {error}")


@pytest.fixture(autouse=True)
def _values_are_not_needed(monkeypatch):
    """Token counts and truncated draws depend on values, and a second stream needs a GPU."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    monkeypatch.setattr(nn.init, "trunc_normal_", nn.init.normal_)
    monkeypatch.setattr(vision_transformer, "calculate_drop_path_rates", lambda rate, depth: [rate] * depth)
    monkeypatch.setattr(Packing, "of_levels", lambda masks: [Packing(mask, mask.shape[1] // 2, True) for mask in masks])
    monkeypatch.setattr(i2p_mae, "beside", lambda points: beside(torch.empty(0, device="cpu")))


def loss_of(model: Any, points: Tensor) -> Tensor:
    if hasattr(model, "encode") or hasattr(model, "tokenize"):
        return model(points)["loss"]
    categories = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    if hasattr(model, "num_parts"):
        return model.loss(model(points, categories), categories[:, None].expand(points.shape[:2]))
    return model.loss(model(points), categories)


@pytest.mark.filterwarnings("ignore:.*is untrained")
@pytest.mark.parametrize("amp", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("config", "changes"), MODELS, ids=str)
def test_all_that_a_model_makes_is_where_its_points_are(config, changes, amp):
    settings = load_config(ROOT / "cfgs" / f"{config}.yaml").model
    settings.update(changes)
    if "clip_config" in settings:
        settings.clip_config.pretrained = "untrained"
    with FakeTensorMode():  # refuses an operation on tensors of two devices
        with GPU:
            model = build_model(settings)
        products = set()
        linear = next(module for module in model.modules() if isinstance(module, nn.Linear))
        linear.register_forward_hook(lambda module, inputs, output: products.add(output.dtype))
        with torch.autocast("cuda", amp, enabled=amp != torch.float32):
            loss = loss_of(model, torch.empty(2, 1024, 3, device=GPU))
    assert products == {amp}
    assert loss.device == GPU
    assert loss.dtype == torch.float32


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: partial(augment, generator=None) for name, augment in AUGMENTATIONS.items()},
    "normalize_unit_sphere": normalize_unit_sphere,
    "random_subset": partial(random_subset, num_points=8, generator=None),
    "sample_farthest": partial(sample_farthest, num_points=8),
}


@pytest.mark.parametrize(("config", "changes"), [model for model in MODELS if model[0] != "act/autoencoder"])
def test_an_encoder_works_where_its_weights_are(config, changes):
    settings = without_weights({**load_config(ROOT / f"cfgs/{config}.yaml").model, **changes})
    with FakeTensorMode():
        with GPU:
            encoder = Encoder(build_model(settings), settings, None)
            points = torch.empty(2, 1024, 3)
        out = encoder.encode_chosen(points, *encoder.choose(points))
        found = [out.feature, *out.tokens, *out.centers, *out.visible, carry(points, out)]
    assert {tensor.device for tensor in found} == {GPU}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_work_where_the_points_are(transform):
    with FakeTensorMode():
        assert transform(torch.empty(2, 16, 3, device=GPU)).device == GPU
