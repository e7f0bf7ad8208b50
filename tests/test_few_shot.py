"""Few-shot tasks: their reader, the command that draws them, the runs over all folds."""

import json
import logging
import pickle
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import main
from datasets import build_dataset
from datasets.few_shot_splits import main as draw
from datasets.few_shot_splits import write_folds
from datasets.synthetic import write_fewshot, write_modelnet
from datasets.transforms import AUGMENTATIONS
from datasets.untrusted import load_pickle
from tests.playground import files_of
from tools import runner_few_shot, runner_finetune, runner_test
from tools.runner_few_shot import Task, choose_tasks, summarise, table_of
from tools.training.builder import check_config
from utils.config import load_config
from utils.parser import parse_args

ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(0)
CLASSES = ["chair", "mug", "lamp"]


# ---------------------------------------------------------------------------------------------------- reader


def cloud(num_points=16):
    return (RNG.normal(size=(num_points, 6)) * 3 + 1).astype(np.float32)


def write_task(folder, content):
    path = folder / "ModelNetFewshot/2way_3shot/4.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def entry(folder, **others):
    return {
        "NAME": "ModelNetFewShot",
        "DATA_PATH": str(folder / "ModelNetFewshot"),
        "N_POINTS": 16,
        "NUM_CATEGORY": 40,
        "USE_NORMALS": False,
        "others": {"subset": "train", "way": 2, "shot": 3, "fold": 4, **others},
    }


@pytest.fixture
def content():
    return {
        "train": [(cloud(), label, name) for label, name in enumerate(("mug", "bed")) for _ in range(3)],
        "test": [(cloud(), np.array([label]), name) for label, name in ((1, "bed"), (0, "mug"), (1, "bed"))],
    }


@pytest.mark.parametrize("subset", ["train", "test"])
def test_items_are_the_files_clouds_on_the_unit_sphere(tmp_path, content, subset):
    write_task(tmp_path, content)
    dataset = build_dataset(entry(tmp_path, subset=subset))
    assert dataset.labels.tolist() == {"train": [0, 0, 0, 1, 1, 1], "test": [1, 0, 1]}[subset]
    assert dataset.class_names == ["mug", "bed"]
    for i, (raw, _, _) in enumerate(content[subset]):
        points, label = dataset[i]
        xyz = torch.from_numpy(raw[:, :3] - raw[:, :3].mean(axis=0))
        torch.testing.assert_close(points, xyz / xyz.norm(dim=1).max())
        assert type(label) is int
        assert label == dataset.labels[i]


def test_normals_stay_as_they_are(tmp_path, content):
    write_task(tmp_path, content)
    points, _ = build_dataset({**entry(tmp_path), "USE_NORMALS": True})[0]
    assert points.shape == (16, 6)
    np.testing.assert_array_equal(points[:, 3:], content["train"][0][0][:, 3:])


def test_changing_an_item_does_not_change_the_data_set(tmp_path, content):
    write_task(tmp_path, content)
    dataset = build_dataset(entry(tmp_path))
    before = dataset[0][0].clone()
    dataset[0][0].add_(1)
    assert torch.equal(dataset[0][0], before)


def damaged(content, place, value):
    """Replace one part of one training item: 0 its points, 1 its label."""
    item = list(content["train"][2])
    item[place] = value
    return {**content, "train": [*content["train"][:2], tuple(item), *content["train"][3:]]}


NOT_FINITE = np.full((16, 6), np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: list(c.values()), r"expected a pickled \{'train'.*clouds in 'train'"),
        (lambda c: {"test": c["test"]}, r"clouds in 'train'"),
        (lambda c: {**c, "train": []}, r"clouds in 'train'"),
        (
            lambda c: {**c, "train": [*c["train"][:5], c["train"][5][:2]]},
            r"train item 5 .*not \(points, label, class\)",
        ),
        (lambda c: damaged(c, 0, cloud(15)), r"train cloud 2: shape \(15, 6\); expected \(16, 6\)"),
        (lambda c: damaged(c, 0, NOT_FINITE), r"train cloud 2: row 0 .*not finite"),
        (lambda c: damaged(c, 0, "points"), r"train cloud 2: holds str"),
        (lambda c: damaged(c, 1, 2), r"label 2 of cloud 2; expected an integer from 0 to below 2"),
        (lambda c: damaged(c, 1, np.array([0, 1])), r"labels of \[1, 2\] numbers"),
        (lambda c: damaged(c, 1, 1), r"the 2 labels have \[2, 4\] train clouds; expected 3 of each"),
        (lambda c: {**c, "train": c["train"][:5]}, r"\[3, 2\] train clouds"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, change, message):
    path = write_task(tmp_path, change(content))
    with pytest.raises(ValueError, match=message) as refused:
        build_dataset(entry(tmp_path))
    assert str(path) in str(refused.value)


def test_a_class_without_test_clouds_is_refused(tmp_path, content):
    write_task(tmp_path, {**content, "test": content["test"][:1]})
    with pytest.raises(ValueError, match=r"\[0, 1\] test clouds; expected some of each"):
        build_dataset(entry(tmp_path, subset="test"))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"way": 0}, "way is 0"),
        ({"way": 41}, "way is 41; .* at most 40"),
        ({"shot": "3"}, "shot is '3'"),
        ({"fold": -1}, "fold is -1"),
        ({"subset": "val"}, "subset is 'val'; choose one of train, test"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, content, others, message):
    write_task(tmp_path, content)
    with pytest.raises(ValueError, match=message):
        build_dataset(entry(tmp_path, **others))


def test_a_missing_fold_is_named_with_the_ways_to_get_it(tmp_path, content):
    write_task(tmp_path, content)
    with pytest.raises(FileNotFoundError, match=r"2way_3shot/5\.pkl .*data/README\.md.*few_shot_splits") as refused:
        build_dataset(entry(tmp_path, fold=5))
    assert "choose of the folds that are there with --fold 4; see" in str(refused.value)
    write_task(tmp_path, content).with_name("10.pkl").touch()
    with pytest.raises(FileNotFoundError, match="with --fold 4 or 10; see"):
        build_dataset(entry(tmp_path, fold=5))
    with pytest.raises(FileNotFoundError) as refused:
        build_dataset(entry(tmp_path, shot=7))
    assert "--fold" not in str(refused.value)


# ---------------------------------------------------------------------------------------------------- drawing folds

SIZES = {"folds": 2, "num_points": 16, "test": 2, "ways": [2, 3], "shots": [1, 3]}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return write_modelnet(folder, classes=[*CLASSES, "sofa"], train=4, test=3, num_points=16)


def clouds_of(items):
    return [points.tobytes() for points, _, _ in items]


def test_drawn_folds_are_read_by_the_reader(source, tmp_path):
    written = write_folds(source, tmp_path / "ModelNetFewshot", **SIZES)
    assert len(written) == 8
    assert not list(tmp_path.rglob(".*"))
    for subset, per_class in (("train", 3), ("test", 2)):
        dataset = build_dataset(entry(tmp_path, way=3, shot=3, fold=1, subset=subset))
        assert np.bincount(dataset.labels).tolist() == [per_class] * 3
        assert len(set(dataset.class_names)) == 3


def test_no_cloud_is_drawn_twice_and_classes_are_right(source, tmp_path):
    splits = {}
    for subset in ("train", "test"):
        config = {"NAME": "ModelNet", "DATA_PATH": str(source), "N_POINTS": 16, "NUM_CATEGORY": 4, "USE_NORMALS": True}
        dataset = build_dataset({**config, "others": {"subset": subset}})
        splits[subset] = {
            dataset[i][0].numpy().tobytes(): dataset.class_names[dataset.labels[i]] for i in range(len(dataset))
        }
    for path in write_folds(source, tmp_path, **SIZES):
        task = load_pickle(path)
        for subset, items in task.items():
            drawn = clouds_of(items)
            assert len(set(drawn)) == len(drawn)
            assert [splits[subset][points] for points in drawn] == [name for _, _, name in items]
            assert len({(label, name) for _, label, name in items}) == len({label for _, label, _ in items})


def test_folds_depend_on_seed_setting_and_fold_alone(source, tmp_path):
    whole = {
        path.relative_to(tmp_path / "a"): path.read_bytes() for path in write_folds(source, tmp_path / "a", **SIZES)
    }
    one = write_folds(source, tmp_path / "b", **SIZES | {"ways": [3], "shots": [3]})[1]
    assert one.read_bytes() == whole[one.relative_to(tmp_path / "b")]
    assert len(set(whole.values())) == len(whole)
    other = write_folds(source, tmp_path / "c", seed=1, **SIZES)
    assert all(path.read_bytes() != whole[path.relative_to(tmp_path / "c")] for path in other)


def test_existing_folds_are_never_touched(source, tmp_path, caplog):
    published = tmp_path / "2way_3shot/1.pkl"
    published.parent.mkdir()
    published.write_text("published")
    with caplog.at_level(logging.INFO):
        written = write_folds(source, tmp_path, **SIZES)
    assert published.read_text() == "published"
    assert published not in written
    assert len(written) == 7
    assert "1 of 8 folds exist and stay as they are" in caplog.text
    assert write_folds(source, tmp_path, **SIZES) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": [5]}, "tasks of 5 classes.*has 4"),
        ({"shots": [5]}, "class chair .* has 4 clouds in its train split; 5 are needed"),
        ({"test": 4}, "has 3 clouds in its test split; 4 are needed"),
        ({"seed": -1}, "seed is -1"),
        ({"folds": 0}, "folds is 0"),
    ],
)
def test_nothing_is_written_where_some_task_cannot_be_drawn(source, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_folds(source, tmp_path / "out", **SIZES | change)
    assert not (tmp_path / "out").exists()


def test_a_missing_source_and_generated_folds_are_refused(source, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"shape_names\.txt.*--source"):
        write_folds(tmp_path / "nowhere", tmp_path / "out")
    generated = write_fewshot(tmp_path, classes=CLASSES, test=1, num_points=16, ways=[2], shots=[1], folds=1)
    with pytest.raises(ValueError, match=r"generated shapes .*--out"):
        write_folds(source, generated, **SIZES)


def test_the_command_draws_the_published_settings(tmp_path):
    source = write_modelnet(tmp_path / "source", train=20, test=1, num_points=8)
    draw(["--source", str(source), "--out", str(tmp_path), "--folds", "1", "--points", "8", "--test", "1"])
    names = [f"{way}way_{shot}shot/0.pkl" for way in (5, 10) for shot in (10, 20)]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*way*/*")) == sorted(names)


def test_the_command_reads_and_writes_where_the_shipped_configs_look(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_modelnet(Path("data"), train=20, test=1, num_points=8)
    draw(["--folds", "1", "--points", "8", "--test", "1"])
    assert sorted(path.name for path in Path("data/ModelNetFewshot").glob("*way*")) == [
        "10way_10shot", "10way_20shot", "5way_10shot", "5way_20shot"
    ]  # fmt: skip


def test_a_fold_has_twenty_test_clouds_a_class_unless_told_otherwise(tmp_path):
    source = write_modelnet(tmp_path / "source", train=10, test=20, num_points=8)
    write_folds(source, tmp_path, folds=1, num_points=8, ways=[5], shots=[10])
    content = load_pickle(tmp_path / "5way_10shot/0.pkl")
    assert [len(content[subset]) for subset in ("train", "test")] == [5 * 10, 5 * 20]


# ---------------------------------------------------------------------------------------------------- runs

CONFIG = {
    "optimizer": {"type": "AdamW", "kwargs": {"lr": 1e-3, "weight_decay": 0.05}},
    "scheduler": {"type": "CosLR", "kwargs": {"epochs": 3, "initial_epochs": 1}},
    "dataset": {
        subset: {
            "NAME": "ModelNetFewShot",
            "DATA_PATH": "data/ModelNetFewshot",
            "N_POINTS": 48,
            "NUM_CATEGORY": 40,
            "USE_NORMALS": False,
            "others": {"subset": subset},
        }
        for subset in ("train", "test")
    },
    "model": {
        "NAME": "I2P_MAE_ModelNet40",
        "num_classes": 3,
        "num_groups": [16, 8, 4],
        "group_sizes": [4, 4, 4],
        "encoder_dims": [12, 24, 48],
        "encoder_depths": [1, 1, 1],
        "num_heads": 3,
    },
    "npoints": 32,
    "total_bs": 4,
    "max_epoch": 1,
}
SETTINGS = ["2-way 3-shot", "3-way 3-shot"]


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with generated tasks and a small config."""
    folder = tmp_path_factory.mktemp("few-shot")
    write_fewshot(folder / "data", classes=CLASSES, test=3, num_points=48, ways=[2, 3], shots=[3], folds=2)
    (folder / "cfgs/few-shot").mkdir(parents=True)
    (folder / "cfgs/few-shot/tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def enter(playground, patch):
    """Make the playground the current folder, with two ways, one shot and two folds in place of the published ones."""
    patch.chdir(playground)
    patch.setattr(runner_few_shot, "WAYS", (2, 3))
    patch.setattr(runner_few_shot, "SHOTS", (3,))
    patch.setattr(runner_few_shot, "FOLDS", 2)
    return playground


@pytest.fixture
def here(playground, monkeypatch):
    return enter(playground, monkeypatch)


def run(exp_name, *flags, max_epoch=1, npoints=32, **values):
    """Run all folds, or those that `values` names."""
    mode = () if "--finetune_model" in flags or "--test" in flags else ("--scratch_model",)
    command = ["--config", "cfgs/few-shot/tiny.yaml", "--num_workers", "0", "--exp_name", exp_name, *mode, *flags]
    args = Namespace(**{**vars(parse_args([str(word) for word in command])), **values})
    config = load_config(args.config)
    config.update(max_epoch=max_epoch, npoints=npoints)
    check_config(config, args.config, runner_few_shot.MODE, runner_few_shot.REQUIRED)
    return runner_few_shot.run(config, args, (runner_test if args.test else runner_finetune).run)


def folder_of(exp_name):
    return Path("experiments/few-shot/tiny") / exp_name


@pytest.fixture(scope="module")
def ended(playground):
    """The results of an uninterrupted run over all folds."""
    with pytest.MonkeyPatch.context() as patch:
        enter(playground, patch)
        run("whole")
    return playground / folder_of("whole") / "results.json"


@pytest.fixture
def whole(here, ended):
    """The summary of that run, with its playground as the current folder."""
    summary = json.loads(ended.read_text())["few-shot training from scratch"]
    del summary["about"]  # holds the time
    return summary


def test_a_run_trains_every_fold_in_its_own_folder(whole):
    assert list(whole["settings"]) == SETTINGS
    assert whole["protocol"] == "accuracy on ModelNetFewShot, test split"
    for name, setting in whole["settings"].items():
        assert setting["folds"] == [0, 1]
        way = int(name[0])
        for fold in (0, 1):
            part = folder_of("whole") / f"{way}way_3shot/fold{fold}"
            results = json.loads((part / "results.json").read_text())["training from scratch"]
            for which in ("best", "final"):
                assert setting[which]["accuracies"][fold] == results[f"{which}_accuracy"]
            assert setting["best"]["accuracies"][fold] >= setting["final"]["accuracies"][fold]
            assert load_config(part / "config.yaml").dataset.test.others == {
                "subset": "test", "way": way, "shot": 3, "fold": fold,
            }  # fmt: skip
    table = (folder_of("whole") / "results.md").read_text()
    assert f"| {whole['protocol']} | {' | '.join(SETTINGS)} |\n| --- | --- | --- |\n" in table
    assert "| folds | 2 | 2 |" in table


def test_an_interrupted_run_resumes_to_the_same_table(whole, monkeypatch):
    augment = AUGMENTATIONS["scale_and_translate"]
    steps = iter(range(2 + 1))  # the first fold and one epoch of the second: an epoch has one full batch

    def interrupted(points, generator):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return augment(points, generator)

    with monkeypatch.context() as patch:
        patch.setitem(AUGMENTATIONS, "scale_and_translate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("interrupted")
    kept = folder_of("interrupted") / "2way_3shot/fold0/results.json"
    before = kept.stat().st_mtime_ns
    assert sum(1 for _ in folder_of("interrupted").glob("*/*/ckpt-last.pth")) == 2
    assert run("interrupted", "--resume") == whole
    assert kept.stat().st_mtime_ns == before
    assert (folder_of("interrupted") / "results.md").read_text() == (folder_of("whole") / "results.md").read_text()


def test_folds_run_one_by_one_make_the_same_table(whole):
    for fold in (1, 0):
        for way in (3, 2):
            summary = run("shared", way=way, fold=fold)
    assert summary == whole
    with pytest.raises(ValueError, match=r"shared/2way_3shot/fold1 already holds a run; add --resume"):
        run("shared", way=2, fold=1)


def test_a_run_is_refused_before_its_first_fold(here):
    run("half", way=2, fold=1)
    with pytest.raises(ValueError, match=r"half/2way_3shot/fold1 already holds a run"):
        run("half")
    assert not (folder_of("half") / "2way_3shot/fold0").exists()
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: .*nothing holds none of these folds"):
        run("nothing", "--resume")
    with pytest.raises(FileNotFoundError, match=r"2way_3shot/2\.pkl"):
        run("missing", way=2, fold=2)


def test_what_a_config_lacks_is_named_with_the_mode(here, capsys):
    config = {key: value for key, value in CONFIG.items() if key != "npoints"}
    Path("cfgs/few-shot/incomplete.yaml").write_text(yaml.safe_dump(config))
    assert main.main(["--config", "cfgs/few-shot/incomplete.yaml", "--scratch_model"]) == 1
    assert capsys.readouterr().err == (
        "error: cfgs/few-shot/incomplete.yaml has no 'npoints', which few-shot classification needs; choose another "
        "config of cfgs/ or another mode (--help)\n"
    )


def test_folds_that_have_not_begun_need_weights(whole, here):
    with pytest.raises(ValueError, match="4 folds have not begun"):
        run("unweighted", "--finetune_model", "--ckpts", "cfgs/few-shot/tiny.yaml", ckpts=None)


def test_the_log_of_the_run_has_every_table(whole):
    log = next(folder_of("whole").glob("*.log")).read_text()
    assert log.count("best epoch of each fold") == 4
    assert "epoch 1/1" not in log  # stands in the log of its fold


def test_finished_folds_of_another_config_are_named(here, caplog):
    run("changed", way=2, fold=0)
    run("changed", "--resume", way=2, fold=0)
    assert "another config" not in caplog.text
    run("changed", "--resume", way=2, fold=0, npoints=24)
    assert "changed/2way_3shot/fold0 was run with another config and stays as it is" in caplog.text


def test_finished_folds_stay_as_they_are(whole, caplog):
    before = files_of(folder_of("whole"))
    assert run("whole", "--resume") == whole
    assert "whole is finished: experiments/few-shot/tiny/whole/results.json stays as it is" in caplog.text
    with pytest.raises(ValueError, match=r"whole/2way_3shot/fold0 holds a run that began otherwise .*: seed 0 → 7; "):
        run("whole", "--resume", "--seed", 7)
    weights = folder_of("whole") / "3way_3shot/fold1/ckpt-last.pth"
    with pytest.raises(ValueError, match=r"mode training from scratch → fine-tuning; checkpoint none → "):
        run("whole", "--resume", "--finetune_model", "--ckpts", weights)
    assert files_of(folder_of("whole")) == before


def test_folds_of_one_table_share_what_they_kept(here, caplog):
    run("mixed", "--seed", 7, way=2, fold=0)
    with pytest.raises(ValueError, match=r"mixed/2way_3shot/fold0 holds .*: seed 7 → 0; "):
        run("mixed", "--seed", 0, way=2, fold=1)
    assert not (folder_of("mixed") / "2way_3shot/fold1").exists()
    run("mixed", way=2, fold=1)
    assert "as the run in experiments/few-shot/tiny/mixed/2way_3shot/fold0 began: --seed 7" in caplog.text
    for part in ("2way_3shot/fold0", "2way_3shot/fold1", "."):
        (results,) = json.loads((folder_of("mixed") / part / "results.json").read_text()).values()
        assert results["about"]["seed"] == 7


def test_a_fold_to_resume_is_compared_before_another_is_trained(here):
    run("later", "--seed", 7, way=3, fold=0)
    with pytest.raises(ValueError, match=r"later/3way_3shot/fold0 holds .*: seed 7 → 0; "):
        run("later", "--resume", "--seed", 0, max_epoch=2)
    assert not (folder_of("later") / "2way_3shot").exists()


def test_a_dry_run_tries_one_fold(here, monkeypatch):
    tried = []
    monkeypatch.setattr(runner_finetune, "run", lambda config, args, part: tried.append(part))
    run("dry", "--dry_run")
    assert tried == ["2way_3shot/fold0"]


def test_longer_training_continues_finished_folds(here):
    run("longer", way=2, fold=0)
    run("longer", "--resume", way=2, fold=0, max_epoch=2)
    results = json.loads((folder_of("longer") / "2way_3shot/fold0/results.json").read_text())
    assert results["training from scratch"]["final_epoch"] == 2


def test_the_table_is_printed_once_at_the_end(here, capsys):
    run("printed", way=2, max_epoch=0)
    first = capsys.readouterr().out.splitlines()
    assert [line.split() for line in first if line.startswith("folds ")] == [["folds", "2"]]
    run("printed", "--resume", way=2, max_epoch=0)
    assert capsys.readouterr().out.splitlines() == first


def test_testing_takes_one_fold_and_reproduces_its_accuracy(whole, here):
    checkpoint = folder_of("whole") / "3way_3shot/fold1/ckpt-last.pth"
    with pytest.raises(ValueError, match=r"one fold.*--way, --shot and --fold"):
        run("tested", "--test", "--ckpts", checkpoint, way=3)
    results = run("tested", "--test", "--ckpts", checkpoint, way=3, fold=1)
    assert results["accuracy"] == whole["settings"]["3-way 3-shot"]["final"]["accuracies"][1]


def test_flags_choose_before_the_config_and_the_rest_is_published():
    config = {"dataset": {"train": {"others": {"subset": "train", "shot": 20, "way": 5}}}}
    tasks = choose_tasks(config, Namespace(way=10, shot=None, fold=None))
    assert tasks == [Task(10, 20, fold) for fold in range(10)]
    everything = choose_tasks({"dataset": {"train": {}}}, Namespace(way=None, shot=None, fold=None))
    assert len(everything) == len(set(everything)) == 40


def test_the_table_is_mean_and_deviation_of_the_finished_folds(tmp_path):
    for part, best, final, epoch in [
        ("10way_20shot/fold0", 90.0, 80.0, 9),
        ("10way_20shot/fold10", 94.0, 90.0, 9),
        ("10way_20shot/fold2", 10.0, 10.0, 8),  # not finished
        ("5way_10shot/fold0", 50.0, 25.0, 9),
    ]:
        (tmp_path / part).mkdir(parents=True)
        results = {"protocol": "accuracy", "best_chosen_on": "the same split"}
        results |= {"best_accuracy": best, "final_accuracy": final, "final_epoch": epoch}
        (tmp_path / part / "results.json").write_text(json.dumps({"fine-tuning": results}))
    summary = summarise(tmp_path, "fine-tuning", 9)
    assert summary["settings"]["10-way 20-shot"] == {
        "folds": [0, 10],
        "best": {"accuracies": [90.0, 94.0], "mean": 92.0, "std": 2.0},
        "final": {"accuracies": [80.0, 90.0], "mean": 85.0, "std": 5.0},
    }
    rows, headers = table_of(summary)
    assert headers == ["accuracy", "5-way 10-shot", "10-way 20-shot"]
    assert rows == [
        ["best epoch of each fold (chosen on the same split)", "50.0 ± 0.0", "92.0 ± 2.0"],
        ["final epoch", "25.0 ± 0.0", "85.0 ± 5.0"],
        ["folds", "1", "2"],
    ]


@pytest.mark.parametrize(
    "path", [*sorted(ROOT.glob("cfgs/few-shot/*.yaml")), ROOT / "cfgs/demo/few-shot.yaml"], ids=lambda path: path.stem
)
def test_shipped_configs_have_what_a_run_needs(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(path)
    check_config(config, path, runner_few_shot.MODE, runner_few_shot.REQUIRED)
    assert config.max_epoch in (29, 150)
    assert config.total_bs <= 5 * 10  # the smallest task makes a full batch
