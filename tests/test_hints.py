"""Messages of the readers lead out: what they tell to do, done as they tell it, makes the reader read."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from datasets import build_dataset
from datasets.hints import Entry
from datasets.synthetic.__main__ import main as generate

ROOT = Path(__file__).parents[1]
CLASSES = [
    "bag",
    "bed",
    "bottle",
    "chair",
    "desk",
    "knife",
    "lamp",
    "laptop",
    "mug",
    "table",
]  # ten: few-shot tasks need as many
FEW = ["--shapenet", "2", "--train", "2", "--test", "2", "--folds", "1", "--classes", *CLASSES]
OTHERS = {
    "ShapeNet": {"subset": "train", "npoints": 16},
    "ModelNet": {"subset": "test"},
    "ModelNet40_SVM": {"partition": "train", "num_points": 24},
    "ModelNetFewShot": {"subset": "train", "way": 5, "shot": 10, "fold": 0},
    "ScanObjectNN": {"subset": "test", "npoints": 24},
    "ShapeNetPart": {"subset": "trainval", "npoints": 24},
    "S3DIS": {"subset": "test", "npoints": 24},
}
CONFIGS = sorted(path.stem for path in ROOT.glob("cfgs/dataset/*.yaml"))


def entry_of(config: str, root: Path) -> dict:
    """A shipped entry with another root and few points."""
    entry = yaml.safe_load((ROOT / f"cfgs/dataset/{config}.yaml").read_text())
    entry = {key: str(root / value.removeprefix("data/")) if key in PLACES else value for key, value in entry.items()}
    return {**entry, **({"N_POINTS": 24} if "N_POINTS" in entry else {}), "others": OTHERS[entry["NAME"]]}


PLACES = ("DATA_PATH", "PC_PATH", "DATA_DIR", "ROOT")


def message_of(entry: dict) -> str:
    """What the reader says, of the data set or else of one of its items."""
    with pytest.raises((FileNotFoundError, ValueError)) as refused:
        build_dataset(entry)[0]
    return str(refused.value)


def follow(message: str) -> None:
    """Run the command for stand-ins that a message names."""
    (command,) = re.findall(r"`python -m datasets\.synthetic ([^`]+)`", message)
    generate([*shlex.split(command), *FEW])


def followed(entry: dict, message: str) -> dict:
    """Change in an entry what a message says."""
    if "NUM_CATEGORY has to be their number of classes" in message:
        found = re.search(r"NUM_CATEGORY is 40; make it (\d+)$", message_of(entry))
        return {**entry, "NUM_CATEGORY": int(found[1])}
    return entry


@pytest.mark.parametrize("config", CONFIGS)
def test_the_hint_of_every_shipped_config_leads_to_clouds(tmp_path, config):
    root = tmp_path / "else where"
    entry = entry_of(config, root)
    message = message_of(entry)
    for command in ("check", "download"):
        assert f"`python -m datasets.{command} {entry['NAME']} --root '{root}'`" in message
    follow(message)
    dataset = build_dataset(followed(entry, message))
    assert len(dataset) >= 10
    assert dataset[0][0].shape == (16 if entry["NAME"] == "ShapeNet" else 24, 3)


@pytest.mark.parametrize(
    "config", ["ModelNet40", "ModelNet40FewShot", "ModelNet40_SVM", "ScanObjectNN_obj", "ShapeNet-55"]
)  # ShapeNetPart draws any number
def test_another_number_of_points_names_its_key_and_the_flag(tmp_path, config):
    entry = entry_of(config, tmp_path)
    few = {**entry, **({"N_POINTS": 18} if "N_POINTS" in entry else {})}
    for key in ("num_points", "npoints"):
        if key in entry["others"] and "N_POINTS" not in entry:
            few["others"] = {**entry["others"], key: 18}
    absent = message_of(few)
    follow(absent)
    entry = {**entry, "NUM_CATEGORY": 10} if entry["NAME"] == "ModelNet" else entry
    message = message_of(entry)
    key = {"ModelNet40_SVM": "num_points", "ScanObjectNN": "npoints"}.get(entry["NAME"], "N_POINTS")
    assert f"set {key} to 18" in message or "there are .dat files of 18 points: set N_POINTS to that" in message
    assert "--points 24`" in message
    assert build_dataset(few if entry["NAME"] != "ModelNet" else {**few, "NUM_CATEGORY": 10})[0][0].shape[0] <= 18
    follow(message)
    assert len(build_dataset(entry)[0][0]) in (16, 24)


def test_a_folder_of_another_name_is_told_where_stand_ins_go():
    entry = Entry("ShapeNet", "PC_PATH", "/disk/clouds", 100)
    assert entry.stand_ins() == (
        "`python -m datasets.synthetic --root data --layouts shapenet --points 100` writes stand-ins, for which "
        "PC_PATH has to be data/ShapeNet55-34/shapenet_pc"
    )
    assert Entry("ShapeNet", "PC_PATH", "ShapeNet55-34/shapenet_pc").root == "."


def test_a_missing_fold_names_the_command_that_draws_it_where_it_belongs():
    text = Entry("ModelNetFewShot", "DATA_PATH", "/d/ModelNetFewshot", 64).way_out()
    assert (
        "`python -m datasets.few_shot_splits --source /d/ModelNet/modelnet40_normal_resampled --out /d/ModelNetFewshot "
        "--points 64` draws other folds" in text
    )
