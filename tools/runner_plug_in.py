"""`--test --plug_in CONFIG`: a trained classifier beside a memory bank of its training clouds, and the sum of both."""

from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from datasets import fingerprint
from datasets.holdout import Part, whole
from tools.evaluation.bank_encoder import build_encoder, first_points, make_bank
from tools.evaluation.classification import check_channels, check_labels, sample_farthest
from tools.evaluation.features import Seen, seen_points
from tools.evaluation.inference import evaluate, extract_features
from tools.evaluation.plug_in import Clouds, measure
from tools.training import provenance
from tools.training.builder import (
    HELD_OUT,
    build_network,
    check_config,
    evaluation_loader,
    held_out_loaders,
    test_split,
)
from tools.training.modes import PLUG_IN
from tools.training.run import open_run
from utils.checkpoint import load_weights, read_checkpoint
from utils.config import load_config
from utils.device import choose_device
from utils.distributed import on_main
from utils.files import sha256_of
from utils.seed import seed_everything
from utils.tables import format_table

MODE = PLUG_IN
REQUIRED = ("model", "npoints", "dataset.train", "dataset.test")
BANK_REQUIRED = ("model", "dataset.svm_train")


def run(config: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Test the classifier `args.ckpts` alone, a memory bank alone, and their sum.

    Bank, held-out and test clouds are those of the classifier's config; of the bank's config the model, the number of
    points and the batch count.

    Args:
        config: resolved config of the classifier.
        args: command line; `plug_in` is the config of the bank's encoder, `bank_ckpts` its weights, if it has any.

    Returns:
        The protocol, both checkpoints, what chose γ and λ, and what `tools.evaluation.plug_in.measure` returned.

    Raises:
        ValueError: if a checkpoint or the data do not fit, or there are too few training clouds to hold some out.
    """
    bank_config = load_config(args.plug_in)
    check_config(bank_config, args.plug_in, MODE, BANK_REQUIRED)
    others = bank_config["dataset"]["svm_train"].get("others") or {}
    config = _in_batches_of(config, others)
    with open_run(config, args, MODE, training=False) as run:
        seed_everything(args.seed, args.deterministic)
        device = choose_device()
        record = read_checkpoint(args.ckpts).get("run", {})
        seed = record["seed"] if record.get("select_on") == "val" else args.seed
        kept, held = held_out_loaders(config, args, seed)
        test = evaluation_loader(config, "test", args)
        run.note_data(bank=kept.dataset, held_out=held.dataset, test=test.dataset)
        provenance.warn(config, test=test.dataset)
        model = build_network(config["model"], "num_classes", MODE).to(device)
        check_labels(model, kept, test)
        check_channels(kept, test)
        report = load_weights(model, args.ckpts, strict=True)
        run.note_weights(report)
        encoder, _ = build_encoder(bank_config["model"], args.bank_ckpts, MODE, "--bank_ckpts")
        see = _points_of_the_bank(bank_config, others)
        bank = make_bank(encoder.to(device), kept, device, see)
        look = partial(sample_farthest, num_points=config["npoints"])

        def clouds_of(loader: DataLoader, name: str) -> Clouds:
            logits, labels = evaluate(model, loader, device, look, f"{name} clouds")
            features, _ = extract_features(encoder.encode, loader, device, f"{name} features", see)
            return Clouds(logits, features, labels)

        held_clouds, test_clouds = clouds_of(held, "held-out"), clouds_of(test, "test")
        chosen_on = (
            f"{len(held.dataset)} held-out training clouds (a tenth, seed {seed}), which the bank does not hold; "
            f"{what_training_saw(record, report.chosen_by, kept.dataset)}"
        )
        results = {
            "protocol": f"{test_split(config)}, {config['npoints']} points",
            "checkpoint": str(args.ckpts),
            "bank_config": str(args.plug_in),
            "bank_checkpoint": str(args.bank_ckpts) if args.bank_ckpts else None,
            "bank_checkpoint_sha256": sha256_of(args.bank_ckpts) if args.bank_ckpts else None,
            "chosen_on": chosen_on,
            **on_main(lambda: measure(bank, held_clouds, test_clouds)),
        }
        run.show(MODE, f"{table(results, run.tested(results['protocol']))}\nλ and γ chosen on: {chosen_on}")
        return run.finish(results)


def table(results: Mapping[str, Any], title: str) -> str:
    """Lay out the classifier, the bank and their sum, on the test clouds and on those that chose."""
    names = {
        "model_": "model alone (λ = 1)",
        "bank_": f"memory bank alone (λ = 0), γ = {results['gamma']}",
        "": f"both, λ = {results['lambda']:g}, γ = {results['gamma']}",
    }
    rows = [[name, results[f"{key}accuracy"], results[f"held_out_{key}accuracy"]] for key, name in names.items()]
    return format_table(rows, [title, "%", "held out, %"])


def what_training_saw(record: Mapping[str, Any], chosen_by: str, kept: Part) -> str:
    """Say what the model has to do with the held-out clouds.

    Args:
        record: what its checkpoint says of its run, with the fingerprint of what it was trained on; {} if it does not.
        chosen_by: what chose the checkpoint.
        kept: the training clouds that are not held out.
    """
    trained = record.get("data", {}).get("train")
    if trained is None:
        return "whether the model was trained on them its checkpoint does not say; if so, λ leans to the model"
    if trained == fingerprint(whole(kept)):
        return "the model WAS trained on them, so that λ leans to the model: train with --select_on val"
    if trained != fingerprint(kept):
        return "the model was trained on other data"
    chose = "they chose its checkpoint" if HELD_OUT in chosen_by else "its checkpoint was chosen without them"
    return f"the model was not trained on them; {chose}"


def _in_batches_of(config: dict[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a classifier's config so that its data come in the batches of the bank's config."""
    entries = dict(config["dataset"])
    for name in ("train", "test") if "bs" in others else ():
        entries[name] = {**entries[name], "others": {**(entries[name].get("others") or {}), "bs": others["bs"]}}
    return {**config, "dataset": entries}


def _points_of_the_bank(config: dict[str, Any], others: Mapping[str, Any]) -> Seen:
    """What the bank's encoder sees of a cloud: the first points, as its own data set takes, then `npoints` of them."""
    first, then = first_points(others.get("npoints", others.get("num_points"))), seen_points(config)
    return first if then is None else lambda points: then(first(points))
