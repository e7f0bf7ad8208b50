"""What tests of whole runs share: small configs, a folder with generated data sets, and main.py called there."""

import copy
import json
from pathlib import Path

import yaml

import main
from datasets.synthetic import write_modelnet, write_modelnet_svm, write_shapenet

REPOSITORY = Path(main.__file__).resolve().parent
CLASSES = ["chair", "mug", "lamp"]
POINTS = 96

ENCODER = {
    "num_groups": [32, 16, 8],
    "group_sizes": [8, 4, 4],
    "encoder_dims": [24, 48, 96],
    "encoder_depths": [1, 1, 1],
    "num_heads": 3,
    "drop_path_rate": 0.1,
}
AUTOENCODER = {**ENCODER, "mask_ratio": 0.7, "decoder_dims": [96, 48], "decoder_depths": [1, 1]}
TEACHER = {
    "visual_encoder": {"embed_dim": 16, "image_size": 224, "patch_size": 56, "width": 32, "layers": 1, "heads": 2},
    "feat_dim": 16,
    "pretrained": "untrained",
}
TRAINING = {
    "optimizer": {"type": "AdamW", "kwargs": {"lr": 1e-3, "weight_decay": 0.05}},
    "scheduler": {"type": "CosLR", "kwargs": {"epochs": 4, "initial_epochs": 1}},
    "total_bs": 6,
    "max_epoch": 1,
}
SHAPENET = {
    "NAME": "ShapeNet",
    "DATA_PATH": "data/ShapeNet55-34/ShapeNet-55",
    "PC_PATH": "data/ShapeNet55-34/shapenet_pc",
    "N_POINTS": 128,
    "others": {"subset": "train", "npoints": POINTS},
}
MODELNET = {
    "NAME": "ModelNet",
    "DATA_PATH": "data/ModelNet/modelnet40_normal_resampled",
    "N_POINTS": 128,
    "NUM_CATEGORY": len(CLASSES),
    "USE_NORMALS": False,
}
SVM_DATA = {
    f"svm_{subset}": {
        "NAME": "ModelNet40_SVM",
        "DATA_DIR": "data/modelnet40_ply_hdf5_2048",
        "others": {"partition": subset, "num_points": POINTS},
    }
    for subset in ("train", "test")
}
SCAN_DATA = {
    f"svm_{subset}": {
        "NAME": "ScanObjectNN",
        "ROOT": "data/ScanObjectNN",
        "SPLIT": "obj-bg",
        "others": {"subset": subset, "npoints": POINTS},
    }
    for subset in ("train", "test")
}
FINETUNE_DATA = {subset: {**MODELNET, "others": {"subset": subset}} for subset in ("train", "test")}
PART_DATA = {
    split: {
        "NAME": "ShapeNetPart",
        "ROOT": "data/shapenetcore_partanno_segmentation_benchmark_v0_normal",
        "others": {"subset": subset, "npoints": 64},
    }
    for split, subset in (("train", "trainval"), ("test", "test"))
}

CONFIGS = {
    "pre-training/i2p": {
        **TRAINING,
        "dataset": {"train": SHAPENET, **SVM_DATA},
        "model": {"NAME": "I2P_MAE", **AUTOENCODER, "clip_config": TEACHER},
    },
    "pre-training/m2ae": {
        **TRAINING,
        "max_epoch": 0,
        "dataset": {"train": SHAPENET, **SVM_DATA},
        "model": {"NAME": "Point_M2AE", **AUTOENCODER},
    },
    "linear-svm/scan": {
        "svm": {"C": 0.5},
        "dataset": SCAN_DATA,
        "model": {"NAME": "I2P_MAE", **AUTOENCODER, "clip_config": {"visual_encoder": None, "feat_dim": 16}},
    },
    "fine-tuning/modelnet": {
        **TRAINING,
        "grad_norm_clip": 10,
        "npoints": 64,
        "dataset": FINETUNE_DATA,
        "model": {"NAME": "I2P_MAE_ModelNet40", **ENCODER, "num_classes": len(CLASSES)},
    },
    "part-segmentation/small": {
        **TRAINING,
        "grad_norm_clip": 10,
        "augmentation": "scale_and_translate_small",
        "dataset": PART_DATA,
        "model": {"NAME": "Point_M2AE_SEG", **ENCODER, "point_dims": [64, 48]},
    },
}


def make_playground(folder: Path, configs: dict[str, dict], shapenet: int = 4, modelnet: int = 4) -> Path:
    """Write configs and the data sets of pre-training and classification.

    Args:
        folder: where to write.
        configs: by their names, such as those of `CONFIGS`.
        shapenet: shapes per class to pre-train on.
        modelnet: clouds per class to fine-tune on.

    Returns:
        The folder.
    """
    data = folder / "data"
    write_shapenet(data, classes=CLASSES, train=shapenet, test=1, num_points=128)
    write_modelnet_svm(data, classes=CLASSES, train=4, test=3, num_points=128)
    write_modelnet(data, classes=CLASSES, train=modelnet, test=3, num_points=128)
    for name, config in configs.items():
        write_config(folder, name, config)
    return folder


def write_config(folder: Path, name: str, config: dict) -> None:
    path = folder / "cfgs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))


def run(config: str, *flags: object) -> int:
    return main.main(["--config", f"cfgs/{config}.yaml", "--num_workers", "0", *map(str, flags)])


def results_of(config: str, exp_name: str = "default") -> dict:
    return results_of_folder(Path(f"experiments/{config}/{exp_name}"))


def results_of_folder(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that a run leaves, by its place under its folder; logs and the lock are of the command."""
    places = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log" and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in places}


def refuse(capsys, config: str, *flags: object, exp_name: str = "refused") -> str:
    """Run, check that it fails as it should, return the message."""
    capsys.readouterr()
    assert run(config, "--exp_name", exp_name, *flags) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "".join(lines)
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def changed(config: dict, path: str, value: object) -> dict:
    """Copy a config with one key set."""
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    node = config
    for key in parents:
        node = node[key]
    node[last] = value
    return config
