# PYTHON_ARGCOMPLETE_OK
"""`python -m tools.train_teacher`: a small CLIP, trained on depth images of generated shapes and their captions.

It is a 2D teacher of the size of the demo's that has learnt something: its image tower is what `pretrained:` of
`model.clip_config` takes. Images are the projections of pre-training; captions name the class, the proportions and the
parts, which the generator knows. It has seen names of classes, so what is pre-trained under it is not unsupervised.
"""

import argparse
import json
import logging
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.synthetic import CATALOGUE
from datasets.synthetic.sampling import check_classes
from utils.command import MAX_SEED, Parser, integer_from, run_command
from utils.files import atomic_write, make_folder
from utils.logger import setup_logger

if TYPE_CHECKING:  # what imports PyTorch, which takes seconds, is imported where it is used
    import open_clip

    from tools.training.small_clip import Shapes

logger = logging.getLogger(__name__)

EMBED_DIM, PATCH_SIZE, HEAD_WIDTH = 64, 8, 32
SHAPES_DRAWN = 6
PACKAGES = ("torch", "open_clip_torch", "numpy")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = Parser(
        prog="python -m tools.train_teacher",
        description=__doc__.partition(": ")[2].split("\n\n")[0],
        examples=[
            "python -m tools.train_teacher",
            "python -m tools.train_teacher --classes chair mug --shapes 20 --epochs 2 --output ckpts/quick.safetensors",
        ],
    )
    count = integer_from(1)
    parser.add_argument(
        "--output", type=Path, default=Path("ckpts/small-clip.safetensors"), help="file to write (%(default)s)"
    )
    parser.add_argument("--width", type=count, default=96, help="channels, a multiple of 32 (%(default)s)")
    parser.add_argument("--layers", type=count, default=3, help="blocks of the image tower (%(default)s)")
    parser.add_argument("--image_size", type=count, default=64, help="pixels, a multiple of 8 (%(default)s)")
    parser.add_argument("--epochs", type=count, default=20, help="times that each shape is shown (%(default)s)")
    parser.add_argument("--shapes", type=count, default=100, help="training shapes a class (%(default)s)")
    parser.add_argument("--test", type=count, default=20, help="unseen shapes a class (%(default)s)")
    parser.add_argument("--classes", nargs="+", metavar="NAME", default=list(CATALOGUE), help="of the shapes (all)")
    parser.add_argument("--seed", type=integer_from(0, MAX_SEED), default=0, help="of all draws (%(default)s)")
    args = parser.parse_args(argv)
    for flag, multiple in (("width", HEAD_WIDTH), ("image_size", PATCH_SIZE)):
        if getattr(args, flag) % multiple:
            parser.error(f"--{flag} is {getattr(args, flag)}, which is no multiple of {multiple}")
    if args.output.suffix != ".safetensors":
        parser.error(f"--output is {args.output}; its name must end in .safetensors")
    if args.output.exists():
        parser.error(f"--output is {args.output}, which exists: name another, or remove it")
    try:
        check_classes(args.classes)
    except ValueError as error:
        parser.error(f"--classes: {error}")
    if len(args.classes) < 2:
        parser.error("--classes needs two names at least")
    return args


def main(argv: list[str] | None = None) -> int:
    """Draw shapes, train, measure on unseen ones; write the weights and a picture of the saliency."""
    args = parse_args(argv)
    from tools.training import small_clip
    from utils.device import choose_device
    from utils.seed import seed_everything

    setup_logger(None)
    make_folder(args.output.parent)  # fails now rather than after the training
    began = time.perf_counter()
    device = choose_device()
    seed_everything(args.seed)
    train, test = (
        small_clip.draw_shapes(args.classes, count, args.seed, stream)
        for count, stream in ((args.shapes, small_clip.TRAIN), (args.test, small_clip.TEST))
    )
    sizes = tower_sizes(args)
    tokenize = small_clip.Tokenizer(args.classes)
    model = small_clip.build_clip(sizes, len(tokenize.tokens)).to(device)
    losses = small_clip.train(model, tokenize, train, args.epochs, args.seed, device)
    logger.info("loss of the first epoch %.3f, of the last %.3f", losses[0], losses[-1])
    accuracy = small_clip.zero_shot_accuracy(model, tokenize, test, device)
    about = {
        "command": shlex.join(["python", "-m", "tools.train_teacher", *(sys.argv[1:] if argv is None else argv)]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "seed": args.seed,
        "visual_encoder": sizes,
        "classes": args.classes,
        "tokens": tokenize.tokens.tolist(),
        "zero_shot_accuracy": accuracy,
    }
    save(model, about, args.output)
    picture = args.output.with_suffix(".png")
    draw(args.output, sizes, test, picture)
    settings = ", ".join(f"{key}: {value}" for key, value in sizes.items())
    print(f"zero-shot accuracy on {len(test.clouds)} unseen shapes of {len(args.classes)} classes: {accuracy:.1f} %")
    print(f"weights  {args.output}  ({args.output.stat().st_size / 2**20:.1f} MiB)")
    print(f"picture  {picture}   (depth image and saliency)")
    print(f"config   clip_config: {{visual_encoder: {{{settings}}}, pretrained: {args.output}}}")
    print(f"time     {(time.perf_counter() - began) / 60:.1f} minutes")
    return 0


def tower_sizes(args: argparse.Namespace) -> dict[str, int]:
    """Sizes of the image tower, as `model.clip_config.visual_encoder` takes them."""
    return {
        "embed_dim": EMBED_DIM,
        "image_size": args.image_size,
        "patch_size": PATCH_SIZE,
        "width": args.width,
        "layers": args.layers,
        "heads": args.width // HEAD_WIDTH,
    }


def save(model: "open_clip.CLIP", about: dict[str, Any], path: Path) -> None:
    """Write all weights, and beside them in the same file what they are; the file is whole or absent."""
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    with atomic_write(path) as file:
        file.write(save(tensors, metadata))


def draw(weights: Path, sizes: dict[str, int], shapes: "Shapes", path: Path) -> None:
    """Read the weights as pre-training does, and draw what the teacher looks at in some shapes."""
    import torch

    from models.teacher import build_teacher
    from tools.evaluation.explain import teacher_look
    from tools.evaluation.figures import draw_saliency

    teacher = build_teacher(sizes, pretrained=weights)
    chosen = torch.linspace(0, len(shapes.clouds) - 1, SHAPES_DRAWN).long()
    points, names = shapes.points(chosen), [shapes.names[label] for label in shapes.labels[chosen]]
    draw_saliency({"saliency": teacher_look(teacher, points)}, points, names, path)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
