"""`--test_bank` on ShapeNetPart: part segmentation by prototypes of the training shapes; nothing is trained."""

import logging
from argparse import Namespace
from typing import Any

from tools.evaluation.prototypes import GAMMA, PrototypeSegmenter, build_bank
from tools.evaluation.segmentation import SCORES, measure, score_table
from tools.training import provenance
from tools.training.builder import build_network, evaluation_loader, test_split
from tools.training.modes import PART_PROTOTYPES
from tools.training.run import open_run
from utils.device import choose_device
from utils.seed import seed_everything

logger = logging.getLogger(__name__)

MODE = PART_PROTOTYPES
REQUIRED = ("model", "dataset.train", "dataset.test")
PICTURE = "parts.png"
SHOWN = {"mIoU over the parts present in a shape, as published": "present_part_mIoU", **SCORES}


def run(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Build the bank of the training shapes, and segment the test shapes by it.

    Args:
        config: resolved config with `model`, `dataset.train` and `dataset.test`.
        args: command line.

    Returns:
        The protocol, the number of prototypes, γ, and what `measure` returns.

    Raises:
        ValueError: with `--ckpts`: the encoder has no weights.
    """
    if args.ckpts:
        raise ValueError(f"--ckpts gives weights, and {config['model']['NAME']} has none for {MODE}: drop it")
    with open_run(config, args, MODE, training=False) as run:
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        known, queries = (evaluation_loader(config, split, args) for split in ("train", "test"))
        data = {"train": known.dataset, "test": queries.dataset}
        run.note_data(**data)
        provenance.warn(config, **data)
        encoder = build_network(config["model"], "encode_points", MODE).to(device)
        bank = build_bank(encoder, known, device)
        logger.info("%d prototypes of %d shapes", len(bank), len(known.dataset))
        scores = measure(PrototypeSegmenter(encoder, bank), queries, device, run.folder / PICTURE)
        protocol = f"{test_split(config)}, γ = {GAMMA:g}"
        run.show(MODE, score_table(protocol, {"%": scores}, SHOWN))
        return run.finish({"protocol": protocol, "prototypes": len(bank), "gamma": GAMMA, **scores})
