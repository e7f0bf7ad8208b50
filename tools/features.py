# PYTHON_ARGCOMPLETE_OK
"""`python -m tools.features`: features of files of point clouds and meshes, by the encoder of a checkpoint.

Files are read as `datasets.folder.Folder` reads test clouds. What is computed is kept beside the output every half
minute, so that the same command goes on after an interruption.
"""

import logging
from argparse import Namespace
from pathlib import Path

from utils.command import MAX_SEED, Parser, file_there, integer_from, run_command, weights_file

logger = logging.getLogger(__name__)

SHOWN = 10  # files that cannot be read


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the command line's arguments."""
    parser = Parser(
        prog="python -m tools.features",
        description=__doc__.partition(": ")[2].split("\n\n")[0],
        examples=["python -m tools.features --ckpts ckpts/pre-train.pth data/my_shapes -o features.npz"],
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="a file, a folder, or a .json list")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="to write, .npz or .parquet")
    parser.add_argument("--ckpts", type=weights_file, required=True, metavar="FILE", help="the checkpoint")
    parser.add_argument("--config", type=file_there, metavar="FILE", help="its config, where the file does not say it")
    count = integer_from(1)
    parser.add_argument("--npoints", type=count, default=1024, metavar="N", help="points of a cloud (%(default)s)")
    parser.add_argument("--up", choices=("y", "z"), default="y", help="which axis of the files points up (%(default)s)")
    parser.add_argument("--seed", type=integer_from(0, MAX_SEED), default=0, help="of what is drawn (%(default)s)")
    parser.add_argument("--batch_size", type=count, default=32, metavar="N", help="clouds at a time (%(default)s)")
    parser.add_argument(
        "--skip_bad", type=integer_from(0), default=0, metavar="N", help="files that may be unreadable (%(default)s)"
    )
    args = parser.parse_args(argv)
    if args.output.suffix not in (".npz", ".parquet"):
        parser.error(f"--output is {args.output}; its name must end in .npz or .parquet")
    if args.output.exists():
        parser.error(f"--output is {args.output}, which exists: name another, or remove it")
    return args


def main(argv: list[str] | None = None) -> int:
    """Encode every file, write the features."""
    args = parse_args(argv)
    import torch  # not at the top: it takes seconds

    from models import load_encoder
    from tools.evaluation.feature_files import PARQUET, Draw, Encoding, arrow, find_shapes, write_features
    from utils.device import choose_device
    from utils.files import make_folder, sha256_of
    from utils.logger import setup_logger

    setup_logger(None)
    shapes = find_shapes(args.inputs)
    if args.output.suffix == PARQUET:
        arrow()  # fails now rather than when all is encoded
    make_folder(args.output.parent)
    encoder = load_encoder(args.ckpts, args.config).to(choose_device())
    draw = Draw(args.npoints, args.up, args.seed)
    origin = {"checkpoint_sha256": sha256_of(args.ckpts), "model": encoder.config, "draw": vars(draw)}
    encoding = Encoding(args.output, origin)
    bad = encoding.run(encoder, shapes, draw, args.batch_size)
    if len(bad) > args.skip_bad or len(bad) == len(shapes):
        raise ValueError(
            f"{len(bad)} of {len(shapes)} files cannot be read: {'; '.join([*bad.values()][:SHOWN])}; mend them, or go "
            f"on without: --skip_bad {len(bad)}"
        )
    for reason in bad.values():
        logger.warning("left out: %s", reason)
    found = encoding.result(shapes, {"checkpoint": str(args.ckpts), "versions": {"torch": torch.__version__}})
    write_features(args.output, found)
    encoding.partial.unlink(missing_ok=True)
    print(f"{args.output}: {len(found.features)} features of {found.features.shape[1]} channels")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
