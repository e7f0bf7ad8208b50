"""What the hierarchical models say of the checkpoints that fill them: ours, and the released ones."""

import re
from collections.abc import Mapping

from torch import Tensor

from utils.checkpoint import LoadingRules

TEACHER = {"clip_model.": "teacher"}
CLASSIFIER_HEAD = ("cls_head_finetune.", "norm.")
SEGMENTER_HEAD = (
    "label_conv.",
    "propagations.",
    *(f"convs{i}." for i in (1, 2, 3, 4)),
    *(f"bns{i}." for i in (1, 2, 3)),
)
LEFTOVER = {
    **TEACHER,
    **dict.fromkeys(("mask_token", "h_decoder.", "decoder_pos_embeds.", "token_prop.", "decoder_norm."), "decoder"),
    "rec_head": "reconstruction heads",
    "h_encoder.encoder_norms.": "encoder norms",
    **dict.fromkeys(CLASSIFIER_HEAD + SEGMENTER_HEAD, "heads"),
}


def loading_rules(new: tuple[str, ...] = ()) -> LoadingRules:
    """Rules of a model with the hierarchical encoder.

    Args:
        new: prefixes of its head, which a pre-training checkpoint has not.
    """
    return LoadingRules(
        new=new,
        leftover=LEFTOVER,
        teacher=TEACHER,
        start_from="a pre-training model with the same encoder" if new else "",
        kind=kind_of,
    )


def kind_of(state: Mapping[str, Tensor]) -> str:
    """Guess from the names of its tensors what a state dict belongs to."""
    classifier = [key for key in state if re.fullmatch(r"cls_head_finetune\.\d+\.weight", key)]
    if classifier:
        return f"a classifier with {len(state[classifier[-1]])} classes"
    if "convs4.weight" in state:
        return f"a part segmenter with {len(state['convs4.weight'])} parts"
    if "rec_head_2d.weight" in state:
        return "an I2P-MAE pre-training model"
    if "rec_head.weight" in state:
        return "a Point-M2AE pre-training model"
    if any(key.startswith("h_encoder.") for key in state):
        return "an encoder without a head"
    return "none of our models"
