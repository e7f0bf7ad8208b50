"""Whether a run's data are the published ones: where they are not, said before it begins."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from datasets.draws import unshuffled
from datasets.holdout import whole
from datasets.origin import FOREIGN, GENERATED, OTHER, PUBLISHED, SUBSET, origin_of
from datasets.sources import SOURCES
from utils.distributed import is_main

logger = logging.getLogger(__name__)

_SAYS = {
    SUBSET: "a part of the published clouds ({}): figures measured on it do not compare with published ones",
    OTHER: "another version than the published figures were measured on ({})",
    FOREIGN: "not the published clouds ({}): figures measured on them do not compare with published ones",
}
_TEXT = (
    "dataset.{}: {} is read from its text files, of which the first {} lines are taken; published figures were "
    "measured on farthest point samples: `python -m datasets.process_modelnet` makes them"
)


def warn(config: dict[str, Any], **datasets: Dataset) -> None:
    """Say which data are generated, a part, another version, or foreign: a line for each, one for all generated.

    It compares what has been read anyway with `datasets.sources`, and looks for two small files.

    Args:
        config: resolved config.
        **datasets: what `dataset.train` and other sections of the config have become.
    """
    for text in _remarks(config, datasets) if is_main() else ():
        logger.warning("%s", text)


def _remarks(config: dict[str, Any], datasets: dict[str, Dataset]) -> Iterator[str]:
    generated: dict[str, str] = {}  # split → title
    for split, dataset in datasets.items():
        entry, dataset = config["dataset"][split], whole(unshuffled(dataset))
        if entry["NAME"] not in SOURCES:  # nobody has published it
            continue
        title = SOURCES[entry["NAME"]].title
        others = entry.get("others") or {}
        subset = others.get("subset") or others["partition"]
        verdict, reason = origin_of(entry, {subset: len(getattr(dataset, "rooms", dataset))}, dataset.class_names)
        if verdict == GENERATED:
            generated[split] = title
        elif verdict != PUBLISHED:
            yield f"dataset.{split}, {title}: {_SAYS[verdict].format(reason)}"
        elif isinstance(next(iter(getattr(dataset, "clouds", ())), None), Path):
            yield _TEXT.format(split, title, dataset.n_points)
    if generated:
        names, titles = (", ".join(dict.fromkeys(values)) for values in (generated, generated.values()))
        yield (
            f"generated shapes stand in for {titles} (dataset: {names}): figures measured on them say nothing about "
            "the published data"
        )
