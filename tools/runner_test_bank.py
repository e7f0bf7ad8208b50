"""`--test_bank`: accuracy of a memory bank of the training clouds' features, from an encoder that is not trained on."""

import logging
from argparse import Namespace
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset

from datasets import name_of, name_of_entry
from tools.evaluation.bank import Bank, bank_table, load_bank, measure, save_bank
from tools.evaluation.bank_encoder import build_encoder, make_bank
from tools.evaluation.classification import check_channels
from tools.evaluation.features import seen_points, svm_loaders, without_teacher
from tools.evaluation.inference import extract_features
from tools.training import provenance
from tools.training.modes import MEMORY_BANK
from tools.training.run import Run, open_run
from utils.device import choose_device
from utils.distributed import on_main
from utils.files import make_folder
from utils.seed import seed_everything
from utils.tables import format_table

logger = logging.getLogger(__name__)

MODE = MEMORY_BANK
REQUIRED = ("model", "dataset.svm_train", "dataset.svm_test")


def run(config: dict[str, Any], args: Namespace, part: str = "") -> dict[str, Any]:
    """Build a bank of `dataset.svm_train` and match the clouds of `dataset.svm_test` to it.

    Args:
        config: resolved config with `model`, `dataset.svm_train` and `dataset.svm_test`; with `npoints` the encoder
            sees so many farthest points of a cloud, else all that the data set gives.
        args: command line; with `save_bank` the bank is kept, or taken from the file if it is there; `select_on` says
            what chooses the γ of `accuracy`.
        part: folder within the run's folder, of one of many runs.

    Returns:
        The protocol, the checkpoint and what `tools.evaluation.bank.measure` returned.

    Raises:
        ValueError: if the model has parameters and there is no checkpoint for them, the checkpoint does not fit, the
            two splits have other classes, or a kept bank is of another encoder or other clouds.
    """
    with open_run(config, args, MODE, training=False, part=part) as run:
        seed_everything(args.seed, args.deterministic)
        train, test = svm_loaders(config, args)
        check_channels(train, test)
        _check_classes(train.dataset, test.dataset)
        data = {"svm_train": train.dataset, "svm_test": test.dataset}
        run.note_data(**data)
        provenance.warn(config, **data)
        model, report = build_encoder(config["model"], args.ckpts, MODE, "--ckpts")
        protocol = f"memory bank on {name_of_entry(config['dataset']['svm_test'])}, test split"
        title = protocol
        if report:
            run.note_weights(report)
            title = run.tested(protocol)
        device = choose_device()
        bank = _bank(config, args, model.to(device), train, run)
        features, labels = extract_features(model.encode, test, device, "test features", seen_points(config))
        results = {
            "protocol": protocol,
            "checkpoint": str(args.ckpts) if args.ckpts else None,
            **on_main(lambda: measure(bank, features, labels, args.select_on)),
        }
        run.show(MODE, format_table(bank_table(results), [title, "%"]))
        return run.finish(results)


def _bank(config: dict[str, Any], args: Namespace, model: nn.Module, loader: DataLoader, run: Run) -> Bank:
    """Encode the training clouds, or take the bank that `--save_bank` kept."""
    path = args.save_bank
    origin = {
        "checkpoint_sha256": run.about["checkpoint_sha256"],
        "model": without_teacher(config["model"]),
        "npoints": config.get("npoints"),
        "dataset": config["dataset"]["svm_train"],
        "batch": loader.batch_size,  # where a feature depends on it
        "data": run.about["data"]["svm_train"],
        "versions": run.about["versions"],
    }
    if path and on_main(path.exists):
        logger.info("the bank of this encoder is in %s: no training cloud is encoded", path)
        return on_main(lambda: load_bank(path, origin))
    if path:
        on_main(lambda: make_folder(path.parent))
    bank = make_bank(model, loader, choose_device(), seen_points(config), origin)
    if path:
        on_main(lambda: save_bank(path, bank))
        logger.info("bank in %s", path)
    return bank


def _check_classes(train: Dataset, test: Dataset) -> None:
    if list(train.class_names) != list(test.class_names):
        raise ValueError(
            f"dataset.svm_train ({name_of(train)}, {len(train.class_names)} classes) and dataset.svm_test "
            f"({name_of(test)}, {len(test.class_names)}) have other classes; let both read the same data set"
        )
