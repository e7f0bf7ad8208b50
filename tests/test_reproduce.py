"""`python -m tools.reproduce`: every published figure has a command, and what runs lands beside it."""

import importlib
import json
from pathlib import Path

import pytest

from tools import (
    runner_finetune,
    runner_part_segmentation,
    runner_pretrain,
    runner_profile,
    runner_room_segmentation,
    runner_test,
    runner_test_bank,
    runner_test_svm,
)
from tools.evaluation import reproduction
from tools.evaluation.paper_results import DATA_SETS, PUBLISHED, ROWS, Row
from tools.evaluation.reproduction import Setup, plan
from tools.reproduce import main
from utils.config import load_config
from utils.parser import parse_args

ROOT = Path(__file__).parent.parent
ROW = {row.key: row for row in ROWS}
CASES = [(row, way) for row in ROWS for way in row.ways]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with the shipped configs."""
    (tmp_path / "cfgs").symlink_to(ROOT / "cfgs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def publish(row: Row, data: Path = Path("data")) -> None:
    """Put the data sets of a row in place."""
    for folder, files, _ in (DATA_SETS[name] for name in row.data):
        for file in files:
            touch(data / folder / file.split("|")[0].replace("*", "0"))


def leave(row: Row, mode: str, results: object, checkpoint: str = "ckpt-best.pth") -> Path:
    """Write what a run of main.py leaves; returns its folder."""
    folder = reproduction.run_folder(row)
    touch(folder / "results.json", json.dumps({mode: results}))
    touch(folder / checkpoint)
    return folder


def status(key: str, **setup) -> str:
    return next(outcome.status for outcome in plan(ROWS, Setup(**setup)) if outcome.row.key == key)


def leaves(tree: object, path: str) -> list[str]:
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in leaves(value, f"{path}.{key}")]
    return [] if isinstance(tree, str) else [path]


# the rows


def test_every_published_figure_of_the_methods_has_a_row():
    methods = ("I2P-MAE", "Point-M2AE", "Point-MAE", "Point-BERT", "ACT", "Point-NN")
    figures = [leaf for method in methods for leaf in leaves(PUBLISHED[method], method)]
    assert sorted(row.key for row in ROWS) == sorted(key for key in figures if key not in WITHOUT_A_CONFIG)


WITHOUT_A_CONFIG = {
    "ACT.pretrain_hours_1gpu",
    *(f"ACT.finetune.as_printed_in_the_I2P-MAE_readme.{name}" for name in ("scan_obj-bg", "scan_obj", "scan_pb")),
}


def test_every_method_names_its_source():
    methods = [entry for entry in PUBLISHED.values() if "params_M" in entry or "bank_unverified" in entry]
    assert len(methods) == 6
    assert all(entry["source"] for entry in methods)


@pytest.mark.parametrize(("row", "way"), CASES, ids=lambda case: getattr(case, "key", ""))
def test_every_command_parses_and_its_config_loads(row, way, here):
    weights = Path("ckpts", way.weights)
    if way.weights:
        touch(weights)
    args = parse_args(reproduction.command_of(way, Path(row.config), weights))
    config = load_config(args.config)
    names = {
        "I2P-MAE": ("Point_M2AE_SEG",) if "part_seg" in row.key else ("I2P_MAE",),
        "Point-M2AE": ("Point_M2AE",),
        "Point-MAE": ("Point_MAE", "PointTransformer"),
        "Point-BERT": ("Point_BERT", "PointTransformer"),
        "ACT": ("PointTransformer", "ACT_SEG"),
        "Point-NN": ("Point_NN",),
    }
    assert config.model.NAME.startswith(names[row.method])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_data_are_looked_for_where_the_config_reads_them(row, here):
    config = load_config(row.config)
    read = {
        value
        for entry in (config.dataset.values() if row.data else [])
        for value in entry.values()
        if isinstance(value, str) and value.startswith("data/")
    }
    folders = {str(Path("data", DATA_SETS[name].folder)) for name in row.data}
    assert {folder for folder in folders if any(path.startswith(folder) for path in read)} == folders
    assert all(any(path.startswith(folder) for folder in folders) for path in read)


def test_figures_are_read_under_the_modes_that_the_runners_write():
    parts, tuning = runner_part_segmentation.MODE, runner_finetune.MODE
    written = {runner_pretrain.MODE, runner_test_svm.MODE, runner_test.MODE, runner_profile.MODE}
    written |= {tuning, f"few-shot {tuning}", parts, f"{parts}, {tuning}"}
    rooms = runner_room_segmentation.MODE
    written |= {rooms, f"{rooms}, {tuning}"}
    bank = runner_test_bank.MODE
    written |= {bank, f"few-shot {bank}", importlib.import_module("tools.runner_part_prototypes").MODE}
    assert {way.mode for _, way in CASES} == written


def test_figures_without_a_source_are_called_unverified():
    titles = {key: row.title for key, row in ROW.items() if key.startswith("Point-NN.")}
    assert len(titles) == 10
    assert {key for key, title in titles.items() if "unverified" not in title} == {
        "Point-NN.part_seg.paper_mIoU", "Point-NN.part_seg.script_mIoU",
    }  # fmt: skip


def test_a_bank_is_measured_by_the_published_protocol(here, launched):
    publish(ROW["Point-NN.bank_unverified.modelnet40"])
    publish(ROW["Point-NN.fewshot_unverified.5w10s"])
    assert main(["--only", "Point-NN.bank_unverified.modelnet40", "Point-NN.fewshot_unverified.5w10s"]) == 0
    assert [" ".join(command) for command in launched] == [
        "--config cfgs/point-nn/modelnet40.yaml --test_bank --select_on test --exp_name reproduce",
        "--config cfgs/point-nn/few-shot.yaml --test_bank --select_on test --way 5 --shot 10 --exp_name reproduce",
    ]
    entries = written()
    assert entries["Point-NN.bank_unverified.modelnet40"]["published"] == 81.8
    assert entries["Point-NN.bank_unverified.modelnet40"]["ours"] == 80.5
    assert entries["Point-NN.fewshot_unverified.5w10s"]["ours"] == [89.0, 6.5]


def test_figures_by_others_stand_beside_the_published_ones():
    assert ROW["Point-M2AE.finetune.scan_pb"].remeasured == 86.54
    assert ROW["Point-M2AE.part_seg.class_mIoU"].remeasured == 84.6
    assert ROW["Point-M2AE.svm.modelnet40"].remeasured is None
    assert ROW["I2P-MAE.finetune.scan_pb"].remeasured is None


# what is there and what is missing


def test_the_files_that_are_looked_for_are_the_published_ones():
    lists = [f"train_test_split/shuffled_{split}_file_list.json" for split in ("train", "val", "test")]
    hardest = "main_split/{}_objectdataset_augmentedrot_scale75.h5"
    assert {name: list(data.files) for name, data in DATA_SETS.items() if not name.startswith("few-shot")} == {
        "ShapeNet-55": ["ShapeNet-55/train.txt", "shapenet_pc/*.npy|shapenet_pc.packed/index.json"],
        "ModelNet40 (SVM)": ["ply_data_train*.h5", "ply_data_test*.h5"],
        "ModelNet40": [
            "modelnet40_shape_names.txt",
            "modelnet40_train_8192pts_fps.dat|modelnet40_train.txt",
            "modelnet40_test_8192pts_fps.dat|modelnet40_test.txt",
        ],
        "scan_obj-bg": ["main_split/training_objectdataset.h5", "main_split/test_objectdataset.h5"],
        "scan_obj": ["main_split_nobg/training_objectdataset.h5", "main_split_nobg/test_objectdataset.h5"],
        "scan_pb": [hardest.format("training"), hardest.format("test")],
        "ShapeNetPart": ["synsetoffset2category.txt", *lists],
        "S3DIS": [f"Area_{area}_*.npy" for area in (1, 2, 3, 4, 5, 6)],
    }


def test_what_is_missing_is_named_with_its_way_out(here, capsys):
    assert main(["--plan", "--only", "I2P-MAE.finetune.scan_pb"]) == 0
    text = capsys.readouterr().out
    data = "data/ScanObjectNN/main_split/training_objectdataset_augmentedrot_scale75.h5 and 1 more"
    assert f"missing: {data}, ckpts/scan_pb.pth; or else ckpts/pre-train.pth, --train" in text
    assert f"{data}: from hkust-vgd.github.io/scanobjectnn" in text
    assert "ckpts/scan_pb.pth: link in the README of ZrrSkywalker/I2P-MAE" in text
    assert main(["--plan", "--only", "Point-MAE.finetune.scan_pb"]) == 0
    assert "ckpts/point-mae_scan_pb.pth: link in the README of Pang-Yatian/Point-MAE" in capsys.readouterr().out
    assert [path.name for path in here.iterdir()] == ["cfgs"]


def test_with_data_and_weights_a_row_is_ready(here):
    row = ROW["I2P-MAE.finetune.scan_pb"]
    publish(row)
    assert status(row.key) == "missing: ckpts/scan_pb.pth; or else ckpts/pre-train.pth, --train"
    touch(here / "ckpts/scan_pb.pth")
    assert status(row.key) == "ready"


@pytest.mark.parametrize("ending", ["_8192pts_fps.dat", ".txt"])
def test_either_form_of_a_data_set_will_do(here, ending):
    folder = here / "data/ModelNet/modelnet40_normal_resampled"
    touch(folder / "modelnet40_shape_names.txt")
    touch(folder / f"modelnet40_train{ending}")
    assert reproduction.missing_data(ROW["I2P-MAE.finetune.modelnet40"], Path("data"))
    touch(folder / f"modelnet40_test{ending}")
    assert reproduction.missing_data(ROW["I2P-MAE.finetune.modelnet40"], Path("data")) == []


def test_generated_shapes_are_not_the_published_data(here):
    row = ROW["I2P-MAE.svm.scan_obj-bg"]
    publish(row)
    touch(here / "ckpts/pre-train.pth")
    assert status(row.key) == "ready"
    touch(here / "data/ScanObjectNN/SYNTHETIC.json")
    assert status(row.key) == "missing: data/ScanObjectNN as published (these are generated shapes)"


def test_weights_of_a_run_count_once_it_has_come_to_its_end(here):
    row = ROW["I2P-MAE.finetune.scan_pb"]
    publish(row)
    folder = leave(row, "test", {"accuracy": 1.0})
    assert "missing" in status(row.key)
    leave(row, "fine-tuning", {"best_accuracy": 90.0})
    (outcome,) = plan([row], Setup())
    assert outcome.status == "ready"
    assert outcome.command.endswith(f"--test --exp_name reproduce --ckpts {folder}/ckpt-best.pth")


def test_a_plan_to_train_counts_on_what_its_earlier_rows_make(here):
    for row in ROWS:
        publish(row)
    rows = [row for row in ROWS if row.method not in ("Point-BERT", "ACT")]  # no row of theirs pre-trains
    outcomes = {outcome.row.key: outcome for outcome in plan(rows, Setup(train=True))}
    assert {outcome.status for outcome in outcomes.values()} == {"ready"}
    own = "experiments/fine-tuning/modelnet40/reproduce/ckpt-best.pth"
    assert outcomes["I2P-MAE.finetune.modelnet40_vote"].command.endswith(f"--vote --exp_name reproduce --ckpts {own}")
    assert "--finetune_model" in outcomes["Point-M2AE.part_seg.class_mIoU"].command
    assert "--test" in outcomes["Point-M2AE.part_seg.instance_mIoU"].command


def test_released_weights_make_pre_training_needless(here):
    touch(here / "ckpts/pre-train.pth")
    assert status("I2P-MAE.pretrain_hours_1gpu") == "not needed: ckpts/pre-train.pth is there"


@pytest.mark.parametrize(
    ("key", "checkpoint", "begun"),
    [
        ("I2P-MAE.finetune.scan_pb", "ckpt-last.pth", True),
        ("I2P-MAE.fewshot.5w10s", "5way_10shot/fold0/ckpt-last.pth", True),
        ("I2P-MAE.fewshot.5w10s", "5way_20shot/fold0/ckpt-last.pth", False),
        ("I2P-MAE.svm.modelnet40", "ckpt-last.pth", False),
    ],
)
def test_training_that_has_begun_is_continued(here, key, checkpoint, begun):
    row = ROW[key]
    publish(row)
    touch(here / "ckpts/pre-train.pth")
    touch(reproduction.run_folder(row) / checkpoint)
    (outcome,) = plan([row], Setup(train=True))
    assert outcome.status == "ready"
    assert outcome.command.endswith("--resume") == begun


def test_a_row_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"--only I2P-MAE\.swm is in no key; keys are .*I2P-MAE\.svm\.modelnet40"):
        main(["--plan", "--only", "I2P-MAE.swm"])


def test_a_plan_ends_with_a_summary(here, capsys):
    row = ROW["I2P-MAE.svm.scan_obj-bg"]
    publish(row)
    touch(here / "ckpts/pre-train.pth")
    assert main(["--plan", "--only", "I2P-MAE.svm", "I2P-MAE.pretrain"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 figures: ready 1, not needed 1, missing 1"


# running


@pytest.fixture
def launched(monkeypatch):
    """Stand in for main.py: write results of every mode instead of measuring any; collect the command lines."""
    commands: list[list[str]] = []
    results = {
        "test": {"accuracy": 93.0, "vote": {"best_accuracy": 94.0}},
        "linear SVM": {"accuracy": 93.5},
        "part segmentation": {"class_mIoU": 85.0, "instance_mIoU": 87.0},
        "few-shot fine-tuning": {"settings": {"5-way 10-shot": {"best": {"mean": 96.5, "std": 2.0}}}},
        "pre-training": {"seconds": 7200.0},
        "memory bank": {"accuracy": 80.5},
        "few-shot memory bank": {"settings": {"5-way 10-shot": {"best": {"mean": 89.0, "std": 6.5}}}},
    }

    def launch(command: list[str]) -> int:
        commands.append(command)
        config = Path(command[1])
        touch(Path("experiments", config.parent.name, config.stem, "reproduce", "results.json"), json.dumps(results))
        return 0

    monkeypatch.setattr(reproduction, "launch", launch)
    return commands


def written() -> dict[str, dict]:
    (path,) = Path("experiments/reproduce").glob("*.json")
    return {entry["key"]: entry for entry in json.loads(path.read_text())}


def test_what_runs_lands_beside_the_published_figure(here, launched, capsys):
    keys = ["I2P-MAE.svm.modelnet40", "I2P-MAE.finetune.modelnet40", "I2P-MAE.fewshot.5w10s", "I2P-MAE.pretrain"]
    for key in [*keys[:3], "I2P-MAE.pretrain_hours_1gpu"]:
        publish(ROW[key])
    touch(here / "ckpts/modelnet40.pth")
    touch(here / "ckpts/pre-train.pth")
    assert main(["--train", "--only", *keys]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split("  ")[0]: line.split() for line in lines if line.startswith("I2P-MAE: ")}
    assert table["I2P-MAE: linear SVM, modelnet40"][4:7] == ["93.35", "93.5", "+0.15"]
    assert table["I2P-MAE: fine-tuning, modelnet40"][3:6] == ["93.67", "93", "-0.67"]
    assert table["I2P-MAE: fine-tuning, modelnet40, best of 49 votes"][7:10] == ["94.06", "94", "-0.06"]
    assert table["I2P-MAE: few-shot, 5-way 10-shot"][4:11] == ["97.0", "±", "1.8", "96.5", "±", "2.0", "-0.50"]
    entries = written()
    flags = "--test_svm modelnet40 --exp_name reproduce --ckpts ckpts/pre-train.pth"
    assert entries["I2P-MAE.svm.modelnet40"] == {
        "key": "I2P-MAE.svm.modelnet40",
        "published": 93.35,
        "remeasured": None,
        "ours": 93.5,
        "command": f"python main.py --config cfgs/linear-svm/modelnet40.yaml {flags}",
        "status": "measured with ckpts/pre-train.pth",
    }
    assert entries["I2P-MAE.fewshot.5w10s"]["ours"] == [96.5, 2.0]
    assert entries["I2P-MAE.pretrain_hours_1gpu"]["status"] == "not needed: ckpts/pre-train.pth is there"
    (document,) = Path("experiments/reproduce").glob("*.md")
    cells = "linear SVM, modelnet40 | 93.35 |  | 93.5 | +0.15 | measured with ckpts/pre-train.pth |"
    assert f"| I2P-MAE: {cells}" in document.read_text()


def test_one_run_serves_all_its_figures(here, launched):
    publish(ROW["I2P-MAE.part_seg_unverified.class_mIoU"])
    touch(here / "ckpts/part-segmentation.pth")
    assert main(["--only", "I2P-MAE.part_seg"]) == 0
    assert len(launched) == 1
    assert [entry["ours"] for entry in written().values()] == [85.0, 87.0]


def test_a_run_that_fails_leaves_the_others_running(here, launched, monkeypatch):
    succeed = reproduction.launch
    monkeypatch.setattr(reproduction, "launch", lambda command: 1 if "modelnet40" in command[1] else succeed(command))
    for key in ("I2P-MAE.svm.modelnet40", "I2P-MAE.svm.scan_obj-bg"):
        publish(ROW[key])
    touch(here / "ckpts/pre-train.pth")
    assert main(["--only", "I2P-MAE.svm"]) == 1
    entries = written()
    assert entries["I2P-MAE.svm.modelnet40"]["status"] == "failed: exit code 1"
    assert entries["I2P-MAE.svm.modelnet40"]["ours"] is None
    assert entries["I2P-MAE.svm.scan_obj-bg"]["ours"] == 93.5


def test_nothing_trains_unless_asked_to(here, launched):
    for row in ROWS:
        publish(row)
    touch(here / "ckpts/pre-train.pth")
    assert main(["--only", "I2P-MAE.finetune", "I2P-MAE.fewshot"]) == 0
    assert launched == []
    assert all("--train" in entry["status"] for key, entry in written().items() if "vote" not in key)


def test_hours_are_those_of_our_own_pre_training(here, launched):
    row = ROW["Point-M2AE.pretrain_hours_1gpu"]
    publish(row)
    assert main(["--train", "--only", row.key]) == 0
    assert written()[row.key]["ours"] == 2.0


def test_data_elsewhere_are_read_there(here, launched):
    row = ROW["I2P-MAE.svm.scan_obj-bg"]
    publish(row, here / "disk")
    touch(here / "ckpts/pre-train.pth")
    assert main(["--data", str(here / "disk"), "--only", row.key]) == 0
    config = load_config(launched[0][1])
    assert Path(config.dataset.svm_test.ROOT) == here / "disk/ScanObjectNN"
    assert config.model == load_config(row.config).model
    assert written()[row.key]["ours"] == 93.5


def test_parameters_are_counted_on_the_spot(here, launched):
    assert main(["--only", "I2P-MAE.params_M"]) == 0
    assert launched == []
    assert written()["I2P-MAE.params_M"]["ours"] == pytest.approx(12.921935)


# the document


@pytest.fixture(scope="module")
def costs():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return reproduction.cost_table()


def test_the_document_ends_with_what_the_module_generates(costs, monkeypatch):
    monkeypatch.setattr(reproduction, "cost_table", lambda: costs)
    text, _, generated = (ROOT / "docs/RESULTS.md").read_text().partition("--docs -->\n\n")
    assert generated == reproduction.markdown(), "python -m tools.reproduce --docs makes what stands below its comment"
    assert "No accuracy measured with this code" in text


@pytest.mark.parametrize(
    ("config", "parameters", "macs"),
    [
        ("fine-tuning/scan_pb", 12_921_935, 7.81),
        ("fine-tuning/modelnet40", 12_830_056, 11.0),
        ("fine-tuning/point-m2ae_modelnet40", 12_830_056, 4.61),
        ("pre-training/point-m2ae", 15_255_856, None),
        ("pre-training/i2p-mae", 17_622_808, None),
        ("point-mae/scan_pb", 22_093_327, 4.76),
        ("point-mae/modelnet40", 22_099_752, 2.39),
        ("point-mae/pre-train", 29_006_432, 2.02),
        ("point-bert/pre-train", 78_566_683, None),
        ("point-bert/part-segmentation", 27_085_874, 10.42),
        ("point-bert/modelnet40", 22_065_960, 2.26),
        ("act/modelnet40_linear", 21_856_552, 2.39),
        ("act/s3dis", 27_020_301, 15.36),
    ],
)
def test_the_shipped_models_cost_what_the_document_says(costs, config, parameters, macs):
    (row,) = (row for row in costs[0] if row[0] == f"`cfgs/{config}.yaml`")
    assert int(row[1].replace(",", "")) == parameters
    if macs:
        assert float(row[2]) == pytest.approx(macs, rel=0.01)
    assert f"{parameters:,}" in (ROOT / "docs/RESULTS.md").read_text().partition("<!--")[0]
