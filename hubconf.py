"""Entry points of `torch.hub.load(FOLDER, NAME, source="local")`."""

from models import load_encoder as _load_encoder

dependencies = ["torch", "timm", "open_clip", "safetensors", "easydict", "yaml", "numpy"]


def encoder(ckpts, config=None):
    """The encoder of a checkpoint in evaluation mode, see `models.load_encoder`: points in, features out.

    Args:
        ckpts: a .pth or .safetensors file.
        config: a YAML file or a mapping, where the file does not say it.
    """
    return _load_encoder(ckpts, config)
