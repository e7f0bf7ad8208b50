"""`--test_svm`: linear SVMs and nearest neighbours on the features of a frozen, pre-trained encoder."""

import logging
from argparse import Namespace
from typing import Any

from torch.utils.data import DataLoader

from datasets import name_of_entry
from tools.evaluation.features import svm_features, svm_loaders, without_teacher
from tools.evaluation.probes import Features, load_features, probe, probe_table, save_features
from tools.training import provenance
from tools.training.builder import build_network
from tools.training.modes import LINEAR_SVM, SVM_DATA
from tools.training.run import Run, open_run
from utils.checkpoint import load_weights
from utils.device import choose_device
from utils.distributed import on_main
from utils.files import make_folder
from utils.seed import seed_everything
from utils.tables import format_table

logger = logging.getLogger(__name__)

MODE = LINEAR_SVM
REQUIRED = ("model", "dataset.svm_train", "dataset.svm_test", "svm.C")


def run(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Measure the features of the checkpoint `args.ckpts`.

    Args:
        config: resolved config with `model`, `dataset.svm_train`, `dataset.svm_test` and `svm.C`.
        args: command line; with `save_features` the features are kept, or taken from the file if it is there.

    Returns:
        The protocol, the checkpoint and what `tools.evaluation.probes.probe` returned.

    Raises:
        ValueError: if the flag names another data set than the config, the checkpoint does not fit, or kept features
            belong to another checkpoint, model or data set.
    """
    _check_flag(config, args)
    with open_run(config, args, MODE, training=False) as run:
        seed_everything(args.seed, args.deterministic)
        loaders = svm_loaders(config, args)
        data = {"svm_train": loaders[0].dataset, "svm_test": loaders[1].dataset}
        run.note_data(**data)
        provenance.warn(config, **data)
        name = name_of_entry(config["dataset"]["svm_test"])
        features = _features(config, args, loaders, run)
        results = {
            "protocol": f"linear SVM on {name}, test split",
            "checkpoint": str(args.ckpts),
            **on_main(lambda: probe(features, config["svm"]["C"], config["svm"]["solver"])),
        }
        logger.info(
            "effective rank of the training features: %.1f of %d channels",
            results["effective_rank"],
            features.train_features.shape[1],
        )
        title = run.tested(f"probes on {name}, test split")
        run.show(MODE, format_table(probe_table(results), [title, "%"]))
        return run.finish(results)


def _features(config: dict[str, Any], args: Namespace, loaders: tuple[DataLoader, DataLoader], run: Run) -> Features:
    """Encode both splits, or take the features that `--save_features` kept."""
    model_config, path = without_teacher(config["model"]), args.save_features
    model = build_network(model_config, "encode", MODE)
    run.note_weights(load_weights(model, args.ckpts))
    origin = {
        "checkpoint_sha256": run.about["checkpoint_sha256"],
        "model": model_config,
        "dataset": {split: config["dataset"][split] for split in ("svm_train", "svm_test")},
        "data": run.about["data"],
    }
    if path and on_main(path.exists):
        logger.info("features of this checkpoint are in %s: nothing is encoded", path)
        return on_main(lambda: load_features(path, origin))
    if path:
        on_main(lambda: make_folder(path.parent))
    device = choose_device()
    features = Features(*svm_features(model.to(device), loaders, device))
    if path:
        on_main(lambda: save_features(path, features, origin))
        logger.info("features in %s", path)
    return features


def _check_flag(config: dict[str, Any], args: Namespace) -> None:
    expected = SVM_DATA[args.test_svm]
    for entry in ("svm_train", "svm_test"):
        if (name := config["dataset"][entry]["NAME"]) != expected:
            right = next((flag for flag, dataset in SVM_DATA.items() if dataset == name), None)
            hint = f"use --test_svm {right} or another config" if right else "use another config"
            raise ValueError(f"--test_svm {args.test_svm} needs {expected}, but dataset.{entry} is {name}; {hint}")
