"""A part of a model that is not trained any more and comes from a checkpoint of its own."""

import warnings
from pathlib import Path

from models.discrete_vae import DiscreteVAE
from utils.checkpoint import load_weights
from utils.nearest import did_you_mean_path

UNTRAINED = "untrained"  # in the place of a checkpoint: random weights
WHERE = "model.dvae_config.ckpt"


def fill_frozen(model: DiscreteVAE, ckpt: str | Path | None, role: str, kind: str, command: str) -> None:
    """Fill a frozen part strictly from its checkpoint.

    Args:
        model: the part.
        ckpt: what the config says.
        role: of the part in the model around it, in words.
        kind: of the checkpoint that it needs, in words.
        command: what trains the released one.

    Raises:
        ValueError: if there is no checkpoint, or it does not fit.
        FileNotFoundError: if the checkpoint is not there.
    """
    words, channels = model.codebook.shape
    way_out = (
        f"It needs {kind} of {words} words of {channels} channels, {model.num_groups[0]} groups of {model.group_size} "
        f"points: `{command}` trains the released one. `{UNTRAINED}` gives random weights."
    )
    if ckpt is None:
        raise ValueError(f"{WHERE} is not given, the checkpoint of the {role}. {way_out}")
    if not Path(ckpt).exists():
        raise FileNotFoundError(f"{WHERE} is '{ckpt}', and there is no such file. {did_you_mean_path(ckpt)}{way_out}")
    try:
        load_weights(model, ckpt, strict=True)
    except ValueError as error:
        raise ValueError(f"{WHERE}: {error}. {way_out}") from error


def warn_untrained(what: str) -> None:
    """Warn that what a frozen part without a checkpoint says, its words or its targets, means little."""
    warnings.warn(
        f"{WHERE} is {UNTRAINED}: unless a checkpoint of the whole model was loaded, its {what} say little",
        stacklevel=3,
    )
