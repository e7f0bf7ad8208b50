"""What a state dict belongs to, guessed from the names of its tensors; a family of models has a function here."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor


def kind_of(state: Mapping[str, Tensor]) -> str:
    """Guess from the names of its tensors what a state dict belongs to, in words."""
    return next(filter(None, (recognise(state) for recognise in FAMILIES)), "none of our models")


def _point_mae(state: Mapping[str, Tensor]) -> str | None:
    if any(key.startswith("MAE_decoder.") for key in state):
        return "a Point-MAE pre-training model"
    return None


def _act(state: Mapping[str, Tensor]) -> str | None:
    if any(key.startswith("ACT_decoder.") for key in state):
        return "an ACT pre-training model"
    return "an ACT autoencoder" if "visual_embed.1.weight" in state else None


def _point_bert(state: Mapping[str, Tensor]) -> str | None:
    if any(key.startswith("transformer_k.") for key in state):  # `transformer_q` may have been renamed
        return "a Point-BERT pre-training model"
    if "dgcnn_pro_1.layer1.0.weight" in state:
        return f"a Point-BERT part segmenter with {len(state['conv2.weight'])} parts"
    return "a Point-BERT discrete autoencoder" if "codebook" in state else None


def _single_scale(state: Mapping[str, Tensor]) -> str | None:
    if "blocks.blocks.0.norm1.weight" not in state:
        return None
    for layer in ("convs3", "convs3_cls"):
        if f"{layer}.weight" in state:
            return f"a single-scale part segmenter with {len(state[f'{layer}.weight'])} parts"
    if classes := _classes(state):
        whose = "Point-BERT" if "reduce_dim.weight" in state else "single-scale"
        return f"a {whose} classifier with {classes} classes"
    return "a single-scale encoder without a head"


def _hierarchical(state: Mapping[str, Tensor]) -> str | None:
    if classes := _classes(state):
        return f"a classifier with {classes} classes"
    if "convs4.weight" in state:
        return f"a part segmenter with {len(state['convs4.weight'])} parts"
    if "rec_head_2d.weight" in state:
        return "an I2P-MAE pre-training model"
    if "rec_head.weight" in state:
        return "a Point-M2AE pre-training model"
    if any(key.startswith("h_encoder.") for key in state):
        return "an encoder without a head"
    return None


def _classes(state: Mapping[str, Tensor]) -> int:
    """Outputs of the last layer of a classification head, 0 if there is none."""
    layers = [key for key in state if re.fullmatch(r"cls_head_finetune\.\d+\.weight", key)]
    return len(state[layers[-1]]) if layers else 0


FAMILIES: tuple[Callable[[Mapping[str, Tensor]], str | None], ...] = (
    _point_mae,
    _act,
    _point_bert,
    _single_scale,
    _hierarchical,
)
