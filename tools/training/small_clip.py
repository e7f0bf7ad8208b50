"""Training a small CLIP on depth images of generated shapes and their captions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.synthetic import Cloud, sample_shape
from datasets.synthetic.captions import TEMPLATES, describe, vocabulary
from datasets.transforms import scale_and_translate
from models.projection import VIEWS, project
from utils.logger import progress

# Collections of shapes that no data set is written from, so that no evaluation sees them.
TRAIN, TEST = "teacher/train", "teacher/test"
BATCH_SIZE = 96  # of an evaluation
POINTS = 512  # as many as the demo pre-trains on
CONTEXT = 32  # tokens of a caption
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 64, 2, 2
LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 1e-3, 0.05, 0.1  # the last as a share of the training
MAX_LOGIT_SCALE = 100.0  # as in CLIP


class Shapes(NamedTuple):
    """Generated shapes, class after class.

    Attributes:
        names: the classes.
        clouds: n shapes, those of a class side by side.
        labels: (n,) int64, index into `names`.
    """

    names: list[str]
    clouds: list[Cloud]
    labels: Tensor

    def points(self, chosen: Tensor) -> Tensor:
        """(B, N, 3) coordinates of the shapes at these indices (B,)."""
        return torch.stack([torch.from_numpy(self.clouds[i].points) for i in chosen.tolist()])

    def captions(self, chosen: Tensor, rng: np.random.Generator) -> list[str]:
        """A caption of each of the shapes at these indices (B,)."""
        return [describe(self.names[self.labels[i]], self.clouds[i], rng) for i in chosen.tolist()]


def draw_shapes(names: Sequence[str], count: int, seed: int, stream: str) -> Shapes:
    """Draw `count` shapes of each class from a collection."""
    wanted = [(name, index) for name in names for index in range(count)]
    clouds = [
        sample_shape(name, index, POINTS, seed, stream) for name, index in progress(wanted, f"shapes of {stream}")
    ]
    return Shapes(list(names), clouds, torch.arange(len(names)).repeat_interleave(count))


class Tokenizer:
    """open_clip's tokenizer of CLIP, its tokens numbered anew: those alone that captions of these classes have.

    The order of tokens is kept, so that 0 stays the padding and the highest the end of a text, where CLIP reads it.

    Args:
        names: the classes.

    Attributes:
        tokens: (n,) int64, ascending; open_clip's number of each token.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._tokenize = open_clip.SimpleTokenizer(context_length=CONTEXT)
        self.tokens = self._tokenize(vocabulary(names)).unique()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Number the tokens of texts, (B, CONTEXT) int64."""
        return torch.searchsorted(self.tokens, self._tokenize(list(texts)))


def build_clip(sizes: dict[str, int], tokens: int) -> open_clip.CLIP:
    """Build a CLIP of open_clip with an image tower of these sizes and a small text tower for so many tokens."""
    vision = {key: sizes[key] for key in ("image_size", "patch_size", "width", "layers")}
    text = {"context_length": CONTEXT, "vocab_size": tokens, "width": TEXT_WIDTH, "layers": TEXT_LAYERS}
    return open_clip.CLIP(
        sizes["embed_dim"],
        {**vision, "head_width": sizes["width"] // sizes["heads"]},
        {**text, "heads": TEXT_HEADS},
        quick_gelu=True,
    )


def train(
    model: open_clip.CLIP,
    tokenize: Tokenizer,
    shapes: Shapes,
    epochs: int,
    seed: int,
    device: torch.device,
) -> list[float]:
    """Train a CLIP to tell which caption belongs to which image.

    An epoch shows each shape once, stretched and shifted as in pre-training, from one of the three sides, with a
    caption that is drawn anew. A batch has one shape of each class: two of one class, whose captions may be the same,
    would each be a wrong answer to the other.

    Args:
        model: on `device`, left in training mode.
        tokenize: numbers as many tokens as it has.
        shapes: what it learns from, as many of each class.
        epochs: at least 1.
        seed: of all draws.
        device: where it is trained.

    Returns:
        The mean loss of each epoch.
    """
    draw, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    loss_of = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    of_class = [(shapes.labels == label).nonzero().squeeze(1) for label in range(len(shapes.names))]
    total = epochs * len(of_class[0])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total, pct_start=WARM_UP)
    model.train()
    losses = []
    for _ in progress(range(epochs), "training"):
        seen = []
        for chosen in torch.stack([members[torch.randperm(len(members), generator=draw)] for members in of_class], 1):
            images = views_of(scale_and_translate(shapes.points(chosen), draw).to(device), model.visual.image_size[0])
            side = torch.randint(len(VIEWS), (len(chosen),), generator=draw).to(device)
            images = images[side, torch.arange(len(chosen), device=device)]
            texts = tokenize(shapes.captions(chosen, rng)).to(device)
            loss = loss_of(*model(images, texts))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=float(np.log(MAX_LOGIT_SCALE)))
            seen.append(loss.item())
        losses.append(float(np.mean(seen)))
    return losses


def views_of(points: Tensor, image_size: int) -> Tensor:
    """Depth images (V, B, 3, S, S) of (B, N, 3) points, the very ones of pre-training."""
    return project(points, image_size)[0].unflatten(0, (len(VIEWS), -1))


@torch.no_grad()
def zero_shot_accuracy(model: open_clip.CLIP, tokenize: Tokenizer, shapes: Shapes, device: torch.device) -> float:
    """Share of shapes, in percent, whose class is the one whose captions are nearest to the shape's three images.

    Args:
        model: on `device`; used in evaluation mode.
        tokenize: the one that it was trained with.
        shapes: which the model has not been trained on.
        device: where the model is.
    """
    was_training = model.training
    model.eval()
    classes: Any = open_clip.build_zero_shot_classifier(model, tokenize, shapes.names, TEMPLATES, device=device)
    right = 0
    for chosen in torch.arange(len(shapes.clouds)).split(BATCH_SIZE):
        images = views_of(shapes.points(chosen).to(device), model.visual.image_size[0])
        features = F.normalize(model.encode_image(images.flatten(0, 1)), dim=-1)
        scores = (features @ classes).unflatten(0, (len(VIEWS), -1)).mean(0)  # (B, classes)
        right += int((scores.argmax(1).cpu() == shapes.labels[chosen]).sum())
    model.train(was_training)
    return 100 * right / len(shapes.clouds)
