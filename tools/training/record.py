"""What a run is: kept in its checkpoints and beside its results, and held to where it is resumed."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FLAGS = {"seed": "seed", "precision": "amp", "select_on": "select_on"}  # what a run keeps → the flag that says it
WEIGHTS = ("checkpoint", "checkpoint_sha256", "checkpoint_chosen_by")
KEPT = ("mode", "checkpoint_sha256", *FLAGS, "data")
SHOWN = 12  # characters of a hash


def record_of(mode: str, about: dict[str, Any]) -> dict[str, Any]:
    """Return what a run keeps: its mode and, of what stands beside its results, what makes them what they are."""
    return {"mode": mode, **{key: about[key] for key in (*WEIGHTS, *FLAGS, "data") if key in about}}


def unsaid(record: dict[str, Any]) -> list[str]:
    """Name what a record does not say."""
    return [key.removesuffix("_sha256") for key in KEPT if key not in record]


def continue_as(folder: Path, record: dict[str, Any], mode: str, about: dict[str, Any], args: Namespace) -> None:
    """Hold a command line to a run: take what it does not say from the record, refuse what it says differently.

    What a record does not say is not compared. The data are compared once they are read, see `same_data`.

    Args:
        folder: the run's, for messages.
        record: what `record_of` returned when the run began, or a part of it.
        mode: of the command line.
        about: what describes the command line; changed to what describes the run.
        args: command line; changed likewise. What is taken counts as given from then on.

    Raises:
        ValueError: if something differs; the message says what was and what is.
    """
    taken = {key: flag for key, flag in FLAGS.items() if key in record and flag not in args.given}
    for key, flag in taken.items():
        if about[key] != record[key]:
            logger.info("as the run in %s began: --%s %s", folder, flag, record[key])
        about[key] = record[key]
        setattr(args, flag, record[key])
    args.given |= set(taken.values())
    now = {"mode": mode, **about}
    differing = [key for key in ("mode", *FLAGS) if key in record and now.get(key, record[key]) != record[key]]
    texts = [f"{key} {record[key]} → {now[key]}" for key in differing]
    if "checkpoint_sha256" in record:
        if about["checkpoint_sha256"] not in (None, record["checkpoint_sha256"]):
            texts.append(f"checkpoint {_weights(record)} → {_weights(about)}")
        about.update({key: record[key] for key in WEIGHTS if key in record})
    _refuse(folder, texts)


def same_data(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse data whose fingerprints, by the names of their splits, are not those of the run; ValueError."""
    texts = [
        f"data of {split} {_data(then[split])} → {_data(now[split])}"
        for split in then.keys() & now.keys()
        if then[split] != now[split]
    ]
    _refuse(folder, sorted(texts))


def plain(value: Any) -> Any:
    """Turn nested EasyDicts into dicts: a checkpoint holds plain types only."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def changed_parts(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name the sections of a config that are not those of the run."""
    then, now = plain(then), plain(now)
    return sorted(key for key in {**then, **now} if then.get(key) != now.get(key))


def _refuse(folder: Path, differing: list[str]) -> None:
    if differing:
        raise ValueError(
            f"{folder} holds a run that began otherwise (then → now): {'; '.join(differing)}; continue it as it began "
            "(of flags that are not given it keeps its own), or choose another --exp_name"
        )


def _weights(about: dict[str, Any]) -> str:
    return f"{about['checkpoint']} ({about['checkpoint_sha256'][:SHOWN]}…)" if about["checkpoint"] else "none"


def _data(fingerprint: dict[str, Any]) -> str:
    return "{name}, {clouds} clouds ({digest}…)".format(**fingerprint, digest=fingerprint["sha256"][:SHOWN])
