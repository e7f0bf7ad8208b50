# PYTHON_ARGCOMPLETE_OK
"""`python -m tools.visualize`: what a trained model makes of shapes, as pictures and as one page that can be turned.

Of a pre-training model the page shows true and predicted points, features and what its 2D teacher looks at; of a
classifier its confusions, a map of its features and the points that a decision hangs on; of a segmenter the parts. With
`--runs` it shows training curves too, or them alone.
"""

import logging
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.command import MAX_SEED, Parser, integer_from, run_command
from utils.config import FINE_TUNE, PRE_TRAIN, load_config
from utils.files import make_folder
from utils.logger import setup_logger
from utils.nearest import did_you_mean_path

if TYPE_CHECKING:  # what imports PyTorch, which takes seconds, is imported where it is used
    from torch import nn
    from torch.utils.data import Dataset

    from tools.evaluation.clouds import Clouds

logger = logging.getLogger(__name__)

PAGE = "index.html"
MAP_CLOUDS, MAP_POINTS = 300, 192  # of the map of features, and of the cloud that a mark shows
PERPLEXITY = 30  # of t-SNE, at most
Sections = list[dict[str, Any]]


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Read the command line and refuse what contradicts itself."""
    parser = Parser(
        prog="python -m tools.visualize",
        description=__doc__.partition(": ")[2].split("\n\n")[0],
        examples=[
            "python -m tools.visualize --config cfgs/demo/pre-train.yaml -o pictures "
            "--ckpts experiments/demo/pre-train/demo/ckpt-last.pth",
            "python -m tools.visualize --runs experiments/demo/pre-train/demo -o pictures",
        ],
    )
    parser.add_argument(
        "inputs", nargs="*", type=Path, metavar="INPUT", help="clouds, meshes or folders of them; else the test split"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="of the model")
    parser.add_argument("--ckpts", type=Path, metavar="FILE", help="its weights")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where to write")
    parser.add_argument(
        "--runs", nargs="+", type=Path, default=[], metavar="RUN", help="folders of runs whose curves are drawn"
    )
    parser.add_argument("--shapes", type=integer_from(1), default=6, metavar="N", help="to show (%(default)s)")
    parser.add_argument("--category", metavar="NAME", help="of INPUT, for a segmenter")
    parser.add_argument("--up", choices=["y", "z"], default="y", help="axis of INPUT that points up (%(default)s)")
    parser.add_argument(
        "--section",
        choices=[PRE_TRAIN, FINE_TUNE],
        default=PRE_TRAIN,
        help="of a config that has both, as those of your own data (%(default)s)",
    )
    parser.add_argument("--seed", type=integer_from(0, MAX_SEED), default=0, help="of all draws (%(default)s)")
    args = parser.parse_args(argv)
    if (args.config is None) != (args.ckpts is None):
        parser.error("--config and --ckpts go together: the weights and what they are of")
    if args.config is None and not args.runs:
        parser.error("give a model, --config FILE --ckpts FILE, or --runs RUN")
    if args.inputs and args.config is None:
        parser.error("INPUT is shown to a model: add --config FILE --ckpts FILE")
    return args


def main(argv: list[str] | None = None) -> int:
    """Write the page and the pictures, and print where they are."""
    args = parse_args(argv)
    from tools.evaluation import charts, sections
    from tools.evaluation.page import plotly_script, write_page

    setup_logger(None)
    plotly_script()  # fails now rather than after the work
    runs = {str(folder): history_of(folder) for folder in args.runs}
    make_folder(args.output)
    command = shlex.join(["python", "-m", "tools.visualize", *(sys.argv[1:] if argv is None else argv)])
    about, parts, title = [("command", command)], [], "Training runs"
    if args.config is not None:
        title, of_model, parts = pictures_of_model(args)
        about += of_model
    if runs:
        parts.append(sections.training(runs))
        charts.draw_curves(runs, args.output / "training.png")
    write_page(title, about, parts, args.output / PAGE)
    size = (args.output / PAGE).stat().st_size / 1e6
    print(f"page     {args.output / PAGE}  ({size:.1f} MB; opens without a network)")
    print(f"pictures {', '.join(str(path) for path in sorted(args.output.glob('*.png')))}")
    return 0


def pictures_of_model(args: Namespace) -> tuple[str, list[tuple[str, str]], Sections]:
    """Load the model, draw its PNGs.

    Returns:
        The title of the page, what it was made of, its sections.
    """
    from models import build_model
    from tools.evaluation.clouds import unseen_split
    from tools.training.builder import check_config, count_classes
    from utils.checkpoint import load_weights
    from utils.device import choose_device
    from utils.files import sha256_of
    from utils.seed import seed_everything

    config = load_config(args.config, args.section)
    count_classes(config)
    check_config(config, args.config, "a page of pictures", ("model",))
    seed_everything(args.seed)
    model = build_model(config["model"])
    draw = maker_for(model, config["model"]["NAME"])
    report = load_weights(model, args.ckpts, strict=True)
    logger.info("%s", report)
    model = model.to(choose_device()).eval()
    dataset = None if args.inputs else unseen_split(config, args.seed)
    clouds = clouds_to_show(config, args, model, dataset)
    about = [
        ("checkpoint", f"{args.ckpts}, SHA-256 {sha256_of(args.ckpts)[:16]}…; chosen by: {report.chosen_by}"),
        ("config", f"{args.config}, model {config['model']['NAME']}"),
        ("shapes", f"{len(clouds)} of {clouds.source}, {clouds.points.shape[1]} points each"),
        ("seed", str(args.seed)),
    ]
    return f"{config['model']['NAME']}, {args.ckpts.name}", about, draw(model, clouds, dataset, config, args)


def maker_for(model: "nn.Module", name: str) -> Callable[..., Sections]:
    """Choose what to draw by what the model is; ValueError if there is nothing to draw of it."""
    makers = {"reconstruct": of_pretraining, "num_classes": of_classifier, "num_parts": of_segmenter}
    for trait, maker in makers.items():
        if hasattr(model, trait):
            return maker
    raise ValueError(
        f"model.NAME is {name}, of which there are no pictures; choose a config of a pre-training model (I2P_MAE, "
        "Point_M2AE, Point_MAE), a classifier or a part segmenter"
    )


def clouds_to_show(config: dict[str, Any], args: Namespace, model: "nn.Module", dataset: "Dataset | None") -> "Clouds":
    """The shapes on the page, on the CPU: files, or some of the test split; as many points of each as the model sees.

    Args:
        config: resolved.
        args: command line.
        model: to be shown.
        dataset: the test split; None for files.

    Raises:
        FileNotFoundError: if they are not there.
        ValueError: if they cannot be read, or a segmenter is not told the category of files.
    """
    from dataclasses import replace

    import torch
    from torch.utils.data import DataLoader

    from datasets.published import CATEGORIES
    from tools.evaluation.classification import check_channels, sample_farthest
    from tools.evaluation.clouds import MOST_POINTS, of_dataset, of_files

    segments, classifies = hasattr(model, "num_parts"), hasattr(model, "num_classes")
    if args.category is not None and not (segments and args.inputs):
        raise ValueError("--category is that of INPUT, for a part segmenter; drop it")
    if segments and args.inputs and args.category not in CATEGORIES:
        raise ValueError(
            f"a part segmenter has to be told the category of INPUT, and --category is {args.category}; give one of "
            f"{', '.join(CATEGORIES)}"
        )
    if dataset is None:
        seen = MOST_POINTS if classifies else points_seen(config)
        clouds = of_files(args.inputs, args.shapes, seen, args.up, args.seed)
    else:
        check_channels(DataLoader(dataset))
        clouds = of_dataset(dataset, args.shapes)
    if segments and args.inputs:
        clouds = replace(clouds, labels=torch.full((len(clouds),), CATEGORIES.index(args.category)))
    if classifies:
        clouds = replace(clouds, points=sample_farthest(clouds.points, config["npoints"]))
    return clouds


def points_seen(config: dict[str, Any]) -> int:
    """Points of a cloud that a data set of the config hands out."""
    for entry in config["dataset"].values():
        others = entry.get("others") or {}
        if seen := others.get("npoints", others.get("num_points")):
            return seen
    raise ValueError("the config does not say how many points a model sees (others.npoints of a data set)")


def of_pretraining(
    model: "nn.Module", clouds: "Clouds", dataset: "Dataset | None", config: dict[str, Any], args: Namespace
) -> Sections:
    """Reconstruction, the 2D teacher and features."""
    from models.i2p_mae import I2P_MAE
    from tools.evaluation import explain, figures, sections

    points = clouds.points.to(next(model.parameters()).device)
    found, rebuilt, look = [], None, None
    if explain.reconstructs(model):
        rebuilt = explain.reconstructions(model, points, args.seed)
        figures.draw_reconstructed(clouds.points, rebuilt, args.output / "reconstructions.png")
        found.append(sections.reconstruction(clouds, rebuilt))
    else:
        logger.info("no reconstruction: with losses 2d the head that predicts points stays untrained")
    if isinstance(model, I2P_MAE):
        look, masked = explain.teacher_look(model.teacher, points), explain.mask_probability(model, points, args.seed)
        found.append(sections.guidance(clouds, look, masked))
        figures.draw_saliency({"saliency": look}, clouds.points, clouds.names, args.output / "saliency.png")
        values = {"probability to be masked": masked}
        figures.draw_values(clouds.points, values, clouds.names, args.output / "masking.png")
    colours, share = explain.component_colours(explain.point_features(model, points))
    figures.draw_values(clouds.points, {"features": colours}, clouds.names, args.output / "features.png")
    if rebuilt is not None:
        figures.draw_overview(clouds.points, rebuilt, look, colours, clouds.names, args.output / "overview.png")
    return [*found, sections.features(clouds, colours, share)]


def of_classifier(
    model: "nn.Module", clouds: "Clouds", dataset: "Dataset | None", config: dict[str, Any], args: Namespace
) -> Sections:
    """Decisions; without files of one's own also the confusions and the map of the test split."""
    from tools.evaluation import explain, figures, sections

    device = next(model.parameters()).device
    found = explain.decisions(model, clouds.points.to(device))
    names = class_names_of(config, args, model, dataset)
    figures.draw_values(clouds.points, {"saliency": found.saliency}, clouds.names, args.output / "decisions.png")
    decided = sections.decisions(clouds, found, names)
    return [decided] if dataset is None else [*of_test_split(model, dataset, names, config["npoints"], args), decided]


def class_names_of(config: dict[str, Any], args: Namespace, model: "nn.Module", dataset: "Dataset | None") -> list[str]:
    """Names of a classifier's classes; numbers for those that the data set, where it is on this disk, does not name."""
    from tools.evaluation.clouds import unseen_split

    numbers = [f"class {number}" for number in range(model.num_classes)]
    try:
        names = (dataset or unseen_split(config, args.seed)).class_names
    except FileNotFoundError as error:
        logger.warning("classes are shown by their numbers, since their names are not on this disk: %s", error)
        return numbers
    return [*names, *numbers[len(names) :]][: len(numbers)]


def of_test_split(model: "nn.Module", dataset: "Dataset", names: list[str], npoints: int, args: Namespace) -> Sections:
    """Confusion matrix and map of features of the whole test split."""
    import torch
    from torch.utils.data import DataLoader

    from datasets import name_of
    from tools.evaluation import charts, explain, sections
    from tools.evaluation.classification import check_labels, sample_farthest
    from tools.evaluation.clouds import first_of_each
    from tools.evaluation.inference import evaluate
    from tools.evaluation.metrics import mean_class_accuracy, overall_accuracy
    from tools.training.builder import EVALUATION_BATCH_SIZE

    device = next(model.parameters()).device
    loader = DataLoader(dataset, EVALUATION_BATCH_SIZE)
    check_labels(model, loader)
    outputs, labels = evaluate(
        explain.BeforeHead(model).to(device), loader, device, lambda points: sample_farthest(points, npoints)
    )
    features, logits = outputs[:, : -model.num_classes], outputs[:, -model.num_classes :]
    predicted = logits.argmax(1)
    counts = torch.bincount(labels * len(names) + predicted, minlength=len(names) ** 2).view(len(names), -1).numpy()
    accuracies = overall_accuracy(logits, labels), mean_class_accuracy(logits, labels)
    scores = "accuracy {:.1f} %, mean over the classes {:.1f} %".format(*accuracies)
    charts.draw_confusion(counts, names, args.output / "confusion.png")
    chosen = first_of_each(labels.numpy(), MAP_CLOUDS)
    places = lay_out(features[chosen].numpy(), args.seed)
    charts.draw_map(places, labels[chosen].numpy(), names, args.output / "map.png")
    points = torch.stack([sample_farthest(dataset[i][0][None], min(MAP_POINTS, npoints))[0] for i in chosen])
    what = (
        f"{len(chosen)} of {len(labels)} test clouds, as many of each class as there are, laid out by t-SNE so that "
        "those with like features before the head are near each other; distances between groups mean little."
    )
    return [
        sections.confusion(counts, names, f"{name_of(dataset)}, test split, {len(labels)} clouds: {scores}"),
        sections.feature_map(places, points, labels[chosen], predicted[chosen], names, what),
    ]


def lay_out(features: Any, seed: int) -> Any:
    """Lay (n, C) features out in the plane by t-SNE, (n, 2); n at least 3."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)


def of_segmenter(
    model: "nn.Module", clouds: "Clouds", dataset: "Dataset | None", config: dict[str, Any], args: Namespace
) -> Sections:
    """True and predicted parts."""
    import torch

    from datasets.published import CATEGORIES
    from datasets.shapenetpart import parts_of_categories
    from tools.evaluation import figures, sections
    from tools.evaluation.metrics import shape_ious
    from tools.evaluation.segmentation import OwnPartSegmenter

    device = next(model.parameters()).device
    with torch.no_grad():
        predicted = OwnPartSegmenter(model).to(device)(clouds.points.to(device), clouds.labels.to(device)).cpu()
    ious = None if clouds.parts is None else shape_ious(predicted, clouds.parts, parts_of_categories()[clouds.labels])
    names = [CATEGORIES[label] for label in clouds.labels]
    figures.draw_parts(clouds.points, clouds.parts, predicted, names, args.output / "parts.png")
    return [sections.parts(clouds, predicted, ious)]


def history_of(folder: Path) -> list[dict[str, float]]:
    """What a run has measured after each epoch, of its results or, while it is not finished, of its checkpoint.

    Raises:
        FileNotFoundError: if the folder holds neither.
        ValueError: if it says nothing of epochs.
    """
    from tools.training.run import Run, read_results

    run = Run(folder, "", {})
    histories = [found["history"] for found in read_results(run.results_file).values() if "history" in found]
    if not histories and run.resumable:
        histories = [run.latest()[1].get("history", [])]
    if not histories and not folder.is_dir():
        hint = did_you_mean_path(folder, Path.is_dir)
        raise FileNotFoundError(f"--runs {folder} does not exist; {hint}give folders below experiments/")
    if not histories or not histories[-1]:
        raise ValueError(f"--runs {folder} holds no run that has trained an epoch; give folders below experiments/")
    return histories[-1]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
