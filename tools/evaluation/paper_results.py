"""The published figures of the systems that run here, what each needs, and its commands."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets.published import FOLDS, SHOTS, WAYS, fold_name
from tools.training.modes import PROFILE

PUBLISHED = json.loads(Path(__file__).with_name("paper_results.json").read_text())
REMEASURED = PUBLISHED["released_weights_remeasured_by_torch-pointcloud_0.0.18_single_pass"]


class DataSet(NamedTuple):
    """Files of a data set, as glob patterns under its folder, "|" between alternatives; and who publishes them."""

    folder: str
    files: tuple[str, ...]
    publisher: str


def _scan(folder: str, ending: str = "") -> DataSet:
    files = tuple(f"{folder}/{split}_objectdataset{ending}.h5" for split in ("training", "test"))
    return DataSet("ScanObjectNN", files, "hkust-vgd.github.io/scanobjectnn")


FEW_SHOT = {f"{way}w{shot}s": (way, shot) for way in WAYS for shot in SHOTS}
DATA_SETS = {
    "ShapeNet-55": DataSet(
        "ShapeNet55-34",
        ("ShapeNet-55/train.txt", "shapenet_pc/*.npy|shapenet_pc.packed/index.json"),
        "the authors of PoinTr",
    ),
    "ModelNet40 (SVM)": DataSet(
        "modelnet40_ply_hdf5_2048", ("ply_data_train*.h5", "ply_data_test*.h5"), "the authors of PointNet"
    ),
    "ModelNet40": DataSet(
        "ModelNet/modelnet40_normal_resampled",
        (
            "modelnet40_shape_names.txt",
            "modelnet40_train_8192pts_fps.dat|modelnet40_train.txt",
            "modelnet40_test_8192pts_fps.dat|modelnet40_test.txt",
        ),
        "the authors of PointNet++ (.dat files: of Point-BERT)",
    ),
    "scan_obj-bg": _scan("main_split"),
    "scan_obj": _scan("main_split_nobg"),
    "scan_pb": _scan("main_split", "_augmentedrot_scale75"),
    "ShapeNetPart": DataSet(
        "shapenetcore_partanno_segmentation_benchmark_v0_normal",
        (
            "synsetoffset2category.txt",
            *(f"train_test_split/shuffled_{split}_file_list.json" for split in ("train", "val", "test")),
        ),
        "the authors of PointNet++",
    ),
    "S3DIS": DataSet("stanford_indoor3d", tuple(f"Area_{area}_*.npy" for area in range(1, 7)), "Stanford, in a form"),
    **{
        f"few-shot {key}": DataSet(
            "ModelNetFewshot",
            tuple(fold_name(way, shot, fold) for fold in range(FOLDS)),
            "the authors of Point-BERT",
        )
        for key, (way, shot) in FEW_SHOT.items()
    },
}


class Way(NamedTuple):
    """One way to a figure.

    Attributes:
        flags: of main.py, beside the config, the weights and the run's name.
        mode: which entry of the run's results.json has the figure; "profile" writes none.
        field: where it stands in there.
        weights: file among the checkpoints that `--ckpts` names; "" for none.
        trains: whether it trains.
        makes: file among the checkpoints that its ckpt-best can stand in for; "" for none.
        unit: the figure is divided by this.
        part: pattern of the folders within the run's that hold its checkpoints.
    """

    flags: tuple[str, ...]
    mode: str
    field: tuple[str, ...]
    weights: str = ""
    trains: bool = False
    makes: str = ""
    unit: float = 1.0
    part: str = "."


@dataclass(frozen=True)
class Row:
    """A published figure and the ways to it, the best one first.

    Attributes:
        key: its place in paper_results.json, with points between the names.
        title: what it is, for the table.
        config: of main.py.
        data: names of `DATA_SETS`.
        ways: to the figure.
    """

    key: str
    title: str
    config: str
    data: tuple[str, ...]
    ways: tuple[Way, ...]

    @property
    def method(self) -> str:
        """Which paper's figure it is."""
        return self.key.split(".")[0]

    @property
    def published(self) -> Any:
        """The published figure; (mean, standard deviation) for few-shot."""
        return look_up(PUBLISHED, self.key.split("."))

    @property
    def remeasured(self) -> Any:
        """What others measured with the released weights, None if unknown."""
        _, kind, *name = self.key.split(".")
        return look_up(REMEASURED.get(self.method, {}), name if kind == "finetune" else [kind, *name])


def look_up(tree: Any, path: Sequence[str]) -> Any:
    """Follow names into nested mappings; None where there is nothing."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


class Method(NamedTuple):
    """A paper.

    Attributes:
        key: in paper_results.json.
        repository: where its released checkpoints are linked.
        name: of its configs for pre-training and part segmentation, or of the folder that holds all of its configs.
        prefix: of its other configs and of its checkpoints.
        cost_data: the fine-tuning config whose multiply-adds are compared with the published figure.
        part_key: part segmentation in paper_results.json.
        own_folder: whether its configs have a folder of their own.
        votes: what the published figure with voting is.
    """

    key: str
    repository: str
    name: str
    prefix: str
    cost_data: str = ""
    part_key: str = "part_seg"
    own_folder: bool = False
    votes: str = "best of 49 votes"

    @property
    def pretrained(self) -> str:
        """Its pre-training checkpoint."""
        return f"{self.prefix}pre-train.pth"

    def config(self, task: str, data: str = "") -> str:
        """Its config, without cfgs/ and .yaml, for a task and, where there are several, a data set."""
        if not self.own_folder:
            return f"{task}/{self.prefix}{data}" if data else f"{task}/{self.name}"
        names = {"pre-training": "pre-train", "linear-svm": f"linear-svm_{data}"}
        names |= dict.fromkeys(("fine-tuning", "memory-bank"), data)
        return f"{self.name}/{names.get(task, task)}"

    def row(self, key: str, title: str, config: str, data: Sequence[str], *ways: Way) -> Row:
        """Make a row of this method."""
        return Row(f"{self.key}.{key}", title, f"cfgs/{config}.yaml", tuple(data), ways)


def costs(method: Method) -> Iterator[Row]:
    """Parameters and multiply-adds."""
    parameters = Way(("--profile",), PROFILE, ("total", "parameters"), unit=1e6)
    macs = Way(("--profile",), PROFILE, ("total", "macs"), unit=1e9)
    yield method.row("params_M", "parameters, M", method.config("fine-tuning", "scan_pb"), [], parameters)
    yield method.row("gflops", "multiply-adds, G", method.config("fine-tuning", method.cost_data), [], macs)


def hours(method: Method) -> Iterator[Row]:
    """Hours of pre-training."""
    hours = Way((), "pre-training", ("seconds",), trains=True, makes=method.pretrained, unit=3600.0)
    data = ["ShapeNet-55", "ModelNet40 (SVM)"]
    yield method.row("pretrain_hours_1gpu", "pre-training, hours", method.config("pre-training"), data, hours)


def linear_svms(method: Method) -> Iterator[Row]:
    """Linear SVMs on frozen features."""
    section = "svm" if "svm" in PUBLISHED[method.key] else "svm_unverified"
    sources = {"modelnet40": ("modelnet40", "ModelNet40 (SVM)"), "scan_obj-bg": ("scan", "scan_obj-bg")}
    for key in PUBLISHED[method.key][section]:
        flag, data = sources[key]
        test = Way(("--test_svm", flag), "linear SVM", ("accuracy",), method.pretrained)
        title, config = f"linear SVM, {key}{doubt_of(section)}", method.config("linear-svm", key)
        yield method.row(f"{section}.{key}", title, config, [data], test)


def classifiers(method: Method) -> Iterator[Row]:
    """Fine-tuned classifiers."""
    for figure, value in PUBLISHED[method.key]["finetune"].items():
        if isinstance(value, dict):  # as others have printed them
            continue
        key = figure.removesuffix("_unverified").removesuffix("_vote")
        weights, config = f"{method.prefix}{key}.pth", method.config("fine-tuning", key)
        data = ["ModelNet40" if key.startswith("modelnet40") else key]
        if figure.endswith("_vote"):
            vote = Way(("--test", "--vote"), "test", ("vote", "best_accuracy"), weights)
            yield method.row(f"finetune.{figure}", f"fine-tuning, {key}, {method.votes}", config, data, vote)
            continue
        test = Way(("--test",), "test", ("accuracy",), weights)
        tune = Way(
            ("--finetune_model",), "fine-tuning", ("best_accuracy",), method.pretrained, trains=True, makes=weights
        )
        yield method.row(f"finetune.{figure}", f"fine-tuning, {key}{doubt_of(figure)}", config, data, test, tune)


def few_shot(method: Method) -> Iterator[Row]:
    """Few-shot classification, mean and standard deviation over ten folds."""
    for key, (way, shot) in FEW_SHOT.items():
        tune = Way(
            ("--finetune_model", "--way", str(way), "--shot", str(shot)),
            "few-shot fine-tuning",
            ("settings", f"{way}-way {shot}-shot", "best"),
            method.pretrained,
            trains=True,
            part=f"{way}way_{shot}shot/*",
        )
        config = method.config("few-shot", "modelnet40")
        yield method.row(f"fewshot.{key}", f"few-shot, {way}-way {shot}-shot", config, [f"few-shot {key}"], tune)


def part_segmentation(method: Method) -> Iterator[Row]:
    """Part segmentation, both means of the intersection over union."""
    weights = f"{method.prefix}part-segmentation.pth"
    config, mode = method.config("part-segmentation"), "part segmentation"
    for key in ("class_mIoU", "instance_mIoU"):
        test = Way(("--test",), mode, (key,), weights)
        tune = Way(
            ("--finetune_model",), f"{mode}, fine-tuning", ("best", key), method.pretrained, trains=True, makes=weights
        )
        title = f"{mode}, {key.replace('_', ' ')}{doubt_of(method.part_key)}"
        yield method.row(f"{method.part_key}.{key}", title, config, ["ShapeNetPart"], test, tune)


def room_segmentation(method: Method) -> Iterator[Row]:
    """Segmentation of whole rooms."""
    weights, mode = f"{method.prefix}s3dis.pth", "room segmentation"
    test = Way(("--test",), mode, ("mIoU",), weights)
    tune = Way(
        ("--finetune_model",), f"{mode}, fine-tuning", ("best", "mIoU"), method.pretrained, trains=True, makes=weights
    )
    yield method.row("s3dis.mIoU", f"{mode}, mIoU on area 5", method.config("s3dis"), ["S3DIS"], test, tune)


def memory_banks(method: Method) -> Iterator[Row]:
    """Classification by a memory bank, which learns nothing; γ is the best on the test split, as published."""
    test = Way(("--test_bank", "--select_on", "test"), "memory bank", ("accuracy",))
    for key in PUBLISHED[method.key]["bank_unverified"]:
        data = ["ModelNet40 (SVM)" if key == "modelnet40" else key]
        title, config = f"memory bank, {key} (unverified)", method.config("memory-bank", key)
        yield method.row(f"bank_unverified.{key}", title, config, data, test)


def few_shot_banks(method: Method) -> Iterator[Row]:
    """A memory bank for each few-shot task."""
    for key, (way, shot) in FEW_SHOT.items():
        test = Way(
            ("--test_bank", "--select_on", "test", "--way", str(way), "--shot", str(shot)),
            "few-shot memory bank",
            ("settings", f"{way}-way {shot}-shot", "best"),
        )
        title = f"few-shot, {way}-way {shot}-shot (unverified)"
        yield method.row(f"fewshot_unverified.{key}", title, method.config("few-shot"), [f"few-shot {key}"], test)


def part_prototypes(method: Method) -> Iterator[Row]:
    """Part segmentation by prototypes, the mean over the parts that a shape truly has."""
    test = Way(("--test_bank",), "part segmentation by prototypes", ("present_part_mIoU",))
    for key, by in (("paper_mIoU", "the paper"), ("script_mIoU", "the released script")):
        title = f"part segmentation, mIoU over parts present, by {by}"
        yield method.row(f"{method.part_key}.{key}", title, method.config("part-segmentation"), ["ShapeNetPart"], test)


def doubt_of(key: str) -> str:
    """What the title of a figure says more, by its key: whether no source was at hand."""
    return " (unverified)" if key.endswith("_unverified") else ""


TRAINED = (costs, hours, linear_svms, classifiers, few_shot, part_segmentation)
MATCHED = (memory_banks, few_shot_banks, part_prototypes)
METHODS = (
    Method("I2P-MAE", "ZrrSkywalker/I2P-MAE", "i2p-mae", "", "scan_pb", "part_seg_unverified"),
    Method("Point-M2AE", "ZrrSkywalker/Point-M2AE", "point-m2ae", "point-m2ae_", "modelnet40", "part_seg"),
    Method(
        *("Point-MAE", "Pang-Yatian/Point-MAE", "point-mae", "point-mae_", "scan_pb", "part_seg"),
        own_folder=True,
        votes="best of votes (published: of 299, here: of 49)",
    ),
)
POINT_BERT = Method(
    *("Point-BERT", "lulutang0608/Point-BERT", "point-bert", "point-bert_", "scan_pb"),
    own_folder=True,
    votes="best of votes (published: of 9, here: of 49)",
)
ACT = Method(
    *("ACT", "RunpeiDong/ACT", "act", "act_", "scan_pb"),
    own_folder=True,
    votes="best of votes (published: of 299, here: of 49)",
)
POINT_NN = Method("Point-NN", "ZrrSkywalker/Point-NN", "point-nn", "", own_folder=True)
REPOSITORIES = {method.key: method.repository for method in (*METHODS, POINT_BERT, ACT, POINT_NN)}
KINDS = [
    *((method, kind) for method in METHODS for kind in TRAINED),
    *((POINT_BERT, kind) for kind in (costs, linear_svms, classifiers, few_shot, part_segmentation)),
    *((ACT, kind) for kind in (costs, classifiers, few_shot, part_segmentation, room_segmentation)),
    *((POINT_NN, kind) for kind in MATCHED),
]
ROWS = tuple(row for method, kind in KINDS for row in kind(method))
