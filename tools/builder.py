"""From the config to objects: loaders, models, optimizer, schedule. Nothing below this file sees a config."""

import inspect
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.utils.data import DataLoader

from datasets import DATASETS, build_dataset, check_dataset_config
from models import build_model, check_model_config
from utils.config import check_keys
from utils.device import choose_device

OPTIMIZERS = {"AdamW": torch.optim.AdamW}
SCHEDULERS = {"CosLR": CosineLRScheduler}
EVALUATION_BATCH_SIZE = 64  # no result depends on it
MINIMUM_LR = 1e-6  # where the warm-up starts and the cosine ends


def check_config(config: dict[str, Any], source: Path, mode: str, required: Sequence[str]) -> None:
    """Check that a config has what a mode needs, and that its models and data sets are ones we know.

    Args:
        config: resolved config.
        source: the file it came from, for messages.
        mode: what is about to run, for messages.
        required: paths of the keys that this mode reads, such as "dataset.train".

    Raises:
        ValueError: if a key is missing, unknown, or names nothing we know.
    """
    for path in required:
        node: Any = config
        for key in path.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        if node is None:
            raise ValueError(
                f"{source} has no '{path}', which {mode} needs; choose another config of cfgs/ or another mode (--help)"
            )
    check_model_config(config["model"])
    for name, entry in config["dataset"].items():
        check_dataset_config(entry, f"dataset.{name}")


def build_network(config: dict[str, Any], method: str, mode: str) -> nn.Module:
    """Build the model and check that it is of the kind that the mode needs.

    Args:
        config: the `model` section.
        method: what the mode calls: "encode" of a pre-training model or "loss" of a classifier.
        mode: what is about to run, for the message.

    Raises:
        ValueError: if the model has no such method, or its configuration is refused.
    """
    model = build_model(config)
    if not hasattr(model, method):
        kind = {"encode": "a pre-training model (I2P_MAE, Point_M2AE)", "loss": "a classifier"}[method]
        raise ValueError(f"model.NAME is {config['NAME']}, but {mode} needs {kind}; choose another config or mode")
    return model


def build_loader(
    config: dict[str, Any], batch_size: int, *, shuffle: bool, seed: int, num_workers: int, drop_last: bool
) -> DataLoader:
    """Build a data set and the loader over it.

    Args:
        config: one entry of `dataset`.
        batch_size: clouds per batch; `others.bs` of the entry has precedence.
        shuffle: draw the clouds in random order. The order follows `loader.generator`.
        seed: of the order and of the data set's own draws.
        num_workers: processes that read, 0 = this one.
        drop_last: leave out the batch at the end that is not full.

    Raises:
        ValueError: if `drop_last` leaves no batch at all.
    """
    batch_size = (config.get("others") or {}).get("bs", batch_size)
    dataset = build_dataset(_with_seed(config, seed))
    if drop_last and len(dataset) < batch_size:
        raise ValueError(
            f"{config['NAME']} has {len(dataset)} training clouds, fewer than one batch of {batch_size}; "
            "lower total_bs in the config (or others.bs of the data set)"
        )
    return DataLoader(
        dataset,
        batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        drop_last=drop_last,
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=num_workers > 0,
        pin_memory=choose_device().type != "cpu",
    )


def training_loader(config: dict[str, Any], args: Namespace) -> DataLoader:
    """Build the shuffled loader over `dataset.train`, in batches of `total_bs`."""
    return build_loader(
        config["dataset"]["train"],
        config["total_bs"],
        shuffle=True,
        seed=args.seed,
        num_workers=args.num_workers,
        drop_last=True,
    )


def evaluation_loader(config: dict[str, Any], name: str, args: Namespace) -> DataLoader:
    """Build the loader over all clouds of `dataset.<name>`, in their order."""
    return build_loader(
        config["dataset"][name],
        EVALUATION_BATCH_SIZE,
        shuffle=False,
        seed=args.seed,
        num_workers=args.num_workers,
        drop_last=False,
    )


def _with_seed(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Hand the seed to a data set that draws, unless its entry says one."""
    if "seed" not in inspect.signature(DATASETS[config["NAME"]]).parameters:
        return config
    return {**config, "others": {"seed": seed, **(config.get("others") or {})}}


def build_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """Build the optimizer, with weight decay on the matrices only.

    One-dimensional parameters, biases and every parameter with `token` in its name have none. The last takes in all
    of `token_embed` and `token_prop`, not only `mask_token`: the released weights were trained so.

    Args:
        model: frozen parameters are left out.
        config: the `optimizer` section, {type, kwargs {lr, weight_decay}}.

    Raises:
        ValueError: if the type is unknown.
    """
    check_keys([config["type"]], OPTIMIZERS, "optimizer.type")
    kwargs = dict(config["kwargs"])
    weight_decay = kwargs.pop("weight_decay", 0.0)
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim <= 1 or name.endswith(".bias") or "token" in name
            (plain if exempt else decayed).append(parameter)
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    return OPTIMIZERS[config["type"]](groups, **kwargs)


def build_scheduler(optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> CosineLRScheduler:
    """Build the learning rate schedule: linear warm-up from 1e-6, then a cosine down to 1e-6.

    The learning rate is a function of the epoch: call `scheduler.step(epoch)` before epoch `epoch`.

    Args:
        optimizer: its learning rate is the peak.
        config: the `scheduler` section, {type, kwargs {epochs, initial_epochs}}; `epochs` is where the cosine ends,
            counted from epoch 0, and the first `initial_epochs` of them are the warm-up.

    Raises:
        ValueError: if the type is unknown.
    """
    check_keys([config["type"]], SCHEDULERS, "scheduler.type")
    return SCHEDULERS[config["type"]](
        optimizer,
        t_initial=config["kwargs"]["epochs"],
        warmup_t=config["kwargs"]["initial_epochs"],
        lr_min=MINIMUM_LR,
        warmup_lr_init=MINIMUM_LR,
        cycle_limit=1,
    )
