"""Names of the modes of main.py, under which results.json keeps what each one found, and the folders beside main.py."""

from argparse import Namespace
from pathlib import Path

EXPERIMENTS, CHECKPOINTS = Path("experiments"), Path("ckpts")
DATA = Path("data")  # where the shipped configs look

PRE_TRAINING = "pre-training"
AUTOENCODING = "autoencoding"
FINE_TUNING = "fine-tuning"
FROM_SCRATCH = "training from scratch"
PART_SEGMENTATION = "part segmentation"
ROOM_SEGMENTATION = "room segmentation"
LINEAR_SVM = "linear SVM"
MEMORY_BANK = "memory bank"
PLUG_IN = "plug-in"
TEST = "test"
PART_PROTOTYPES = "part segmentation by prototypes"
PROFILE = "profile"

SVM_DATA = {"modelnet40": "ModelNet40_SVM", "scan": "ScanObjectNN", "folder": "Folder"}  # of --test_svm → its data set

OTHER_MODE = "--resume continues a run: add the flag of its mode, such as --finetune_model, or choose another config"
TO_TRAIN = ("optimizer", "scheduler", "model", "total_bs", "max_epoch", "dataset.train")  # what a config must have


def training_mode(args: Namespace) -> str:
    """Name of what a training command line does: fine-tuning, or training from scratch."""
    return FINE_TUNING if args.finetune_model else FROM_SCRATCH
