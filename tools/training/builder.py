"""From the config to objects: loaders, models, optimizer, schedule. Nothing below this file sees a config."""

import inspect
import logging
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets import DATASETS, build_dataset, check_dataset_config, name_of, name_of_entry
from datasets.draws import DrawnDataset, Shuffled, unshuffled
from datasets.folder import Folder
from datasets.holdout import Part, hold_out, whole
from datasets.own.files import list_files
from datasets.resident import ResidentLoader
from datasets.shapenet55 import ShapeNet
from models import MODELS, build_model, check_model_config
from models.act import ACT_PointDistillation
from models.act_autoencoder import ACTPromptedDiscreteVAEwithVIT
from models.masked_autoencoder import MaskedAutoencoder
from models.point_bert import Point_BERT
from models.transformer import BlockStack
from utils.device import choose_device
from utils.distributed import is_main, rank, world_size

logger = logging.getLogger(__name__)

CLASS_KEYS = ("num_classes", "cls_dim")  # where models take the number of classes
OTHER_CONFIG = "choose another config of cfgs/ or another mode (--help)"
OTHER_CONFIG_OR_MODE = "choose another config or mode"
WORKERS_PER_CORE = 4  # more than one: on a slow disk they wait
EVALUATION_BATCH_SIZE = 64  # no result depends on it, but the draws of a vote do
COMPILED_VARIANTS = 64  # of all block stacks together: each with and without padding, in training and in evaluation
HELD_OUT = "a held-out tenth of the training split"
# Models with parameters that serve no loss: a norm, heads, all before a transformer that lets no gradient through.
# Without a search for them their gradients would be waited for.
PARTLY_UNUSED = (MaskedAutoencoder, Point_BERT, ACT_PointDistillation, ACTPromptedDiscreteVAEwithVIT)
MINIMUM_LR = 1e-6  # where the warm-up starts and, unless a config says otherwise, the cosine ends


def check_config(
    config: dict[str, Any], source: Path, mode: str, required: Sequence[str], way_out: str = OTHER_CONFIG
) -> None:
    """Check that a config has what a mode needs, and that its models and data sets are ones we know.

    Args:
        config: resolved config.
        source: the file it came from, for messages.
        mode: what is about to run, for messages.
        required: paths of the keys that this mode reads, such as "dataset.train".
        way_out: what to do where one is missing, for messages.

    Raises:
        ValueError: if a key is missing, unknown, or names nothing we know.
    """
    for path in required:
        node: Any = config
        for key in path.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        if node is None:
            raise ValueError(f"{source} has no '{path}', which {mode} needs; {way_out}")
    check_model_config(config["model"])
    for name, entry in config["dataset"].items():
        check_dataset_config(entry, f"dataset.{name}")


def count_classes(config: dict[str, Any]) -> None:
    """Give a classifier of data of one's own as many classes as the data has, where the config does not say how many.

    Raises:
        ValueError: if the data has no classes, or is not as described.
        FileNotFoundError: if it is not there.
    """
    model = config["model"]
    arguments = inspect.signature(MODELS[model["NAME"]]).parameters if model["NAME"] in MODELS else {}
    key = next((key for key in CLASS_KEYS if key in arguments), None)
    entry = config["dataset"].get("train") or config["dataset"].get("test") or {}
    if key is None or model.get(key) is not None or entry.get("NAME") != Folder.__name__ or "ROOT" not in entry:
        return
    names = list_files(entry["ROOT"]).class_names
    require_classes(names, name_of_entry(entry), "a classifier")
    model[key] = len(names)


def leave_out_bad(config: dict[str, Any], skip_bad: int | None) -> None:
    """Write `--skip_bad`, if it is given, into the entries of data of one's own; ValueError if there are none."""
    if skip_bad is None:
        return
    own = [entry for entry in config["dataset"].values() if entry["NAME"] == Folder.__name__]
    if not own:
        raise ValueError(
            "--skip_bad leaves out files of your own data (NAME: Folder), and the config has none: drop it"
        )
    for entry in own:
        entry["SKIP_BAD"] = skip_bad


def require_classes(class_names: Sequence[str], name: str, mode: str) -> None:
    """Refuse data without classes, where a mode needs them."""
    if not class_names:
        raise ValueError(
            f"{name} has no classes, which {mode} needs: put its files into a sub-folder for each class, or give "
            "labels in a list, see docs/OWN_DATA.md"
        )


def limit_workers(args: Namespace) -> None:
    """Lower `--num_workers` to what the machine can use."""
    most = WORKERS_PER_CORE * (os.cpu_count() or 1)
    if args.num_workers > most:
        if is_main():
            logger.info(
                "--num_workers %d is lowered to %d, %d for a CPU core", args.num_workers, most, WORKERS_PER_CORE
            )
        args.num_workers = most


def build_network(config: dict[str, Any], trait: str, mode: str) -> nn.Module:
    """Build the model and check that it is of the kind that the mode needs.

    Args:
        config: the `model` section.
        trait: what only models of the kind have: "encode" (pre-training models), "num_classes" (classifiers),
            "num_parts" (segmenters) or "encode_points" (Point-NN).
        mode: what is about to run, for the message.

    Raises:
        ValueError: if the model is of another kind, or its configuration is refused.
    """
    model = build_model(config)
    if not hasattr(model, trait):
        raise _of_other_kind(config, trait, mode, OTHER_CONFIG_OR_MODE)
    return model


def check_pre_trains(config: dict[str, Any], mode: str, way_out: str) -> None:
    """Check that the model can be pre-trained, without building it; ValueError if not."""
    if not hasattr(MODELS[config["NAME"]], "encode"):
        raise _of_other_kind(config, "encode", mode, way_out)


def _of_other_kind(config: dict[str, Any], trait: str, mode: str, way_out: str) -> ValueError:
    kind = {
        "encode": (
            "a pre-training model (I2P_MAE, Point_M2AE, Point_MAE, Point_BERT) or another with features of whole clouds"
        ),
        "num_classes": "a classifier",
        "num_parts": "a segmenter (Point_M2AE_SEG, Point_MAE_SEG, Point_BERT_SEG, ACT_SEG)",
        "encode_points": "an encoder of points (Point_NN)",
    }[trait]
    return ValueError(f"model.NAME is {config['NAME']}, but {mode} needs {kind}; {way_out}")


class ShuffledBatches(Sampler[list[int]]):
    """Full batches in random order, the same order in every process, of which each process takes its part.

    Args:
        size: clouds in the data set.
        batch_size: clouds per batch of all processes together.
        generator: decides the order.

    Attributes:
        start: batches to leave out at the beginning, those that an interrupted epoch has done.
    """

    def __init__(self, size: int, batch_size: int, generator: torch.Generator) -> None:
        self.size, self.batch_size, self.generator = size, batch_size, generator
        self.start = 0

    def __len__(self) -> int:
        return self.size // self.batch_size - self.start

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.size, generator=self.generator).tolist()
        for first in range(self.start * self.batch_size, self.size - self.batch_size + 1, self.batch_size):
            yield order[first : first + self.batch_size][rank() :: world_size()]


class TrainingLoader(DataLoader):
    """Shuffled full batches of a data set, an epoch at a time.

    Args:
        dataset: has `set_epoch` if its items change from epoch to epoch.
        batch_size: clouds per batch of all processes together.
        num_workers: processes that read, 0 = this one.
    """

    def __init__(self, dataset: Dataset, batch_size: int, num_workers: int) -> None:
        batches = ShuffledBatches(len(dataset), batch_size, torch.Generator())
        super().__init__(dataset, batch_sampler=batches, **_reading(num_workers))

    def begin(self, epoch: int, seed: int, start: int = 0) -> None:
        """Choose the epoch, the seed of its order, and how many of its batches to leave out."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        self.batch_sampler.generator.manual_seed(seed)
        self.batch_sampler.start = start


def training_loader(config: dict[str, Any], args: Namespace, least: int = 1) -> TrainingLoader | ResidentLoader:
    """Build the shuffled loader over `dataset.train`, in batches of `total_bs`; `others.bs` has precedence.

    Clouds whose points the data set does not draw itself come with their points in another order every epoch.

    Args:
        config: resolved config.
        args: command line.
        least: clouds that a process needs: 2 where BatchNorm normalises one vector a cloud.

    Raises:
        ValueError: if there is not one full batch, the processes cannot share one evenly or get too few clouds of it,
            or `--resident_data` is given for a data set that is not pre-trained on.
    """
    entry = config["dataset"]["train"]
    batch_size = (entry.get("others") or {}).get("bs", config["total_bs"])
    if batch_size % world_size():
        raise ValueError(
            f"a batch of {batch_size} clouds (total_bs in the config) cannot be shared by {world_size()} processes; "
            "choose a multiple"
        )
    if batch_size // world_size() < least and not args.sync_bn:
        raise ValueError(
            f"a batch of {batch_size} clouds (total_bs in the config) gives a process {batch_size // world_size()}, "
            f"and the head's BatchNorm needs {least}; raise it"
        )
    dataset = build_dataset(with_seed(entry, args.seed))
    if args.select_on == "val":
        dataset = Part(dataset, hold_out(dataset.labels, args.seed)[0])
    if not isinstance(whole(dataset), DrawnDataset):
        dataset = Shuffled(dataset, args.seed)
    if len(dataset) < batch_size:
        raise ValueError(
            f"{name_of(dataset)} has {len(dataset)} training clouds, fewer than one batch of {batch_size}; "
            "lower total_bs in the config (or others.bs of the data set)"
        )
    if not args.resident_data:
        return TrainingLoader(dataset, batch_size, args.num_workers)
    if not isinstance(dataset, ShapeNet):
        raise ValueError(f"--resident_data keeps ShapeNet in the device's memory, not {name_of(dataset)}: drop it")
    return ResidentLoader(dataset, batch_size // world_size(), choose_device(), rank(), world_size())


def evaluation_loader(config: dict[str, Any], name: str, args: Namespace) -> DataLoader:
    """Build the loader over all clouds of `dataset.<name>`, in their order; of several processes each has its share."""
    entry = config["dataset"][name]
    return _in_order(build_dataset(with_seed(entry, args.seed)), entry, args)


def test_split(config: dict[str, Any]) -> str:
    """Name the data set and the split of `dataset.test`."""
    entry = config["dataset"]["test"]
    return f"{name_of_entry(entry)}, {(entry.get('others') or {}).get('subset', 'test')} split"


def selection_loader(config: dict[str, Any], args: Namespace, train: TrainingLoader) -> tuple[DataLoader, str]:
    """Build the loader over the clouds that choose a checkpoint, as `--select_on` says; returns it and their name.

    With `--select_on val` these are what `train`, the training loader, leaves out of its data set, in the files' order.
    """
    if args.select_on == "test":
        return evaluation_loader(config, "test", args), test_split(config)
    entry = config["dataset"]["train"]
    split = whole(unshuffled(train.dataset))
    dataset = Part(split, hold_out(split.labels, args.seed)[1])
    return _in_order(dataset, entry, args), f"{name_of_entry(entry)}, {HELD_OUT}"


def held_out_loaders(config: dict[str, Any], args: Namespace, seed: int) -> tuple[DataLoader, DataLoader]:
    """Build loaders over the clouds of `dataset.train` that stay and over the tenth that is held out, in their order.

    Args:
        config: resolved config.
        args: command line.
        seed: of the split.
    """
    entry = config["dataset"]["train"]
    dataset = build_dataset(with_seed(entry, args.seed))
    kept, held = hold_out(dataset.labels, seed)
    return _in_order(Part(dataset, kept), entry, args), _in_order(Part(dataset, held), entry, args)


def _in_order(dataset: Dataset, entry: dict[str, Any], args: Namespace) -> DataLoader:
    batch_size = (entry.get("others") or {}).get("bs", EVALUATION_BATCH_SIZE)
    share = range(rank(), len(dataset), world_size())
    return DataLoader(dataset, batch_size, sampler=share, **_reading(args.num_workers))


def _reading(num_workers: int) -> dict[str, Any]:
    """How a loader reads: in processes that stay, into memory from which a GPU copies without waiting."""
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": choose_device().type != "cpu",
        "generator": torch.Generator(),  # its own, or every pass would draw from the one that draws masks
    }


def parallel(model: nn.Module, args: Namespace) -> nn.Module:
    """Prepare a model, on its device already, for training: compiled, and shared by the processes if there are several.

    Args:
        model: its state dict stays what it is.
        args: command line; `compile` and `sync_bn` are read.

    Returns:
        The module to call in a training step; `unwrapped` of it is the model.
    """
    if args.sync_bn and world_size() > 1:
        if next(model.parameters()).device.type == "cpu":
            raise ValueError("--sync_bn needs GPUs: PyTorch has no synchronised BatchNorm for the CPU; drop --sync_bn")
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if args.compile:
        torch._dynamo.config.cache_size_limit = COMPILED_VARIANTS  # beyond it PyTorch stops compiling
        for module in model.modules():
            if isinstance(module, BlockStack):
                module.compile(dynamic=True)  # the number of visible tokens changes from batch to batch
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, find_unused_parameters=isinstance(model, PARTLY_UNUSED))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model within what `parallel` returned."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def with_seed(config: dict[str, Any], seed: int) -> dict[str, Any]:
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
        config: the `optimizer` section, {type, kwargs {lr, weight_decay}}; AdamW is the only type.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim <= 1 or name.endswith(".bias") or "token" in name
            (plain if exempt else decayed).append(parameter)
    kwargs = config["kwargs"]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": kwargs["weight_decay"]}]
    return torch.optim.AdamW(groups, lr=kwargs["lr"], fused=True)


def build_scheduler(optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> CosineLRScheduler:
    """Build the learning rate schedule: linear warm-up from 1e-6, then a cosine down to 1e-6 or `lr_min`.

    The learning rate is a function of the epoch: call `scheduler.step(epoch)` before epoch `epoch`, or, with a
    fraction, before an update within it.

    Args:
        optimizer: its learning rate is the peak.
        config: the `scheduler` section, {type, kwargs {epochs, initial_epochs, lr_min}, every}; `epochs` is where the
            cosine ends, counted from epoch 0, and the first `initial_epochs` of them are the warm-up. CosLR is the only
            type. `every` is for who steps it: "epoch", as released, or "update".
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=config["kwargs"]["epochs"],
        warmup_t=config["kwargs"]["initial_epochs"],
        lr_min=config["kwargs"].get("lr_min", MINIMUM_LR),
        warmup_lr_init=MINIMUM_LR,
        cycle_limit=1,
    )
