"""What the models say of the checkpoints that fill them: ours, and the released ones."""

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
POINT_MAE_CLASSIFIER_HEAD = ("cls_token", "cls_pos", "cls_head_finetune.")
POINT_MAE_SEGMENTER_HEAD = ("label_conv.", "propagation_0.", "convs1.", "convs2.", "convs3.", "bns1.", "bns2.")
POINT_MAE_LEFTOVER = {
    **dict.fromkeys(("mask_token", "MAE_decoder.", "decoder_pos_embed.", "increase_dim."), "decoder"),
    **dict.fromkeys(POINT_MAE_CLASSIFIER_HEAD + POINT_MAE_SEGMENTER_HEAD, "heads"),
}
POINT_BERT_SEGMENTER_HEAD = ("propagation_", "dgcnn_pro_", "conv1.", "conv2.", "bn1.")
POINT_BERT_LEFTOVER = {
    **dict.fromkeys(("lm_head.", "cls_head."), "heads"),
    "mask_token": "mask token",
    "transformer_k.": "momentum encoder",
    "queue": "queue of keys",
    "dvae.": "tokenizer",
    **dict.fromkeys(POINT_BERT_SEGMENTER_HEAD, "heads"),
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


def point_mae_rules(new: tuple[str, ...] = ()) -> LoadingRules:
    """Rules of a model with Point-MAE's encoder, which a pre-training checkpoint holds as `MAE_encoder`.

    Args:
        new: prefixes of its head and own tokens, which a pre-training checkpoint has not.
    """
    return LoadingRules(
        new=new,
        leftover=POINT_MAE_LEFTOVER,
        renamed={"MAE_encoder.": "", "base_model.": ""},
        start_from="a Point-MAE pre-training model with the same encoder",
        kind=kind_of,
    )


def point_bert_rules(new: tuple[str, ...] = ()) -> LoadingRules:
    """Rules of a model with Point-BERT's encoder, which a pre-training checkpoint holds as `transformer_q`.

    Args:
        new: prefixes of its head, which a pre-training checkpoint has not.
    """
    return LoadingRules(
        new=new,
        leftover=POINT_BERT_LEFTOVER,
        renamed={"transformer_q.": "", "base_model.": ""},
        start_from="a Point-BERT pre-training model with the same encoder",
        kind=kind_of,
    )
