# PYTHON_ARGCOMPLETE_OK
"""`python -m tools.search`: the shapes nearest to others, by the cosine of their features, as a table and a picture."""

import logging
from argparse import Namespace
from pathlib import Path

from utils.command import Parser, integer_from, run_command

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the command line's arguments."""
    parser = Parser(
        prog="python -m tools.search",
        description=__doc__.partition(": ")[2],
        examples=["python -m tools.search features.npz data/my_shapes/chair/1.ply -o found.png"],
    )
    parser.add_argument("features", type=Path, metavar="FEATURES", help="a file of `python -m tools.features`")
    parser.add_argument("queries", type=Path, nargs="+", metavar="QUERY", help="files, in FEATURES or not")
    parser.add_argument("--top", type=integer_from(1), default=5, metavar="N", help="shapes to find (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="picture to write, a .png")
    parser.add_argument(
        "--ckpts", type=Path, metavar="FILE", help="the checkpoint of FEATURES (default: where it was then)"
    )
    args = parser.parse_args(argv)
    if args.output is not None and args.output.suffix != ".png":
        parser.error(f"--output is {args.output}; its name must end in .png")
    return args


def main(argv: list[str] | None = None) -> int:
    """Search, print, draw."""
    args = parse_args(argv)
    from tools.evaluation.feature_files import read_features
    from tools.evaluation.retrieval import draw_found, features_of, nearest
    from utils.files import make_folder
    from utils.logger import setup_logger
    from utils.tables import format_table

    setup_logger(None)
    found = read_features(args.features)
    names = [str(path) for path in args.queries]
    queries = features_of(found, names, args.ckpts, args.features)
    order, cosines = nearest(found, names, queries, args.top)
    rows = [
        [name, rank, cosines[query, row], found.labels[row], found.paths[row]]
        for query, name in enumerate(names)
        for rank, row in enumerate(order[query], 1)
    ]
    table = [[name, rank, f"{cosine:.4f}", label, path] for name, rank, cosine, label, path in rows]
    print(format_table(table, ["query", "rank", "cosine", "class", "shape"]))
    if args.output is not None:
        make_folder(args.output.parent)
        draw_found(found, names, order, cosines, args.output)
        logger.info("picture in %s", args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
