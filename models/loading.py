"""What the models say of the checkpoints that fill them: ours, and the released ones."""

from collections.abc import Mapping

from models.kinds import kind_of
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
HEAD_LAYERS = ("label_conv", "propagation_0", "convs1", "convs2", "convs3", "bns1", "bns2")  # of Point-MAE's segmenter
POINT_MAE_CLASSIFIER_HEAD = ("cls_token", "cls_pos", "cls_head_finetune.")
POINT_MAE_SEGMENTER_HEAD = tuple(f"{name}." for name in HEAD_LAYERS)
POINT_MAE_LEFTOVER = {
    **dict.fromkeys(("mask_token", "MAE_decoder.", "decoder_pos_embed.", "increase_dim."), "decoder"),
    **dict.fromkeys(POINT_MAE_CLASSIFIER_HEAD + POINT_MAE_SEGMENTER_HEAD, "heads"),
}
POINT_BERT_CLASSIFIER_HEAD = ("cls_head_finetune.",)
POINT_BERT_SEGMENTER_HEAD = (
    *(f"propagation_{i}." for i in (0, 1, 2)),
    *("dgcnn_pro_1.", "dgcnn_pro_2.", "conv1.", "conv2.", "bn1."),
)
POINT_BERT_LEFTOVER = {
    **dict.fromkeys(("lm_head.", "cls_head."), "heads"),
    "mask_token": "mask token",
    "transformer_k.": "momentum encoder",
    "queue": "queue of keys",
    "dvae.": "tokenizer",
    **dict.fromkeys(POINT_BERT_CLASSIFIER_HEAD + POINT_BERT_SEGMENTER_HEAD, "heads"),
}
ACT_CLASSIFIER_HEAD = ("cls_head_finetune.",)
ACT_SEGMENTER_HEAD = tuple(f"{name}_cls." for name in HEAD_LAYERS)
ACT_LEFTOVER = {
    **dict.fromkeys(("mask_token", "ACT_decoder.", "decoder_pos_embed.", "proj_head."), "decoder"),
    "lm_head.": "heads",
    "cls_head.": "heads",
    "dvae_tokenizer.": "teacher",
    **dict.fromkeys(ACT_CLASSIFIER_HEAD + ACT_SEGMENTER_HEAD, "heads"),
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


def single_scale_rules(
    method: str,
    encoder: str,
    new: tuple[str, ...],
    leftover: Mapping[str, str],
    renamed: Mapping[str, str] | None = None,
) -> LoadingRules:
    """Rules of a model with a single-scale encoder.

    Args:
        method: whose pre-training fills it, in words.
        encoder: what a pre-training checkpoint calls that encoder.
        new: prefixes of the model's head and own tokens, which a pre-training checkpoint has not.
        leftover: prefix → what it is, for what the model leaves aside.
        renamed: prefix in the file → prefix in the model, beside the encoder's.
    """
    return LoadingRules(
        new=new,
        leftover=leftover,
        renamed={f"{encoder}.": "", "base_model.": "", **(renamed or {})},
        start_from=f"{method} pre-training model with the same encoder",
        kind=kind_of,
    )


def point_mae_rules(new: tuple[str, ...], renamed: Mapping[str, str] | None = None) -> LoadingRules:
    """Rules of a model with Point-MAE's encoder; `new` and `renamed` as in `single_scale_rules`."""
    return single_scale_rules("a Point-MAE", "MAE_encoder", new, POINT_MAE_LEFTOVER, renamed)


def point_bert_rules(new: tuple[str, ...]) -> LoadingRules:
    """Rules of a model with Point-BERT's encoder; `new` as in `single_scale_rules`."""
    return single_scale_rules("a Point-BERT", "transformer_q", new, POINT_BERT_LEFTOVER)


def act_rules(new: tuple[str, ...], own_tokens: bool = True, renamed: Mapping[str, str] | None = None) -> LoadingRules:
    """Rules of a model with ACT's encoder.

    Args:
        new: prefixes of its head, which a pre-training checkpoint has not.
        own_tokens: whether it has a class token, or leaves that of the checkpoint aside.
        renamed: as in `single_scale_rules`.
    """
    class_token = {} if own_tokens else dict.fromkeys(("cls_token", "cls_pos"), "class token")
    return single_scale_rules("an ACT", "ACT_encoder", new, {**ACT_LEFTOVER, **class_token}, renamed)


POINT_MAE_CLASSIFIER = point_mae_rules(POINT_MAE_CLASSIFIER_HEAD)
POINT_BERT_CLASSIFIER = point_bert_rules(POINT_BERT_CLASSIFIER_HEAD)
ACT_CLASSIFIER = act_rules(ACT_CLASSIFIER_HEAD)
