"""Training, and with `--test` testing, of the discrete autoencoders of Point-BERT and ACT."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from datasets.transforms import AUGMENTATIONS
from models import build_model
from models.act_autoencoder import ACTPromptedDiscreteVAEwithVIT
from models.discrete_vae import DiscreteVAE
from models.frozen import UNTRAINED
from models.visual_transformer import filled_later
from tools.evaluation.reconstruction import SCORES, reconstruction_scores
from tools.training import provenance, sanity
from tools.training.annealing import KL_BEGINS, annealed
from tools.training.builder import evaluation_loader, parallel, test_split, training_loader
from tools.training.modes import AUTOENCODING, TO_TRAIN
from tools.training.report import Measure
from tools.training.run import open_run
from tools.training.trainer import Trainer
from utils.checkpoint import load_weights
from utils.device import choose_device
from utils.seed import seed_everything
from utils.tables import format_table

MODE = AUTOENCODING
REQUIRED = (*TO_TRAIN, "temp", "kldweight", "dataset.test")
DISTANCE = Measure("CDL1", "", lowest=True)


def run(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Train an autoencoder, or with `--test` test the one in `args.ckpts`.

    Args:
        config: resolved config such as cfgs/point-bert/dvae.yaml or cfgs/act/autoencoder.yaml.
        args: command line.

    Returns:
        What `train` or `test` returns.
    """
    return test(config, args) if args.test else train(config, args)


def train(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Train; the Chamfer distance of rebuilt test shapes chooses ckpt-best, as in the released protocol."""
    with open_run(config, args, MODE, training=True) as run:
        if run.finished:
            return run.finished
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        loader, test_loader = training_loader(config, args), evaluation_loader(config, "test", args)
        data = {"train": loader.dataset, "test": test_loader.dataset}
        run.note_data(**data)
        model = build(config["model"], filled=bool(args.resume or args.start_ckpts)).to(device)
        sanity.warn(config, model, **data)
        provenance.warn(config, **data)
        network = parallel(model, args)
        augment = AUGMENTATIONS[config["augmentation"]]
        batches = len(loader)  # of a whole epoch: none has begun

        def step(points: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            done = trainer.state.epoch * batches + trainer.state.progress.batches
            temperature = annealed(config["temp"], done)
            weight = annealed(config["kldweight"], done, begins=KL_BEGINS)
            found = network(augment(points, generator), temperature, kl_weight=weight, generator=generator)
            in_force = {"temperature": points.new_tensor(temperature), "kl_weight": points.new_tensor(weight)}
            return {**{name: found[name] for name in ("loss", "recon", "kl")}, **in_force}

        def evaluate() -> float:
            return reconstruction_scores(model, test_loader, device, args.seed)[DISTANCE.name]

        protocol = f"{SCORES[DISTANCE.name]} on {test_split(config)}"
        trainer = Trainer(config, args, run, network, loader, step, evaluate, protocol, measure=DISTANCE)
        return run.finish(trainer.fit())


def test(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Rebuild the test shapes with the autoencoder `args.ckpts`.

    Returns:
        The protocol, the checkpoint and what `reconstruction_scores` returns.
    """
    with open_run(config, args, f"{MODE}, test", training=False) as run:
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        loader = evaluation_loader(config, "test", args)
        model = build(config["model"], filled=True).to(device)
        run.note_weights(load_weights(model, args.ckpts, strict=True))
        run.note_data(test=loader.dataset)
        provenance.warn(config, test=loader.dataset)
        scores = reconstruction_scores(model, loader, device, args.seed)
        protocol = f"rebuilt shapes of {test_split(config)}, mean over categories"
        rows = [[title, scores[name]] for name, title in SCORES.items()]
        run.show(run.mode, format_table(rows, [run.tested(protocol), ""]))
        return run.finish({"protocol": protocol, "checkpoint": str(args.ckpts), **scores})


def build(config: dict[str, Any], filled: bool) -> DiscreteVAE:
    """Build an autoencoder; if a checkpoint is going to fill it, nothing is downloaded for ACT's.

    Args:
        config: the `model` section.
        filled: whether its weights come from a checkpoint.
    """
    if not filled or config["NAME"] != ACTPromptedDiscreteVAEwithVIT.__name__:
        return build_model(config)
    with filled_later():
        return build_model({**config, "visual_embed_pretrained": UNTRAINED})
