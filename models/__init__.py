"""Models by the names that configs give them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from models.act import ACT_PointDistillation
from models.act_autoencoder import ACTPromptedDiscreteVAEwithVIT
from models.classifier import Classifier
from models.discrete_vae import DiscreteVAE
from models.feature_encoder import Encoder, load_encoder
from models.i2p_mae import I2P_MAE
from models.part_segmenter import PartSegmenter
from models.point_bert import Point_BERT
from models.point_bert_segmenter import PointBertSegmenter
from models.point_m2ae import Point_M2AE
from models.point_mae import Point_MAE
from models.point_nn import Point_NN
from models.point_transformer import PointTransformer, classifier_of
from models.point_transformer_segmenter import ACTSegmenter, PointTransformerSegmenter
from utils.settings import check_name, check_settings

__all__ = ["MODELS", "Encoder", "build_model", "check_model_config", "load_encoder"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "I2P_MAE": I2P_MAE,
    "Point_M2AE": Point_M2AE,
    "I2P_MAE_ModelNet40": partial(Classifier, num_classes=40, pooling="sum", smooth=0.2),
    "I2P_MAE_ScanObjectNN": partial(Classifier, num_classes=15, pooling="concat"),
    "Point_M2AE_ModelNet40": partial(Classifier, num_classes=40, pooling="sum", smooth=0.3),
    "Point_M2AE_ScanObjectNN": partial(Classifier, num_classes=15, pooling="concat", skip_first_token=True),
    "Point_M2AE_SEG": PartSegmenter,  # of both hierarchical methods
    "Point_MAE": Point_MAE,
    "PointTransformer": PointTransformer,  # of three methods, see `model_of`
    "Point_MAE_SEG": PointTransformerSegmenter,
    "ACT_SEG": ACTSegmenter,
    "DiscreteVAE": DiscreteVAE,
    "Point_BERT": Point_BERT,
    "Point_BERT_SEG": PointBertSegmenter,
    "ACTPromptedDiscreteVAEwithVIT": ACTPromptedDiscreteVAEwithVIT,
    "ACT_PointDistillation": ACT_PointDistillation,
    "Point_NN": Point_NN,
}


def model_of(config: Mapping[str, Any]) -> Callable[..., nn.Module]:
    """Return the model that a config names: that of `MODELS`, or of a `PointTransformer` the one that its keys tell."""
    return classifier_of(config) if config["NAME"] == "PointTransformer" else MODELS[config["NAME"]]


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """Build the model of a config.

    Args:
        config: `NAME`, a key of `MODELS`, and arguments of that model.

    Returns:
        The model, on the CPU, in train mode.

    Raises:
        ValueError: if the name or an argument is unknown, or the model refuses a value.
    """
    check_model_config(config)
    return model_of(config)(**{key: value for key, value in config.items() if key != "NAME"})


def check_model_config(config: Mapping[str, Any], where: str = "model") -> None:
    """Refuse unknown keys and values of a wrong type in a model's config, without building it.

    Args:
        config: `NAME` and arguments of the model.
        where: the config's place in the file, for the message.

    Raises:
        ValueError: that names the key and the nearest valid one, or the type that is expected.
    """
    check_name(config.get("NAME"), MODELS, f"{where}.NAME")
    model = model_of(config)
    settings = {key: value for key, value in config.items() if key != "NAME"}
    check_settings(model, settings, where, hidden=["teacher"])
    for name, function in getattr(model, "sections", {}).items():
        if settings.get(name) is not None:
            check_settings(function, settings[name], f"{where}.{name}")
