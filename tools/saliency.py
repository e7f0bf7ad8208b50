# PYTHON_ARGCOMPLETE_OK
"""`python -m tools.saliency`: what the 2D teacher of a config looks at, beside the same teacher untrained.

A PNG with a row for each shape: its three depth images, the saliency over them and on the cloud, of the teacher with
random weights and with those of the config. The shapes are generated, of a collection that no data set is written from,
or files of your own.
"""

from argparse import Namespace
from pathlib import Path

from utils.command import MAX_SEED, Parser, integer_from, run_command
from utils.config import PRE_TRAIN, load_config
from utils.files import make_folder
from utils.logger import setup_logger

# What imports PyTorch or Matplotlib, which takes seconds, is imported where it is used.

CLASSES = ["airplane", "bed", "car", "chair", "guitar", "lamp", "mug", "table"]
COLLECTION = "saliency"  # of generated shapes


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the command line's arguments."""
    parser = Parser(
        prog="python -m tools.saliency",
        description=__doc__.partition(": ")[2].split("\n\n")[0],
        examples=[
            "python -m tools.saliency --config cfgs/demo/pre-train.yaml -o saliency.png",
            "python -m tools.saliency --config cfgs/pre-training/i2p-mae.yaml -o saliency.png my_shapes",
        ],
    )
    parser.add_argument(
        "inputs", nargs="*", type=Path, metavar="INPUT", help="clouds, meshes or folders of them; else generated shapes"
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="of a pre-training with a teacher")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .png to write")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", default=CLASSES, help=f"of generated shapes ({' '.join(CLASSES)})"
    )
    parser.add_argument("--shapes", type=integer_from(1), default=8, metavar="N", help="of INPUT to show (%(default)s)")
    parser.add_argument(
        "--points", type=integer_from(1), default=1024, metavar="N", help="of a shape to project (%(default)s)"
    )
    parser.add_argument("--up", choices=["y", "z"], default="y", help="axis of INPUT that points up (%(default)s)")
    parser.add_argument("--seed", type=integer_from(0, MAX_SEED), default=0, help="of the shapes (%(default)s)")
    args = parser.parse_args(argv)
    if args.output.suffix != ".png":
        parser.error(f"--output is {args.output}; its name must end in .png")
    return args


def main(argv: list[str] | None = None) -> int:
    """Write the picture and print where it is."""
    args = parse_args(argv)
    settings = load_config(args.config, PRE_TRAIN).get("model", {}).get("clip_config") or {}
    if settings.get("visual_encoder") is None:
        raise ValueError(
            f"{args.config} has no 2D teacher (model.clip_config.visual_encoder); give a config of I2P-MAE"
        )

    import torch

    from datasets.synthetic import sample_shape
    from datasets.synthetic.sampling import check_classes
    from models.teacher import build_teacher
    from tools.evaluation.clouds import of_files
    from tools.evaluation.explain import teacher_look
    from tools.evaluation.figures import draw_saliency
    from utils.device import choose_device

    setup_logger(None)
    if args.inputs:
        clouds = of_files(args.inputs, args.shapes, args.points, args.up, args.seed)
        points, names = clouds.points, clouds.names
    else:
        check_classes(args.classes)
        shapes = [sample_shape(name, 0, args.points, args.seed, COLLECTION) for name in args.classes]
        points, names = torch.stack([torch.from_numpy(shape.points) for shape in shapes]), args.classes
    device = choose_device()
    weights = {"untrained": "untrained", "trained": settings.get("pretrained")}
    looks = {
        name: teacher_look(build_teacher(**{**settings, "pretrained": source}).to(device), points.to(device))
        for name, source in weights.items()
    }
    make_folder(args.output.parent)
    draw_saliency(looks, points, names, args.output)
    print(f"picture  {args.output}   (depth images; saliency of the untrained and of the trained teacher)")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
