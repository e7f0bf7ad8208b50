"""Configs: merging, defaults, refusals, and the values of the shipped files."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config import check_keys, load_config, save_config

CFGS = Path(__file__).resolve().parent.parent / "cfgs"
SHIPPED = sorted(path for path in CFGS.glob("*/*.yaml") if path.parent.name != "dataset")
MINIMAL = {"dataset": {"train": {"NAME": "ShapeNet"}}, "model": {"NAME": "I2P_MAE"}}


def write(folder: Path, content: object, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def refusal(path: Path, section: str = "pre_train") -> str:
    with pytest.raises(ValueError) as caught:
        load_config(path, section)
    return str(caught.value)


# the released hyper-parameters, as a table


ENCODER = {
    "num_groups": [512, 256, 64],
    "encoder_depths": [5, 5, 5],
    "encoder_dims": [96, 192, 384],
    "drop_path_rate": 0.1,
    "num_heads": 6,
}
PRETRAIN = ENCODER | {
    "mask_ratio": 0.8,
    "group_sizes": [16, 8, 8],
    "decoder_depths": [1, 1],
    "decoder_dims": [384, 192],
    "decoder_up_blocks": [1, 1],
}
TEACHERLESS = {"clip_config": {"visual_encoder": None, "feat_dim": 512}}
I2P_PRETRAIN = PRETRAIN | {"NAME": "I2P_MAE", "local_radius": [0, 0, 0]}
M2AE_PRETRAIN = PRETRAIN | {"NAME": "Point_M2AE", "local_radius": [0.32, 0.64, 1.28]}
I2P_MODELNET = ENCODER | {
    "NAME": "I2P_MAE_ModelNet40",
    "num_classes": 40,
    "smooth": 0.2,
    "group_sizes": [48, 24, 24],
    "local_radius": [0.24, 0.48, 0.96],
}
M2AE_MODELNET = I2P_MODELNET | {
    "NAME": "Point_M2AE_ModelNet40",
    "smooth": 0.3,
    "group_sizes": [16, 8, 8],
    "local_radius": [0.32, 0.64, 1.28],
}
SCAN = ENCODER | {"num_classes": 15, "group_sizes": [32, 16, 16], "local_radius": [0.32, 0.64, 1.28]}
I2P_SCAN = SCAN | {"NAME": "I2P_MAE_ScanObjectNN"}
M2AE_SCAN = SCAN | {"NAME": "Point_M2AE_ScanObjectNN"}
SEGMENTER = ENCODER | {
    "NAME": "Point_M2AE_SEG",
    "num_parts": 50,
    "num_categories": 16,
    "group_sizes": [16, 8, 8],
    "local_radius": [0.32, 0.64, 1.28],
}
TRANSFORMER = {"trans_dim": 384, "encoder_dims": 384, "depth": 12, "drop_path_rate": 0.1, "num_heads": 6}
POINT_MAE = {
    "NAME": "Point_MAE",
    "group_size": 32,
    "num_group": 64,
    "loss": "cdl2",
    "transformer_config": TRANSFORMER
    | {"mask_ratio": 0.6, "mask_type": "rand", "decoder_depth": 4, "decoder_num_heads": 6},
}
POINT_TRANSFORMER = TRANSFORMER | {"NAME": "PointTransformer", "cls_dim": 40, "group_size": 32, "num_group": 64}
POINT_TRANSFORMER_SCAN = POINT_TRANSFORMER | {"cls_dim": 15, "num_group": 128}
POINT_NN = {"NAME": "Point_NN", "stages": 4, "k": 90, "alpha": 1000, "beta": 100, "normalise": "batch"}
DVAE = {
    "group_size": 32,
    "num_group": 64,
    "num_tokens": 8192,
    **dict.fromkeys(("encoder_dims", "tokens_dims", "decoder_dims"), 256),
}
DVAE_FILE = "experiments/point-bert/dvae/dvae/ckpt-best.pth"
POINT_BERT = {
    "NAME": "Point_BERT",
    "m": 0.999,
    "T": 0.07,
    "K": 16384,
    "transformer_config": {
        "mask_ratio": [0.25, 0.45],
        "mask_rand": False,
        "trans_dim": 384,
        "depth": 12,
        "drop_path_rate": 0.1,
        "cls_dim": 512,
        "replace_pob": 0,
        "num_heads": 6,
        "moco_loss": False,
        "dvae_loss": True,
        "cutmix_loss": True,
        "return_all_tokens": False,
    },
}
ACT_AUTOENCODER = {
    "group_size": 32,
    "num_group": 64,
    "num_tokens": 8192,
    **dict.fromkeys(("encoder_dims", "tokens_dims", "decoder_dims"), 384),
    "visual_embed_type": "vit_base_patch16_384",
    "visual_embed_dim": 768,
    "freeze_visual_embed": True,
    "num_prompt_token": 64,
    "use_deep_prompt": True,
}
MODELS = {
    "pre-training/i2p-mae": I2P_PRETRAIN | {"clip_config": {"visual_encoder": "ViT-B/16", "feat_dim": 512}},
    "pre-training/point-m2ae": M2AE_PRETRAIN,
    "linear-svm/modelnet40": I2P_PRETRAIN | TEACHERLESS,
    "linear-svm/scan_obj-bg": I2P_PRETRAIN | TEACHERLESS,
    "linear-svm/point-m2ae_modelnet40": M2AE_PRETRAIN,
    "linear-svm/point-m2ae_scan_obj-bg": M2AE_PRETRAIN,
    "fine-tuning/modelnet40": I2P_MODELNET,
    "fine-tuning/scan_pb": I2P_SCAN | {"local_radius": [0.48, 0.96, 1.92]},
    "fine-tuning/scan_obj": I2P_SCAN,
    "fine-tuning/scan_obj-bg": I2P_SCAN,
    "fine-tuning/point-m2ae_modelnet40": M2AE_MODELNET,
    "fine-tuning/point-m2ae_scan_pb": M2AE_SCAN,
    "fine-tuning/point-m2ae_scan_obj": M2AE_SCAN,
    "fine-tuning/point-m2ae_scan_obj-bg": M2AE_SCAN,
    "few-shot/modelnet40": I2P_MODELNET,
    "few-shot/point-m2ae_modelnet40": M2AE_MODELNET,
    "part-segmentation/i2p-mae": SEGMENTER,
    "part-segmentation/point-m2ae": SEGMENTER,
    "point-mae/pre-train": POINT_MAE,
    "point-mae/linear-svm_modelnet40": POINT_MAE,
    "point-mae/linear-svm_scan_obj-bg": POINT_MAE,
    "point-mae/modelnet40": POINT_TRANSFORMER,
    "point-mae/modelnet40_8k": POINT_TRANSFORMER | {"num_group": 512},
    "point-mae/scan_pb": POINT_TRANSFORMER_SCAN,
    "point-mae/scan_obj": POINT_TRANSFORMER_SCAN,
    "point-mae/scan_obj-bg": POINT_TRANSFORMER_SCAN,
    "point-mae/few-shot": POINT_TRANSFORMER,
    "point-mae/part-segmentation": TRANSFORMER
    | {"NAME": "Point_MAE_SEG", "num_parts": 50, "num_categories": 16, "group_size": 32, "num_group": 128},
    "point-nn/part-segmentation": POINT_NN | {"dim": 144, "neighbours": 6},
    "point-bert/dvae": {"NAME": "DiscreteVAE", **DVAE},
    "point-bert/pre-train": POINT_BERT | {"dvae_config": DVAE | {"ckpt": DVAE_FILE, "statistics": "batch"}},
    "point-bert/linear-svm_modelnet40": POINT_BERT
    | {"dvae_config": DVAE | {"ckpt": "untrained", "statistics": "batch"}},
    "point-bert/part-segmentation": TRANSFORMER
    | {"NAME": "Point_BERT_SEG", "num_parts": 50, "num_categories": 16, "group_size": 32, "num_group": 128}
    | {"encoder_dims": 256},
    "act/autoencoder": {
        "NAME": "ACTPromptedDiscreteVAEwithVIT",
        "visual_embed_pretrained": "timm",
        **ACT_AUTOENCODER,
    },
    "act/pre-train": {
        "NAME": "ACT_PointDistillation",
        "loss": "cosine",
        "transformer_config": {
            **{key: value for key, value in TRANSFORMER.items() if not key.endswith("_dim") and "encoder" not in key},
            "mask_ratio": 0.8,
            "mask_type": "rand",
            "proj": "linear",
            "embed_dim": 384,
            "cls_dim": 512,
            "decoder_depth": 2,
            "decoder_num_heads": 6,
            "cls_loss": False,
            "register_shallow_hook": 9,
        },
        "dvae_config": {"ckpt": "experiments/act/autoencoder/autoencoder/ckpt-best.pth", **ACT_AUTOENCODER},
    },
}
POINT_BERT_CLASSIFIER = POINT_TRANSFORMER | {"encoder_dims": 256, "smooth": 0.0}
ACT = {"embed_dim" if key == "trans_dim" else key: value for key, value in POINT_TRANSFORMER.items()}
ACT |= {"transfer_type": "full"}
SCANS = ("scan_pb", "scan_obj", "scan_obj-bg")
MODELS |= {f"point-bert/{name}": POINT_BERT_CLASSIFIER for name in ("modelnet40", "few-shot", *SCANS)}
MODELS |= {
    "point-bert/modelnet40_8k": POINT_BERT_CLASSIFIER | {"num_group": 512},
    "act/modelnet40_8k": ACT | {"num_group": 512},
}
TRANSFERS = {"": "full", "_linear": "linear", "_mlp3": "mlp-3"}
for ending, transfer in TRANSFERS.items():
    MODELS |= {f"act/{name}{ending}": ACT | {"transfer_type": transfer} for name in ("modelnet40", "few-shot")}
    in_scans = ACT | {"transfer_type": transfer, "cls_dim": 15, "num_group": 128}
    MODELS |= {f"act/{name}{ending}": in_scans for name in SCANS}
MODELS["act/s3dis"] = MODELS["point-mae/part-segmentation"] | {"NAME": "ACT_SEG", "num_parts": 13, "num_categories": 0}
MODELS["act/part-segmentation"] = MODELS["point-mae/part-segmentation"] | {"NAME": "ACT_SEG"}
# lr, end of the cosine, last epoch, total_bs, npoints, gradient clip, augmentation
SCAN_TRAINING = (5e-4, 300, 300, 32, 2048, 10)
MODELNET_TRAINING = (5e-4, 300, 300, 32, 1024, 10, "scale_and_translate")
FEW_SHOT_TRAINING = (5e-4, 150, 150, 32, 1024, 10, "scale_and_translate")
PART_TRAINING = (2e-4, 300, 299, 16, None, 10, "scale_and_translate_small")
TRAINING = {
    "pre-training/i2p-mae": (1e-3, 400, 300, 64, None, None, "scale_and_translate"),
    "pre-training/point-m2ae": (1e-3, 400, 300, 128, None, None, "scale_and_translate"),
    "fine-tuning/modelnet40": MODELNET_TRAINING,
    "fine-tuning/scan_pb": (*SCAN_TRAINING, "scale_and_rotate"),
    "fine-tuning/scan_obj": (*SCAN_TRAINING, "scale_and_rotate"),
    "fine-tuning/scan_obj-bg": (*SCAN_TRAINING, "scale_and_rotate"),
    "fine-tuning/point-m2ae_modelnet40": MODELNET_TRAINING,
    "fine-tuning/point-m2ae_scan_pb": (*SCAN_TRAINING, "scale_and_translate"),
    "fine-tuning/point-m2ae_scan_obj": (*SCAN_TRAINING, "scale_and_translate"),
    "fine-tuning/point-m2ae_scan_obj-bg": (*SCAN_TRAINING, "scale_and_translate"),
    "few-shot/modelnet40": FEW_SHOT_TRAINING,
    "few-shot/point-m2ae_modelnet40": FEW_SHOT_TRAINING,
    "part-segmentation/i2p-mae": PART_TRAINING,
    "part-segmentation/point-m2ae": PART_TRAINING,
    "point-mae/pre-train": (1e-3, 300, 300, 128, None, None, "scale_and_translate"),
    "point-mae/modelnet40": MODELNET_TRAINING,
    "point-mae/modelnet40_8k": (5e-4, 300, 300, 32, 8192, 10, "scale_and_translate"),
    "point-mae/scan_pb": (*SCAN_TRAINING, "scale_and_translate"),
    "point-mae/scan_obj": (*SCAN_TRAINING, "scale_and_translate"),
    "point-mae/scan_obj-bg": (*SCAN_TRAINING, "scale_and_translate"),
    "point-mae/few-shot": FEW_SHOT_TRAINING,
    "point-mae/part-segmentation": PART_TRAINING,
    "point-bert/dvae": (5e-4, 300, 300, 64, None, None, "none"),
    "point-bert/pre-train": (5e-4, 300, 300, 128, 1024, None, "scale_and_translate"),
    "point-bert/part-segmentation": (5e-4, 300, 299, 16, None, None, "scale_and_translate_small"),
    "act/autoencoder": (5e-4, 300, 300, 64, None, None, "none"),
    "act/pre-train": (1e-3, 300, 300, 128, None, None, "scale_and_translate"),
}
WARM_UP = {"point-bert/pre-train": 3}  # of all others 10
TRAINING |= {f"point-bert/{name}": MODELNET_TRAINING for name in ("modelnet40", *SCANS)}
TRAINING |= {"point-bert/modelnet40_8k": TRAINING["point-mae/modelnet40_8k"], "point-bert/few-shot": FEW_SHOT_TRAINING}
for ending in TRANSFERS:
    lr = 1e-3 if ending else 5e-4
    TRAINING[f"act/modelnet40{ending}"] = (lr, *MODELNET_TRAINING[1:-1], "rotate")
    TRAINING[f"act/few-shot{ending}"] = (lr, *FEW_SHOT_TRAINING[1:-1], "rotate")
    TRAINING |= {f"act/{name}{ending}": (lr, *SCAN_TRAINING[1:], "rotate") for name in SCANS}
TRAINING |= {
    "act/modelnet40_8k": (*TRAINING["point-mae/modelnet40_8k"][:-1], "rotate"),
    "act/part-segmentation": PART_TRAINING,
    "act/s3dis": (2e-4, 60, 59, 32, None, 10, "scale_and_translate_small"),
}
SEGMENTERS = ("act/part-segmentation", "act/s3dis")
LR_MIN = {name: 1e-7 for name in TRAINING if name.startswith("act/") and name not in SEGMENTERS}
WEIGHT_DECAY = {"point-bert/dvae": 5e-4, "act/autoencoder": 5e-4}  # of all others 0.05
SVM_C = {
    "pre-training/i2p-mae": 0.01,
    "pre-training/point-m2ae": 0.01,
    "linear-svm/modelnet40": 0.0093,
    "linear-svm/scan_obj-bg": 0.018,
    "linear-svm/point-m2ae_modelnet40": 0.012,
    "linear-svm/point-m2ae_scan_obj-bg": 0.042,
    "point-mae/pre-train": 0.01,
    "point-mae/linear-svm_modelnet40": 0.01,
    "point-mae/linear-svm_scan_obj-bg": 0.01,
    "point-bert/pre-train": 1,
    "point-bert/linear-svm_modelnet40": 1,
    "act/pre-train": 0.01,
}


def halves(prefix: str, key: str, entry: dict, **others: object) -> dict:
    """A data set's training and test entries, which differ in the value of `key` alone."""
    return {f"{prefix}{half}": entry | {"others": {key: half, **others}} for half in ("train", "test")}


MODELNET = {
    "NAME": "ModelNet",
    "DATA_PATH": "data/ModelNet/modelnet40_normal_resampled",
    "N_POINTS": 8192,
    "NUM_CATEGORY": 40,
    "USE_NORMALS": False,
}
FEW_SHOT = MODELNET | {"NAME": "ModelNetFewShot", "DATA_PATH": "data/ModelNetFewshot"}
OBJ_BG, OBJ, PB = (
    {"NAME": "ScanObjectNN", "ROOT": "data/ScanObjectNN", "SPLIT": split} for split in ("obj-bg", "obj", "pb")
)
SHAPENET = {
    "NAME": "ShapeNet",
    "DATA_PATH": "data/ShapeNet55-34/ShapeNet-55",
    "PC_PATH": "data/ShapeNet55-34/shapenet_pc",
    "N_POINTS": 8192,
    "others": {"subset": "train", "npoints": 2048},
}
PARTS = {"NAME": "ShapeNetPart", "ROOT": "data/shapenetcore_partanno_segmentation_benchmark_v0_normal"}
MODELNET_H5 = {"NAME": "ModelNet40_SVM", "DATA_DIR": "data/modelnet40_ply_hdf5_2048"}
MODELNET_SVM = halves("svm_", "partition", MODELNET_H5, num_points=1024)
SEGMENTATION = {
    "train": PARTS | {"others": {"subset": "trainval", "npoints": 2048}},
    "test": PARTS | {"others": {"subset": "test", "npoints": 2048, "bs": 16}},
}
DATA = {
    "pre-training/i2p-mae": {"train": SHAPENET, **MODELNET_SVM},
    "pre-training/point-m2ae": {"train": SHAPENET, **MODELNET_SVM},
    "part-segmentation/i2p-mae": SEGMENTATION,
    "part-segmentation/point-m2ae": SEGMENTATION,
    "point-mae/pre-train": {"train": SHAPENET | {"others": {"subset": "train", "npoints": 1024}}, **MODELNET_SVM},
    "point-mae/linear-svm_modelnet40": MODELNET_SVM,
    "point-mae/linear-svm_scan_obj-bg": halves("svm_", "subset", OBJ_BG, npoints=2048),
    "point-mae/modelnet40": halves("", "subset", MODELNET),
    "point-mae/modelnet40_8k": halves("", "subset", MODELNET),
    "point-mae/scan_pb": halves("", "subset", PB),
    "point-mae/scan_obj": halves("", "subset", OBJ),
    "point-mae/scan_obj-bg": halves("", "subset", OBJ_BG),
    "point-mae/few-shot": halves("", "subset", FEW_SHOT),
    "point-mae/part-segmentation": SEGMENTATION,
    "point-nn/part-segmentation": {
        split: PARTS | {"NORMALIZE": False, "others": {"subset": subset, "npoints": 1024, "bs": 1}}
        for split, subset in (("train", "trainval"), ("test", "test"))
    },
    "point-bert/dvae": halves("", "subset", SHAPENET, npoints=1024),
    "point-bert/pre-train": {
        "train": SHAPENET | {"others": {"subset": "whole", "npoints": 1024}},
        **halves("svm_", "subset", MODELNET),
    },
    "point-bert/linear-svm_modelnet40": MODELNET_SVM,
    "point-bert/part-segmentation": SEGMENTATION,
    "act/autoencoder": halves("", "subset", SHAPENET, npoints=1024),
    "act/pre-train": {"train": SHAPENET | {"others": {"subset": "whole", "npoints": 1024}}, **MODELNET_SVM},
}
for method in ("", "point-m2ae_"):
    DATA |= {
        f"linear-svm/{method}modelnet40": MODELNET_SVM,
        f"linear-svm/{method}scan_obj-bg": halves("svm_", "subset", OBJ_BG, npoints=2048),
        f"fine-tuning/{method}modelnet40": halves("", "subset", MODELNET),
        f"fine-tuning/{method}scan_pb": halves("", "subset", PB),
        f"fine-tuning/{method}scan_obj": halves("", "subset", OBJ),
        f"fine-tuning/{method}scan_obj-bg": halves("", "subset", OBJ_BG),
        f"few-shot/{method}modelnet40": halves("", "subset", FEW_SHOT),
    }
DATA |= {
    "point-nn/modelnet40": halves("svm_", "partition", MODELNET_H5, num_points=1024, bs=16),
    "point-nn/scan_obj-bg": halves("svm_", "subset", OBJ_BG, npoints=1024, bs=16),
    "point-nn/scan_obj": halves("svm_", "subset", OBJ, npoints=1024, bs=16),
    "point-nn/scan_pb": halves("svm_", "subset", PB, npoints=1024, bs=16),
    "point-nn/few-shot": halves("svm_", "subset", FEW_SHOT, bs=16),
}
for name in ("modelnet40", "modelnet40_8k", "few-shot", *SCANS):
    DATA |= {f"{folder}/{name}": DATA[f"point-mae/{name}"] for folder in ("point-bert", "act")}
for ending in ("_linear", "_mlp3"):
    DATA |= {f"act/{name}{ending}": DATA[f"point-mae/{name}"] for name in ("modelnet40", "few-shot", *SCANS)}
DATA["act/part-segmentation"] = SEGMENTATION
S3DIS = {"NAME": "S3DIS", "ROOT": "data/stanford_indoor3d"}
DATA["act/s3dis"] = {
    "train": S3DIS | {"others": {"subset": "train", "npoints": 2048}},
    "test": S3DIS | {"others": {"subset": "test", "npoints": 2048, "bs": 32}},
}
BANKS = ("modelnet40", "scan_obj-bg", "scan_obj", "scan_pb", "few-shot")
MODELS |= {f"point-nn/{name}": POINT_NN | {"dim": 72} for name in BANKS}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_every_shipped_config_but_the_demos_has_its_values_here() -> None:
    shipped = {name_of(path) for path in SHIPPED if path.parent.name not in ("demo", "own-data")}
    trained = {name for name in shipped if "linear-svm" not in name and "point-nn" not in name}
    assert shipped == MODELS.keys() == DATA.keys()
    assert trained == TRAINING.keys()


@pytest.mark.parametrize("name", MODELS)
def test_shipped_model_is_the_released_one(name: str) -> None:
    assert load_config(CFGS / f"{name}.yaml").model == MODELS[name]


@pytest.mark.parametrize("name", TRAINING)
def test_shipped_training_is_the_released_one(name: str) -> None:
    lr, epochs, max_epoch, total_bs, npoints, clip, augmentation = TRAINING[name]
    config = load_config(CFGS / f"{name}.yaml")
    assert config.optimizer == {"type": "AdamW", "kwargs": {"lr": lr, "weight_decay": WEIGHT_DECAY.get(name, 0.05)}}
    lowest = {"lr_min": LR_MIN[name]} if name in LR_MIN else {}
    warm_up = WARM_UP.get(name, 10)
    assert config.scheduler == {"type": "CosLR", "kwargs": {"epochs": epochs, "initial_epochs": warm_up, **lowest}}
    assert (config.total_bs, config.get("npoints"), config.max_epoch) == (total_bs, npoints, max_epoch)
    assert (config.grad_norm_clip, config.augmentation, config.step_per_update) == (clip, augmentation, 1)


@pytest.mark.parametrize("path", [path for path in SHIPPED if "max_epoch: " in path.read_text()], ids=name_of)
def test_a_shipped_config_says_how_many_epochs_its_last_one_makes(path: Path) -> None:
    (line,) = re.findall(r"^max_epoch: .*", path.read_text(), re.MULTILINE)
    last = load_config(path).max_epoch
    assert line == f"max_epoch: {last}  # the last epoch's number: {last + 1} epochs"


@pytest.mark.parametrize("name", BANKS)
def test_a_bank_sees_1024_points_as_released(name: str) -> None:
    """The data sets give the first 1024; few-shot clouds are sampled."""
    assert load_config(CFGS / f"point-nn/{name}.yaml").get("npoints") == (1024 if name == "few-shot" else None)


@pytest.mark.parametrize("name", SVM_C)
def test_shipped_svm_is_the_released_one(name: str) -> None:
    solver = "LinearSVC" if name.startswith("point-bert/") else "SVC"
    assert load_config(CFGS / f"{name}.yaml").svm == {"C": SVM_C[name], "every": 1, "solver": solver}


def test_the_momentum_of_batch_norm_falls_in_point_berts_part_segmentation_alone() -> None:
    settings = {name: load_config(CFGS / f"{name}.yaml").get("bn_momentum") for name in MODELS}
    found = {name: value for name, value in settings.items() if value}
    assert found == {"point-bert/part-segmentation": {"start": 0.1, "decay": 0.5, "every": 20, "lowest": 0.01}}


@pytest.mark.parametrize("name", DATA)
def test_shipped_data_sets(name: str) -> None:
    assert load_config(CFGS / f"{name}.yaml").dataset == DATA[name]


@pytest.mark.parametrize("name", MODELS)
def test_shipped_config_opens_with_its_own_launch_command(name: str) -> None:
    launch, *rest = (CFGS / f"{name}.yaml").read_text().splitlines()[:3]
    assert launch.startswith(f"# Launch:    python main.py --config cfgs/{name}.yaml ")
    assert any(line.startswith("# Published: ") for line in rest)


# merging


def test_base_keys_are_overridden_by_own_keys_at_every_depth(tmp_path: Path) -> None:
    base = write(tmp_path, {"NAME": "ShapeNet", "N_POINTS": 8192, "others": {"subset": "test", "npoints": 7}}, "b.yaml")
    own = {"_base_": str(base), "N_POINTS": 16, "others": {"subset": "train"}}
    config = load_config(write(tmp_path, MINIMAL | {"dataset": {"train": own}}))
    assert config.dataset.train == {"NAME": "ShapeNet", "N_POINTS": 16, "others": {"subset": "train", "npoints": 7}}


def test_a_base_may_have_a_base_and_stand_at_the_top(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL | {"max_epoch": 1, "total_bs": 2, "npoints": 3}, "a.yaml")
    write(tmp_path, {"_base_": str(tmp_path / "a.yaml"), "max_epoch": 10, "total_bs": 20}, "b.yaml")
    config = load_config(write(tmp_path, {"_base_": str(tmp_path / "b.yaml"), "max_epoch": 100}))
    assert (config.max_epoch, config.total_bs, config.npoints) == (100, 20, 3)
    assert "_base_" not in config


def test_base_is_sought_in_the_current_folder_first_then_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = {"_base_": "cfgs/dataset/ShapeNet-55.yaml"}
    path = write(tmp_path, MINIMAL | {"dataset": {"train": entry}})
    assert load_config(path).dataset.train.NAME == "ShapeNet"
    (tmp_path / "cfgs/dataset").mkdir(parents=True)
    write(tmp_path, {"NAME": "Nearer"}, "cfgs/dataset/ShapeNet-55.yaml")
    assert load_config(path).dataset.train.NAME == "Nearer"


def test_base_stands_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path, {"max_epoch": 7}, "elsewhere/base.yaml")
    assert load_config(write(tmp_path, MINIMAL | {"_base_": "base.yaml"}, "elsewhere/own.yaml")).max_epoch == 7


def test_missing_base_names_key_and_file(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL | {"dataset": {"train": {"_base_": "cfgs/nowhere.yaml"}}})
    with pytest.raises(FileNotFoundError, match=r"dataset\.train\._base_ = 'cfgs/nowhere.yaml' in .*config\.yaml"):
        load_config(path)


def test_base_that_is_no_path_is_refused(tmp_path: Path) -> None:
    assert "model._base_ = 3" in refusal(write(tmp_path, MINIMAL | {"model": {"_base_": 3}}))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_cycle_of_bases_is_refused(tmp_path: Path, length: int) -> None:
    for i in range(length):
        path = write(tmp_path, {"_base_": str(tmp_path / f"{(i + 1) % length}.yaml")}, f"{i}.yaml")
    assert "leads back" in refusal(path)


def test_the_same_base_twice_is_no_cycle(tmp_path: Path) -> None:
    base = {"_base_": str(write(tmp_path, {"NAME": "ShapeNet"}, "base.yaml"))}
    config = load_config(write(tmp_path, MINIMAL | {"dataset": {"train": base, "test": base}}))
    assert config.dataset.train == config.dataset.test == {"NAME": "ShapeNet"}


# defaults and types


def test_defaults_are_filled_and_own_values_kept(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL | {"svm": {"C": 3}}))
    assert (config.step_per_update, config.grad_norm_clip, config.augmentation) == (1, None, "scale_and_translate")
    assert config.svm == {"C": 3, "every": 1, "solver": "SVC"}


def test_defaults_are_not_shared_between_configs(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    load_config(path).svm.C = 5
    assert load_config(path).svm.C == 0.01


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("5E-4", 5e-4), ("1e+2", 100.0), (".5e1", 5.0), ("2.e0", 2.0)]
)
def test_floats_without_a_point_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    path = write(tmp_path, f"{{dataset: {{}}, model: {{NAME: x, name: e1, version: 1e}}, svm: {{C: {text}}}}}")
    config = load_config(path)
    assert value == config.svm.C
    assert (config.model.name, config.model.version) == ("e1", "1e")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_epoch": "300"}, "max_epoch = '300'"),
        ({"max_epoch": 3.5}, "an integer ≥ 0"),
        ({"max_epoch": True}, "max_epoch = True"),
        ({"max_epoch": -1}, "max_epoch = -1"),
        ({"total_bs": 0}, "total_bs = 0"),
        ({"npoints": None}, "npoints = None"),
        ({"grad_norm_clip": 0}, "a number > 0 or null"),
        ({"augmentation": "turn"}, "'scale_and_translate' or 'scale_and_rotate'"),
        ({"augmentation": ["scale_and_rotate"]}, "augmentation = ['scale_and_rotate']"),
        ({"svm": {"C": float("nan")}}, "svm.C = nan"),
        ({"svm": {"every": 0}}, "svm.every = 0"),
        ({"bn_momentum": {"start": 0.1, "decay": 0.5, "every": 20}}, "missing key 'bn_momentum.lowest'"),
        ({"svm": 0.01}, "svm = 0.01"),
        ({"optimizer": None}, "optimizer = None"),
        ({"optimizer": {"type": "AdamW"}}, "missing key 'optimizer.kwargs'"),
        ({"optimizer": {"type": "AdamW", "kwargs": {"lr": 1}}}, "missing key 'optimizer.kwargs.weight_decay'"),
        ({"optimizer": {"type": "AdamW", "kwargs": {"lr": "fast", "weight_decay": 0}}}, "optimizer.kwargs.lr = 'fast'"),
        ({"optimizer": {"type": "SGD", "kwargs": {"lr": 1, "weight_decay": 0}}}, "optimizer.type = 'SGD'"),
        ({"scheduler": {"type": "Step", "kwargs": {"epochs": 1, "initial_epochs": 0}}}, "must be 'CosLR'"),
        (
            {"scheduler": {"type": "CosLR", "kwargs": {"epochs": 1, "initial_epochs": 0, "lr_min": -1}}},
            "scheduler.kwargs.lr_min = -1",
        ),
        (
            {"scheduler": {"type": "CosLR", "kwargs": {"epochs": 1, "initial_epochs": 0}, "every": "step"}},
            "scheduler.every = 'step'",
        ),
        ({"model": {}}, "missing key 'model.NAME'"),
        ({"model": {"NAME": 3}}, "model.NAME = 3"),
        ({"model": "I2P_MAE"}, "model = 'I2P_MAE'"),
        ({"dataset": []}, "dataset = []"),
        ({"dataset": {"train": {}}}, "missing key 'dataset.train.NAME'"),
        ({"dataset": {"train": {"NAME": "ShapeNet", "others": 3}}}, "dataset.train.others = 3"),
        ({"dataset": {"trian": {"NAME": "ShapeNet"}}}, "did you mean 'train'?"),
    ],
)
def test_wrong_value_is_refused_with_its_place(tmp_path: Path, change: dict, message: str) -> None:
    path = write(tmp_path, MINIMAL | change)
    text = refusal(path)
    assert message in text
    assert str(path) in text


@pytest.mark.parametrize("key", ["dataset", "model"])
def test_missing_section_is_refused(tmp_path: Path, key: str) -> None:
    config = {name: value for name, value in MINIMAL.items() if name != key}
    assert f"missing key '{key}'" in refusal(write(tmp_path, config))


# files that are no config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing"),
        ("# only a comment\n", "holds nothing"),
        ("- 1\n- 2\n", "holds a list"),
        ("just words", "holds a str"),
        ("model: {NAME: x\n", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("model: {NAME: x}\nmodel: {NAME: y}\n", "'model' is given twice"),
        ("model: {NAME: x, deep: {a: 1, a: 2}}\n", "'a' is given twice"),
        ("1: x\n", "'1' is not a plain name"),
        ("on: x\n", "'on' is not a plain name"),
        ("model: {NAME: x, items: 3}\n", "'items' is not a plain name"),
        ("? [a, b]\n: 1\n", "not a plain name"),
        ("model: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("model: &m {NAME: x, again: *m}\ndataset: {}\n", "nests without end"),
        ("[" * 5000, "nests without end"),
    ],
)
def test_file_that_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    refused = refusal(path)
    assert message in refused
    assert str(path) in refused


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\x80\x02}q\x00\xff\xfe")
    assert "not valid YAML" in refusal(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml.*cfgs"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cfgs/demo/fine-tune.yml", "cfgs/demo/fine-tune.yaml"),
        ("cfgs/demo/finetune.yaml", "cfgs/demo/fine-tune.yaml"),
        ("cfgs/demos/few-shot.yaml", "cfgs/demo/few-shot.yaml"),
    ],
)
def test_nearest_file_is_suggested(name: str, nearest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CFGS.parent)
    with pytest.raises(FileNotFoundError, match=f"no such config: {name}; did you mean {nearest}\\?"):
        load_config(name)


def test_merge_key_of_yaml_still_works(tmp_path: Path) -> None:
    path = write(tmp_path, "dataset:\n  train: &t {NAME: x, a: 1}\n  test: {<<: *t, a: 2}\nmodel: {NAME: y}\n")
    assert load_config(path).dataset.test == {"NAME": "x", "a": 2}


# properties


def key_paths(config: dict, where: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all keys that the schema knows: everything outside `model` and the data set entries."""
    paths = []
    for key, value in config.items():
        if key != "_base_":
            paths.append((*where, key))
        is_closed = key not in ("model", "data") and where != ("dataset",)
        if isinstance(value, dict) and is_closed:
            paths += key_paths(value, (*where, key))
    return paths


def misspell(word: str, data: st.DataObject) -> str:
    """Drop, double or swap letters of a word."""
    i = data.draw(st.integers(0, len(word) - 1))
    swapped = word[:i] + word[i : i + 2][::-1] + word[i + 2 :]
    candidates = [word[:i] + word[i + 1 :], word[:i] + word[i] + word[i:], swapped]
    return data.draw(st.sampled_from([typo for typo in candidates if typo and typo != word]))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_misspelt_key_of_a_shipped_config_is_refused_with_the_right_name(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = yaml.safe_load(data.draw(st.sampled_from(SHIPPED)).read_text())
    *parents, key = data.draw(st.sampled_from(key_paths(config)))
    section = config
    for parent in parents:
        section = section[parent]
    typo = misspell(key, data)
    if typo in section:
        return  # another valid key
    section[typo] = section.pop(key)
    text = refusal(write(tmp_path_factory.mktemp("typo"), config), *parents[:1])
    assert f"unknown key '{'.'.join([*parents, typo])}'" in text
    assert f"did you mean '{key}'?" in text


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
NAMES = st.from_regex(r"[a-zA-Z_]{3,8}", fullmatch=True).filter(
    lambda name: name != "_base_" and not hasattr(dict, name)
)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["1e-3", "no", "1", "~", "1:30", "2020-01-01", "<<"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(model=st.dictionaries(NAMES, VALUES, max_size=4))
def test_saved_config_reads_back_equal(model: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("saved")
    (folder / "config.yaml").write_text(yaml.safe_dump(MINIMAL))
    config = load_config(folder / "config.yaml")
    config.model.update(model)
    save_config(config, folder / "saved.yaml")
    assert load_config(folder / "saved.yaml") == config


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_resolving_a_resolved_shipped_config_changes_nothing(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    before = copy.deepcopy(config)
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config == before


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    config = load_config(path)
    before = path.read_bytes()
    config.model.shape = {1, 2}.__iter__()
    with pytest.raises(yaml.YAMLError):
        save_config(config, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# check_keys


def test_check_keys_names_path_file_nearest_and_valid() -> None:
    with pytest.raises(
        ValueError, match=r"unknown key 'dataset\.trian' in a\.yaml; did you mean 'train'\? valid: train, test"
    ):
        check_keys(["test", "trian"], ["train", "test"], "dataset", "a.yaml")


def test_check_keys_sees_through_case() -> None:
    with pytest.raises(ValueError, match="did you mean 'NAME'"):
        check_keys(["name"], ["NAME", "others"], "dataset.train")


def test_check_keys_guesses_nothing_far_away() -> None:
    with pytest.raises(ValueError, match=r"^unknown key 'zzz'; valid: train$"):
        check_keys(["zzz"], ["train"], "")


def test_check_keys_accepts_valid_keys() -> None:
    assert check_keys(["a"], ["a", "b"], "x") is None
