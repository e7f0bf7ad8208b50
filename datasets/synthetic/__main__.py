# PYTHON_ARGCOMPLETE_OK
"""Command line: write generated shapes in the published layouts."""

import argparse
import logging
from pathlib import Path

from utils.command import Parser, run_command

from .catalogue import CATALOGUE, SCAN_CLASSES
from .layouts import (
    FOLDS,
    write_fewshot,
    write_meshes,
    write_modelnet,
    write_modelnet_svm,
    write_s3dis,
    write_scanobjectnn,
    write_shapenet,
    write_shapenetpart,
)

LAYOUTS = ("shapenet", "modelnet_svm", "modelnet", "scanobjectnn", "fewshot", "shapenetpart", "s3dis", "meshes")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = Parser(
        prog="python -m datasets.synthetic",
        description="Write generated shapes in the published layouts of the data sets, for tests and demos. "
        "A folder that holds anything else is never touched; one that is up to date is left as it is.",
        examples=[
            "python -m datasets.synthetic --root data",
            "python -m datasets.synthetic --root data/synthetic --layouts fewshot --folds 2",
        ],
    )
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all shapes (%(default)s)")
    parser.add_argument(
        "--layouts",
        nargs="+",
        choices=LAYOUTS,
        default=[layout for layout in LAYOUTS if layout != "meshes"],
        metavar="LAYOUT",
        help=f"data sets to write, of {', '.join(LAYOUTS)} (all but meshes, which stand in for data of your own)",
    )
    parser.add_argument(
        "--train",
        type=int,
        default=20,
        help="training shapes per class, or rooms; not of shapenet and fewshot (%(default)s)",
    )
    parser.add_argument("--test", type=int, default=10, help="test shapes per class, or rooms (%(default)s)")
    parser.add_argument("--shapenet", type=int, default=100, help="training shapes per class of shapenet (%(default)s)")
    parser.add_argument("--folds", type=int, default=FOLDS, help="folds of each fewshot setting (%(default)s)")
    parser.add_argument(
        "--points",
        type=int,
        help="points per shape (8192 for shapenet and modelnet, 40000 a room of s3dis, 2048 for the others)",
    )
    parser.add_argument("--text", action="store_true", help="modelnet as text files instead of .dat files")
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(CATALOGUE)}; scanobjectnn takes the first {len(SCAN_CLASSES)} of those given (by default "
        f"{', '.join(SCAN_CLASSES)}), shapenetpart those that it has (all)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write the layouts that the command line asks for."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    common = {"root": args.root, "seed": args.seed, "test": args.test}
    sizes = {} if args.points is None else {"num_points": args.points}
    labelled = common | sizes | {"classes": args.classes, "train": args.train}
    scanned = args.classes and args.classes[: len(SCAN_CLASSES)]
    writers = {
        "shapenet": lambda: write_shapenet(**labelled | {"train": args.shapenet}),
        "modelnet_svm": lambda: write_modelnet_svm(**labelled),
        "modelnet": lambda: write_modelnet(**labelled, text=args.text),
        "scanobjectnn": lambda: write_scanobjectnn(**labelled | {"classes": scanned}),
        "fewshot": lambda: write_fewshot(**common, **sizes, classes=args.classes, folds=args.folds),
        "shapenetpart": lambda: write_shapenetpart(**labelled),
        "s3dis": lambda: write_s3dis(**common, **sizes, train=args.train),
        "meshes": lambda: write_meshes(**common, classes=args.classes, train=args.train),
    }
    for layout in LAYOUTS:
        if layout in args.layouts:
            writers[layout]()


if __name__ == "__main__":
    raise SystemExit(run_command(main))
