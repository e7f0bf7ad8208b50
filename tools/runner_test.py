"""`--test`: the accuracy of a trained classifier, with `--vote` also that of averaged predictions."""

from argparse import Namespace
from typing import Any

import numpy as np

from tools.evaluation.classification import check_channels, check_labels, farthest_clouds, sample_farthest, vote
from tools.evaluation.inference import evaluate
from tools.evaluation.metrics import mean_class_accuracy, overall_accuracy
from tools.training import provenance
from tools.training.builder import build_network, evaluation_loader, test_split
from tools.training.modes import TEST
from tools.training.run import open_run
from utils.checkpoint import load_weights
from utils.device import choose_device
from utils.seed import seed_everything
from utils.tables import format_table

MODE = TEST
REQUIRED = ("model", "npoints", "dataset.test")


def run(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Test the classifier `args.ckpts`.

    Args:
        config: resolved config of cfgs/fine-tuning/.
        args: command line.

    Returns:
        The protocol and the accuracies without and, if asked for, with voting, in percent.
    """
    with open_run(config, args, MODE, training=False) as run:
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        loader = evaluation_loader(config, "test", args)
        model = build_network(config["model"], "num_classes", MODE).to(device)
        check_labels(model, loader)
        check_channels(loader)
        provenance.warn(config, test=loader.dataset)
        run.note_weights(load_weights(model, args.ckpts, strict=True))
        npoints = config["npoints"]
        logits, labels = evaluate(model, loader, device, lambda points: sample_farthest(points, npoints))
        results = {
            "protocol": f"{test_split(config)}, {npoints} points",
            "checkpoint": str(args.ckpts),
            "accuracy": overall_accuracy(logits, labels),
            "mean_class_accuracy": mean_class_accuracy(logits, labels),
        }
        rows = [["overall accuracy", results["accuracy"]], ["mean class accuracy", results["mean_class_accuracy"]]]
        if args.vote:
            accuracies = vote(model, farthest_clouds(loader, npoints, device), npoints, args.seed, device, args.votes)
            results["vote"] = {
                "repeats": args.votes,
                "mean_accuracy": float(np.mean(accuracies)),
                "std_accuracy": float(np.std(accuracies)),
                "best_accuracy": max(accuracies),
            }
            rows += [
                [f"vote: mean of {args.votes} repeats", results["vote"]["mean_accuracy"]],
                ["vote: standard deviation", results["vote"]["std_accuracy"]],
                ["vote: best of them (chosen on the test split, as published)", results["vote"]["best_accuracy"]],
            ]
        run.show(MODE, format_table(rows, [run.tested(results["protocol"]), "%"]))
        return run.finish(results)
