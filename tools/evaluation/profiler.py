"""Parameters and multiply-adds of a model, stage by stage, for one cloud."""

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from models import build_model
from models.dgcnn import DGCNN, NEIGHBOURS, GraphPropagation
from models.frozen import UNTRAINED
from models.masking import draw_mask
from models.point_bert import Point_BERT
from models.segmenter import CloudAwareSegmenter, Segmenter
from models.tokenizer import TokenEmbed
from models.visual_transformer import filled_later
from utils.tables import format_table

logger = logging.getLogger(__name__)

CODEBOOK = "codebook"
STAGES = {  # stage → names of the modules and parameters that belong to it; the group is its level
    "token embedding {}": r"h_encoder\.token_embed\.(\d+)",
    "encoder blocks {}": r"h_encoder\.encoder_(?:blocks|pos_embeds|norms)\.(\d+)",
    "token embedding": r"(?:(?:MAE|ACT)_encoder\.|transformer_q\.)?(?:encoder|reduce_dim)",
    "encoder blocks": (
        r"(?:(?:MAE|ACT)_encoder\.|transformer_q\.)?(?:pos_embed|blocks|cls_token|cls_pos)"
        r"|(?:MAE|ACT)_encoder\.norm|transformer_q\.(?:norm|mask_token)"
    ),
    "decoder": (
        r"h_decoder\.\d+|decoder_pos_embeds\.\d+|decoder_norm|token_prop\.\d+|mask_token"
        r"|(?:MAE|ACT)_decoder(?:\.norm)?|decoder_pos_embed|decoder"
    ),
    "graph network {}": r"dgcnn_(\d+)",
    CODEBOOK: r"codebook",
    "image transformer": r"visual_embed\.(?:0\.\d+|1)|(?:visual|deep)_(?:prompt|pos)_\w+|proj_p\w+",
    "propagation {}": r"(?:propagations?[._]|dgcnn_pro_)(\d+)(?:_cls)?",
    "head": (
        r"rec_head\w*|increase_dim|norm|cls_head_finetune|label_conv(?:_cls)?|convs?\d+(?:_cls)?|bns?\d+(?:_cls)?"
        r"|transformer_q\.(?:lm_head|cls_head)|proj_head|ACT_encoder\.(?:lm|cls)_head"
    ),
    "momentum encoder": r"transformer_k\.\w+",
    "tokenizer (frozen)": r"dvae\.\w+",
}
TEACHER = "teacher (frozen)"
PARTS_OF_TEACHER = r"dvae_tokenizer\.(?:visual_embed\.\d+(?:\.\d+)?|\w+)"  # of ACT's, which is a part of its model
OWN_LAYERS, OWN_PRODUCTS = "head", "back-projection"  # of what a model's forward multiplies itself
LEFT_FACTOR = {  # matrix product → which argument is its left factor
    torch.ops.aten.mm: 0,
    torch.ops.aten.addmm: 1,
    torch.ops.aten.bmm: 0,
    torch.ops.aten.baddbmm: 1,
}
BATCHED = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)
NOTE = """\
MACs: multiply-adds of linear and convolution layers as the method writes them.
run here: those of them that are computed; what all members of a group or all points of a cloud share is computed once.
products: QKᵀ and AV of the attention, and reading the teacher's features at the points."""


@dataclass(frozen=True)
class StageCost:
    """What one stage costs for one cloud.

    Attributes:
        name: the stage; its number is the level, 0 = finest.
        parameters: how many it has.
        macs: multiply-adds of its layers, as usually counted.
        run_macs: those of them that are computed here.
        products: multiply-adds of products of activations.
    """

    name: str
    parameters: int
    macs: int
    run_macs: int
    products: int


def count(config: dict[str, Any], source: str, seed: int) -> dict[str, Any]:
    """Count the cost of one cloud through the model of a config.

    A pre-training model runs forward once under a drawn mask; if the config only takes features from it, `encode` runs.

    Args:
        config: any resolved config with a model.
        source: the file it came from, for messages.
        seed: of the cloud and the mask.

    Returns:
        The number of points, what ran, `stages` and their `total` without the teacher; `trainable`: how many of the
        model's parameters learn.

    Raises:
        ValueError: if the config does not say how many points a cloud has.
    """
    num_points = cloud_size(config, source)
    model = build_untrained(config["model"])
    generator = torch.Generator().manual_seed(seed)
    points = F.normalize(torch.randn(1, num_points, 3, generator=generator), dim=-1)  # clouds are surfaces: a sphere
    if not hasattr(model, "encode"):  # no pre-training model
        of_category = isinstance(model, Segmenter) and model.num_categories > 0
        inputs = (points, torch.zeros(1, dtype=torch.long)) if of_category else (points,)
        stages, what = profile(model, *inputs), "forward"
    elif "train" in config["dataset"] and hasattr(model, "num_visible"):
        mask = draw_mask(torch.zeros(1, model.num_groups[-1]), model.num_visible, generator)
        level = "coarse " if len(model.num_groups) > 1 else ""
        stages, what = profile(model, points, mask), f"forward, {model.num_visible} {level}tokens visible"
    elif "train" in config["dataset"] and isinstance(model, Point_BERT):
        stages, what = profile(model, points, forward=partial(model, generator=generator)), "forward, all three passes"
    else:
        stages, what = profile(model, points, forward=model.encode), "encode"
    total = sum_up([stage for stage in stages if stage.name != TEACHER])
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    counted = {"points": num_points, "pass": what, "stages": [asdict(stage) for stage in stages]}
    return {**counted, "total": asdict(total), "trainable": trainable}


def cloud_size(config: dict[str, Any], source: str) -> int:
    """Return the points of a cloud as the model sees it: `npoints`, or what the first data set hands out."""
    entries = [entry.get("others") or {} for entry in config["dataset"].values()]
    sizes = [others[key] for others in entries for key in ("npoints", "num_points") if key in others]
    if "npoints" not in config and not sizes:
        raise ValueError(f"{source} does not say how many points a cloud has; add npoints")
    return config.get("npoints") or sizes[0]


def build_untrained(config: dict[str, Any]) -> nn.Module:
    """Build a model whose teacher or tokenizer, if it has one, has random weights: what they are changes no count."""
    teacher = config.get("clip_config") or {}
    if teacher.get("visual_encoder") is not None:
        logger.info("the teacher is profiled with random weights: nothing is downloaded")
        config = {**config, "clip_config": {**teacher, "pretrained": "untrained"}}
    if "visual_embed_pretrained" in config:
        config = {**config, "visual_embed_pretrained": UNTRAINED}
    if "dvae_config" in config:
        logger.info("the tokenizer or autoencoder is profiled with random weights: no file is needed")
        config = {**config, "dvae_config": {**config["dvae_config"], "ckpt": UNTRAINED}}
    with warnings.catch_warnings(), filled_later(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "the 2D teacher is untrained")
        return build_model(config)


def profile(model: nn.Module, *inputs: Tensor, forward: Callable[..., object] | None = None) -> list[StageCost]:
    """Count parameters and multiply-adds stage by stage.

    Args:
        model: any model of `models.MODELS`, on the CPU; its mode changes to evaluation.
        *inputs: points (1, N, 3), then what else the model takes.
        forward: the method of the model to run; None for its forward.

    Returns:
        One entry per stage, in the order of `STAGES`; then, if there are such, the back-projection and the teacher.
    """
    model.eval()
    parameters: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        stage = stage_of(name)
        assert stage is not None, f"{name} belongs to no stage"
        parameters[stage] += parameter.numel()
    counter = _MultiplyAdds(CODEBOOK if CODEBOOK in parameters else OWN_LAYERS)
    units = [(module, stage) for name, module in model.named_modules() if (stage := stage_of(name, whole=True))]
    if (teacher := getattr(model, "teacher", None)) is not None:
        parameters[TEACHER] = sum(parameter.numel() for parameter in teacher.parameters())
        units.append((teacher, TEACHER))
    with warnings.catch_warnings(), torch.no_grad(), _matrix_products_only(), counter.watching(model, units), counter:
        warnings.filterwarnings("ignore", ".*is untrained")  # which changes no count
        (forward or model)(*inputs)
    order = [*STAGES, OWN_PRODUCTS, TEACHER]
    names = sorted({**parameters, **counter.products}, key=lambda name: order.index(re.sub(r"\d+", "{}", name)))
    return [
        StageCost(name, parameters[name], counter.macs[name], counter.run_macs[name], counter.products[name])
        for name in names
    ]


def stage_of(name: str, whole: bool = False) -> str | None:
    """Return the stage that a module or parameter belongs to, or, with `whole`, that a module is a unit of."""
    end = r"$" if whole else r"(?:\.|$)"
    for stage, pattern in [*STAGES.items(), (TEACHER, PARTS_OF_TEACHER)]:
        if match := re.match(f"(?:{pattern}){end}", name):
            return stage.format(*match.groups())
    return None


class _MultiplyAdds(TorchDispatchMode):
    """Counts the multiply-adds of all matrix products and convolutions, under the stage that runs.

    Args:
        own: the stage of what the model's forward multiplies itself.
    """

    def __init__(self, own: str) -> None:
        super().__init__()
        self.own = self.stage = own
        self.macs: Counter[str] = Counter()
        self.run_macs: Counter[str] = Counter()
        self.products: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is torch.ops.aten.convolution:
            self._add_layer(out.numel() * args[1][0].numel())
        elif packet in LEFT_FACTOR:
            left = LEFT_FACTOR[packet]
            macs = out.numel() * args[left].shape[-1]
            one_weight = packet not in BATCHED or args[left + 1].stride(0) == 0  # one right factor for the whole batch
            self._add_layer(macs) if one_weight else self._add_product(macs)
        return out

    def _add_layer(self, macs: int) -> None:
        self.macs[self.stage] += macs
        self.run_macs[self.stage] += macs

    def _add_product(self, macs: int) -> None:
        self.products[OWN_PRODUCTS if self.stage == self.own else self.stage] += macs

    @contextmanager
    def watching(self, model: nn.Module, units: list[tuple[nn.Module, str]]) -> Iterator[None]:
        """Follow which of the units, (module, stage), runs; between them it is the model itself."""

        def enter(module: nn.Module, inputs: tuple[Tensor, ...], stage: str) -> None:
            self.stage = stage
            self.macs[stage] += shared_macs(module, inputs)

        def leave(*_: object) -> None:
            self.stage = self.own

        handles = []
        for module, stage in [(model, self.own), *units]:
            handles.append(
                module.register_forward_pre_hook(lambda module, inputs, stage=stage: enter(module, inputs, stage))
            )
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def shared_macs(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-adds that a literal forward does and this code does not: those of an input that repeats.

    The pooled half of a token embedding's concatenation is the same for all members of a group, the global and the
    category features of the part segmenter for all points of a cloud, either half of an edge for all edges of a token.
    """
    if isinstance(module, TokenEmbed):
        batch, groups, members, _ = inputs[0].shape
        return batch * groups * (members - 1) * module.second_conv[0].weight.numel() // 2
    if isinstance(module, DGCNN):
        batch, groups, _ = inputs[0].shape
        weights = [layer[0].weight.numel() for layer in module.edge_layers]
        return batch * groups * (NEIGHBOURS - 1) * sum(weights)
    if isinstance(module, GraphPropagation):
        _, features, _, own = inputs
        batch, sources, _ = features.shape
        queries, (first, second) = own.shape[1], (layer[0].weight.numel() for layer in (module.layer1, module.layer2))
        run = (sources + queries) * first // 2 + queries * second
        return batch * (queries * NEIGHBOURS * (first + second) - run)
    if isinstance(module, CloudAwareSegmenter):
        batch, points, _ = inputs[0].shape
        weight = module.convs1.weight
        return batch * (points - 1) * (weight.numel() - weight.shape[0] * module.local_dim)
    return 0


@contextmanager
def _matrix_products_only() -> Iterator[None]:
    """Let attention run as the matrix products that it is made of, so that they are seen."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def sum_up(stages: list[StageCost]) -> StageCost:
    """Add up stages."""
    columns = ("parameters", "macs", "run_macs", "products")
    return StageCost("total", *(sum(getattr(stage, column) for stage in stages) for column in columns))


def table(counted: dict[str, Any]) -> str:
    """Lay out what `count` returned, in millions of multiply-adds; the teacher stands below the total.

    Where some parameters are frozen, a line below says how many learn.
    """
    stages = [StageCost(**stage) for stage in counted["stages"]]
    student, teacher = ([stage for stage in stages if (stage.name == TEACHER) == last] for last in (False, True))
    rows = [
        [stage.name, stage.parameters, stage.macs / 1e6, stage.run_macs / 1e6, stage.products / 1e6]
        for stage in [*student, StageCost(**counted["total"]), *teacher]
    ]
    title = f"{counted['points']} points, {counted['pass']}"
    laid_out = format_table(rows, [title, "parameters", "M MACs", "run here, M", "products, M"])
    learn, total = counted["trainable"], counted["total"]["parameters"]
    return laid_out if learn == total else f"{laid_out}\nof {total:,} parameters {learn:,} learn, the others are frozen"
