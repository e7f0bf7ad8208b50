"""The settings that turn the 2D guidance, and the command that compares them."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import main
from datasets.synthetic import write_scanobjectnn, write_shapenet
from models import check_model_config
from models.masking import draw_mask
from tests.playground import CLASSES, CONFIGS, ENCODER, POINTS, SCAN_DATA, SHAPENET, write_config
from tests.test_pretraining_models import UNUSED, drawn_mask, i2p_mae, points, without_gradient  # noqa: F401
from tools import ablation, label_efficiency
from tools.ablation import SETTINGS, compare, draw, summarise
from tools.evaluation.gradients import gradient_norms
from tools.evaluation.guidance import BALANCED, POINT_M2AE, RELEASED, UNTRAINED, Figures, Setting
from tools.evaluation.paired import difference
from utils.config import load_config, save_config
from utils.tables import read_text, replace_section

ROOT = Path(__file__).parent.parent
HEADS = {"3d": "rec_head_3d", "2d": "rec_head_2d"}


# ---- the settings of the model ----


@pytest.mark.parametrize(("losses", "other"), [("3d", "2d"), ("2d", "3d")])
def test_a_loss_alone_is_the_whole_loss_and_trains_its_head_alone(points, losses, other):  # noqa: F811
    mask = torch.tensor([[True, True, False, True, True, True, False, True]] * 2)
    both, alone = i2p_mae().eval()(points, mask), i2p_mae(losses=losses).eval()(points, mask)
    assert alone.keys() == both.keys() - {f"loss_{other}"}
    assert alone["loss"] == alone[f"loss_{losses}"] == both[f"loss_{losses}"]

    model = i2p_mae(losses=losses)
    model(points)["loss"].backward()
    untrained = {f"{HEADS[other]}.{name}" for name in ("weight", "bias")}
    assert untrained <= without_gradient(model)
    assert not any(name.startswith((HEADS[losses], "mask_token")) for name in without_gradient(model))


def test_losses_are_weighed_in_the_sum_and_shown_as_they_are(points):  # noqa: F811
    mask = torch.tensor([[True, True, False, True, True, True, False, True]] * 2)
    plain, weighed = (i2p_mae(loss_weights=weights).eval()(points, mask) for weights in ([1, 1], [0.25, 3.0]))
    for name in ("loss_3d", "loss_2d"):
        assert torch.equal(plain[name], weighed[name])
    assert torch.equal(plain["loss"], i2p_mae().eval()(points, mask)["loss"])
    assert weighed["loss"].item() == pytest.approx(0.25 * plain["loss_3d"].item() + 3 * plain["loss_2d"].item())
    alone = i2p_mae(losses="2d", loss_weights=[0.25, 3.0]).eval()(points, mask)
    assert alone["loss"] == 3 * alone["loss_2d"]


@pytest.mark.parametrize("weights", [[1.0], [0.0, 1.0], [1.0, -1.0], [math.nan, 1.0], [1.0, math.inf]])
def test_weights_that_are_no_two_positive_numbers_are_refused(weights):
    with pytest.raises(
        ValueError, match="loss_weights must be two positive numbers, of the 3D and of the 2D loss, got"
    ):
        i2p_mae(loss_weights=weights)


def test_gradient_norms_are_of_each_loss_alone_without_its_head(points):  # noqa: F811
    model = i2p_mae(drop_path_rate=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    norms = gradient_norms(model, points, seed=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name in ("loss_3d", "loss_2d"):
        model.zero_grad()
        model(points, generator=torch.Generator().manual_seed(3))[name].backward()
        squares = [
            p.grad.double().pow(2).sum()
            for key, p in model.named_parameters()
            if p.grad is not None and not key.startswith("rec_head")
        ]
        assert norms[name] == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)
    assert norms["loss_3d"] != norms["loss_2d"]


def test_all_losses_have_the_same_weights():
    names = [set(i2p_mae(losses=losses).state_dict()) for losses in ("3d", "2d", "both")]
    assert names[0] == names[1] == names[2]


def test_unknown_losses_are_refused():
    with pytest.raises(ValueError, match="losses must be '3d', '2d' or 'both', got '4d'"):
        i2p_mae(losses="4d")
    clip = {"visual_encoder": None, "feat_dim": 8}
    with pytest.raises(ValueError, match=r"model\.losses is '4d'; expected .*'3d', '2d', 'both'"):
        check_model_config({"NAME": "I2P_MAE", "clip_config": clip, "losses": "4d"})


def test_an_infinite_temperature_masks_uniformly(points):  # noqa: F811
    expected = draw_mask(torch.zeros(2, 8), i2p_mae().num_visible, torch.Generator().manual_seed(0))
    drawn = {}
    for temperature in (math.inf, 1e-5):
        model = i2p_mae(mask_temperature=temperature)
        drawn[temperature] = drawn_mask(model, points, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn[math.inf], expected)
    assert not torch.equal(drawn[1e-5], expected)


def test_an_infinite_temperature_stands_in_a_config(tmp_path):
    config = load_config(ROOT / "cfgs/demo/ablation.yaml")
    save_config({**config, "model": {**config.model, "mask_temperature": math.inf}}, tmp_path / "config.yaml")
    assert ": .inf" in (tmp_path / "config.yaml").read_text()
    model = load_config(tmp_path / "config.yaml").model
    check_model_config(model)
    assert model.mask_temperature == math.inf


def test_a_temperature_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="mask_temperature must be positive, got nan"):
        i2p_mae(mask_temperature=math.nan)


# ---- the comparison ----


def test_every_setting_is_compared_once_and_has_a_folder_of_its_own():
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS) == 9
    assert Path(f"{SETTINGS[-1].name}.yaml").stem == SETTINGS[-1].name
    assert {s.mask_temperature for s in SETTINGS if s.weight_3d == 0.003} == {math.inf, 1, 0.01, 0.003}
    assert {s.weight_3d for s in SETTINGS if s[:3] == RELEASED[:3]} == {1, 0.1, 0.003}
    assert {s[:2] for s in SETTINGS} == {("untrained", "3d"), ("untrained", "2d"), ("trained", "2d"), RELEASED[:2]}
    assert load_config(ROOT / "cfgs/demo/pre-train.yaml").model.loss_weights == [BALANCED.weight_3d, 1]


def test_a_setting_is_a_config_of_its_own():
    config = load_config(ROOT / "cfgs/demo/ablation.yaml")
    trained = config.model.clip_config
    assert str(trained.pretrained).endswith(".safetensors")
    model = Setting("trained", "both", 0.01, 0.1).of(config)["model"]
    assert (model["losses"], model["mask_temperature"], model["loss_weights"]) == ("both", 0.01, [0.1, 1.0])
    assert model["clip_config"] == trained
    assert POINT_M2AE.of(config)["model"]["clip_config"] == {**trained, "pretrained": "untrained"}
    check_model_config(model)


def of_seeds(*runs):
    return dict(enumerate(runs))


@pytest.fixture
def table():
    norms = {"first": {"loss_3d": 0.25, "loss_2d": 2.0}, "last": {"loss_3d": 0.05, "loss_2d": 0.5}}
    return {
        UNTRAINED: of_seeds(Figures(20.0), Figures(22.0)),
        POINT_M2AE: of_seeds(
            Figures(30.0, 0.2, {when: {"loss_3d": 3.0} for when in ("first", "last")}), Figures(34.0, 0.22)
        ),
        RELEASED: of_seeds(Figures(31.0, 0.25, norms), Figures(37.0, 0.25, norms)),
        BALANCED: of_seeds(Figures(29.0, 0.25), Figures(33.0, 0.25)),
    }


def test_rows_hold_means_and_deviations(table):
    rows = summarise(table)
    assert rows[0] == ["untrained encoder", "–", "–", "21.0 ± 1.0", "20.0 22.0", "–", "–", "–"]
    assert rows[1] == ["none", "3d", "random", "32.0 ± 2.0", "30.0 34.0", "3 : –", "3 : –", "21.0 ± 1.0"]
    assert rows[2][:2] == ["trained", "both"]
    assert rows[2][5:7] == ["0.25 : 2", "0.05 : 0.5"]
    assert rows[3][:3] == ["trained", "both, 3D × 0.003", "temperature 1"]
    del table[POINT_M2AE][1]
    assert summarise(table)[1][3:5] == ["30.0", "30.0"]


def test_differences_are_of_runs_with_the_same_seed(table):
    """By Student's t with one degree of freedom, 12.706 standard errors to either side."""
    assert compare(table) == [
        ["the 3D loss alone beside no training", "+11.0 ± 1.0", "+10.0 +12.0", "-1.7 to +23.7"],
        ["3D × 0.003 beside 1 and 1", "-3.0 ± 1.0", "-2.0 -4.0", "-15.7 to +9.7"],
    ]
    del table[BALANCED][0]
    assert compare(table)[1][1:] == ["-4.0", "-4.0", "–"]
    del table[BALANCED]
    assert len(compare(table)) == 1


def test_a_difference_is_shown_where_its_interval_is_without_zero():
    """Five differences of mean 1 and standard deviation √2.5: 2.776 standard errors of 0.7071 to either side."""
    found = difference({4: 3.0, 0: -1.0, 1: 0.0, 2: 1.0, 3: 2.0, 9: 50.0}, dict.fromkeys(range(5), 0.0))
    assert found.values == (-1.0, 0.0, 1.0, 2.0, 3.0)
    assert found.interval == pytest.approx((1 - 1.96324, 1 + 1.96324), abs=1e-4)
    assert (str(found), found.shown) == ("+1.0 ± 0.7", False)
    assert difference({seed: value + 1 for seed, value in enumerate(found.values)}, dict.fromkeys(range(5), 0.0)).shown
    assert difference(dict.fromkeys(range(5), 0.0), {seed: v + 1 for seed, v in enumerate(found.values)}).shown
    assert (str(difference({0: 2.0}, {0: 5.0})), difference({0: 2.0}, {0: 5.0}).shown) == ("-3.0", False)
    assert difference({0: 2.0}, {1: 5.0}) is None


def test_every_setting_has_a_part_in_a_comparison():
    assert {setting for pair in ablation.PAIRS.values() for setting in pair} == {UNTRAINED, *SETTINGS}


def test_the_picture_is_drawn(table, tmp_path):
    draw(table, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_means_and_deviations_of_each_setting(table, monkeypatch):
    shown = []

    def read(figure, path):
        (axis,) = figure.axes
        (means, _, (bars,)) = axis.containers[0].lines
        half = [(right - left) / 2 for (left, _), (right, _) in bars.get_segments()]
        ticks = [label.get_text() for label in axis.get_yticklabels()]
        shown.append((ticks, list(means.get_xdata()), pytest.approx(half)))

    monkeypatch.setattr("tools.evaluation.figures.save_figure", read)
    draw(table, Path("picture.png"))
    ticks = ["none | 3d | random", "trained | both | temperature 1", "trained | both, 3D × 0.003 | temperature 1"]
    assert shown == [(ticks, [32.0, 34.0, 31.0], [2.0, 3.0, 2.0])]


def test_a_document_needs_a_place_for_the_figures(tmp_path):
    (tmp_path / "notes.md").write_text("# Notes\n")
    with pytest.raises(ValueError, match=r"notes\.md has no line '## Figures'"):
        read_text(tmp_path / "notes.md", "Figures")
    for heading in (ablation.HEADING, label_efficiency.HEADING):
        assert read_text(ROOT / "docs/ABLATION.md", heading)[0].endswith("\n")


def test_a_section_is_replaced_and_the_others_stay(tmp_path):
    document = tmp_path / "notes.md"
    document.write_text("# Notes\n\n## Figures\n\nold\n\n### Of old\n\n## More\n\ntext\n")
    replace_section(document, "Figures", "new")
    assert document.read_text() == "# Notes\n\n## Figures\n\nnew\n\n## More\n\ntext\n"
    replace_section(document, "More", "end")
    assert document.read_text() == "# Notes\n\n## Figures\n\nnew\n\n## More\n\nend\n"


def test_a_seed_is_given_once(capsys):
    with pytest.raises(SystemExit):
        ablation.main(["--seeds", "0", "0"])
    assert "--seeds: 0 0 repeats a seed" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "message"), [(None, "No such file"), ("# Title", "has no line '## Figures'")])
def test_a_document_that_cannot_take_the_figures_is_refused_at_once(tmp_path, capsys, text, message):
    if text:
        (tmp_path / "a.md").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        ablation.main(["--write", str(tmp_path / "a.md")])
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """One setting on tiny data, with main.py in this process; returns the command lines that were run."""
    monkeypatch.chdir(tmp_path)
    config = {**CONFIGS["pre-training/i2p"], "max_epoch": 1, "dataset": {"train": SHAPENET, **SCAN_DATA}}
    write_config(tmp_path, "ablation", config)
    commands = []

    def launch(command):
        commands.append(command)
        return main.main(command)

    def write_demo(_):
        write_shapenet("data", classes=CLASSES, train=4, test=1, num_points=128)
        write_scanobjectnn("data", classes=CLASSES, train=4, test=3, num_points=POINTS)

    monkeypatch.setattr("tools.evaluation.guidance.CONFIG", Path("cfgs/ablation.yaml"))
    monkeypatch.setattr(ablation, "SETTINGS", (RELEASED,))
    monkeypatch.setattr("datasets.synthetic.write_demo", write_demo)
    monkeypatch.setattr("tools.training.launch.launch", launch)
    return commands


@pytest.mark.filterwarnings("ignore:the 2D teacher is untrained")
def test_the_whole_comparison_and_that_finished_runs_are_not_repeated(small, capsys):
    document = Path("notes.md")
    document.write_text("# Notes\n\n## Figures\n\nold\n")
    arguments = ["--seeds", "3", "--write", "notes.md"]
    assert ablation.main(arguments) == 0
    run = Path("experiments/ablation/trained-both-temperature-1/seed3")
    history = json.loads((run / "results.json").read_text())["pre-training"]["history"]
    figures = Figures(**json.loads((run / "figures.json").read_text()))
    assert figures.visible_saliency == history[-1]["visible_saliency"]
    assert all(figures.gradients[when].keys() == {"loss_3d", "loss_2d"} for when in ("first", "last"))
    assert figures.gradients["first"] != figures.gradients["last"]
    assert figures.accuracy in [pytest.approx(100 * hits / 9) for hits in range(10)]
    assert load_config(run / "config.yaml").model.loss_weights == [1.0, 1.0]
    text = document.read_text()
    assert text.startswith("# Notes\n\n## Figures\n\nMade by `python -m tools.ablation --seeds 3 --write notes.md`")
    assert "old" not in text
    assert f"| trained | both | temperature 1 | {figures.accuracy:.1f} |" in text
    assert Path("notes.png").exists()

    assert ablation.main(arguments) == 0  # everything is read
    assert document.read_text() == text
    assert ablation.main([*arguments, "--finished"]) == 0
    assert document.read_text() == text
    assert len(small) == 1

    (run / "figures.json").unlink()
    assert ablation.main(arguments) == 0  # trained, and only to be probed
    assert (document.read_text(), len(small)) == (text, 1)

    for name in ("figures.json", "results.json"):
        (run / name).unlink()
    assert ablation.main(arguments) == 0  # interrupted before its end
    assert small[1] == [*small[0], "--resume"]

    for name in ("figures.json", "results.json", "ckpt-last.pth", "ckpt-previous.pth"):
        (run / name).unlink()
    assert ablation.main(arguments) == 0  # killed after its first best checkpoint, before a last one
    assert small[2] == small[0]


def test_the_forecast_is_of_what_is_left_at_the_pace_so_far(tmp_path, monkeypatch, caplog):
    """Four runs, one of them kept from an earlier call; each new one takes ten minutes."""
    clock = SimpleNamespace(now=1000.0)

    def measure(config, setting, seed, folder):
        if not (kept := ablation.figures_file(folder, setting.name, seed)).exists():
            clock.now += 600.0
            kept.parent.mkdir(parents=True)
        return Figures(40.0 + seed, 0.25)

    monkeypatch.setattr(ablation.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr("datasets.synthetic.write_demo", lambda _: None)
    monkeypatch.setattr(ablation, "measure_untrained", lambda *_: Figures(20.0))
    monkeypatch.setattr(ablation, "measure", measure)
    settings = (RELEASED, POINT_M2AE)
    monkeypatch.setattr(ablation, "SETTINGS", settings)
    kept = ablation.figures_file(tmp_path, settings[0].name, 1)
    kept.parent.mkdir(parents=True)
    kept.touch()
    with caplog.at_level("INFO", "tools.ablation"):
        table = ablation.measure_all({}, [0, 1], tmp_path, expected_seconds=120)
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 4 runs to do: about 6 minutes on two idle cores",
        "1 of 3 runs done, about 20 minutes left",
        "2 of 3 runs done, about 10 minutes left",
        "3 of 3 runs done, about 0 minutes left",
    ]
    runs = {0: Figures(40.0, 0.25), 1: Figures(41.0, 0.25)}
    assert table == {UNTRAINED: dict.fromkeys(runs, Figures(20.0)), RELEASED: runs, POINT_M2AE: runs}


@pytest.mark.filterwarnings("ignore:the 2D teacher is untrained")
def test_a_run_of_another_config_is_not_taken_for_this_one(small):
    run = Path("experiments/ablation/trained-both-temperature-1/seed0")
    run.mkdir(parents=True)
    shutil.copy("cfgs/ablation.yaml", run / "config.yaml")  # without the setting
    with pytest.raises(ValueError, match=r"seed0 holds a run of another config; move it away"):
        ablation.main(["--seeds", "0"])
    assert small == []


def test_a_failed_run_ends_the_command_with_its_code(small, monkeypatch):
    monkeypatch.setattr("tools.training.launch.launch", lambda command: 75)
    with pytest.raises(SystemExit) as stopped:
        ablation.main(["--seeds", "0", "--quick"])
    assert stopped.value.code == 75
    assert not list(Path("experiments/ablation-quick").glob("trained*/*/figures.json"))


def test_without_a_run_to_compare_with_there_is_no_table(small):
    with pytest.raises(ValueError, match="experiments/ablation has no finished run of"):
        ablation.main(["--finished"])
    assert small == []


# ---- label efficiency ----


@pytest.mark.filterwarnings("ignore:the 2D teacher is untrained")
def test_label_efficiency_probes_and_fine_tunes_what_was_pre_trained(small, monkeypatch, capsys):
    model = {"NAME": "I2P_MAE_ScanObjectNN", **ENCODER, "num_classes": len(CLASSES)}
    data = {split: SCAN_DATA[f"svm_{split}"] for split in ("train", "test")}
    tuning = {**CONFIGS["fine-tuning/modelnet"], "model": model, "dataset": data, "total_bs": 4}
    write_config(Path(), "tuning", tuning)
    monkeypatch.setattr(label_efficiency, "CONFIG", Path("cfgs/tuning.yaml"))
    monkeypatch.setattr(label_efficiency, "STARTS", {"scratch": None, "I2P-MAE": RELEASED})
    monkeypatch.setattr(label_efficiency, "PAIRS", (("I2P-MAE", "scratch"),))
    monkeypatch.setattr(label_efficiency, "UPDATES", 2)
    write = write_scanobjectnn
    monkeypatch.setattr(
        "datasets.synthetic.write_scanobjectnn",
        lambda root, train, **_: write(root, classes=CLASSES, train=train, test=2, num_points=POINTS),
    )
    document = Path("notes.md")
    document.write_text("# Notes\n\n## Label efficiency\n")
    arguments = ["--seeds", "3", "--labels", "2", "1", "--write", "notes.md"]
    assert label_efficiency.main(arguments) == 0
    text = document.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == "| measure | start | 1 a class | 2 a class |"
    assert [row.split(" | ")[:2] for row in rows if "---" not in row and "measure" not in row] == [
        ["| linear SVM", "scratch"],
        ["| linear SVM", "I2P-MAE"],
        ["| fine-tuned", "scratch"],
        ["| fine-tuned", "I2P-MAE"],
        ["| linear SVM", "I2P-MAE − scratch"],
        ["| fine-tuned", "I2P-MAE − scratch"],
    ]
    assert Path("label-efficiency.png").exists()
    modes = [next((flag for flag in command if flag.endswith("_model")), "pre-train") for command in small]
    assert modes == ["--scratch_model"] * 2 + ["pre-train"] + ["--finetune_model"] * 2
    run = Path("experiments/label-efficiency/i2p-mae-2/seed3")
    figures = json.loads((run / "figures.json").read_text())
    assert figures["fine-tuned"] == json.loads((run / "results.json").read_text())["fine-tuning"]["final_accuracy"]
    assert load_config(run / "config.yaml").dataset.train.ROOT == "data/label-efficiency/2-a-class/ScanObjectNN"
    assert f"{figures['fine-tuned']:.1f}" in rows[5]

    assert label_efficiency.main(arguments) == 0  # everything is read
    assert (document.read_text(), len(small)) == (text, 5)


def test_differences_by_labels_are_bold_where_they_are_shown():
    seeds = range(3)
    table = {
        (measured, start): {1: {s: base + s for s in seeds}, 2: {s: base * (-1) ** s for s in seeds}}
        for measured in label_efficiency.MEASURES
        for start, base in (("scratch", 1.0), ("I2P-MAE", 4.0), ("Point-M2AE", 1.0))
    }
    rows = label_efficiency.compare(table)
    assert rows[0] == ["linear SVM", "I2P-MAE − scratch", "**+3.0 ± 0.0**", "+1.0 ± 2.0"]
    assert rows[2] == ["linear SVM", "Point-M2AE − scratch", "+0.0 ± 0.0", "+0.0 ± 0.0"]
    assert [row[0] for row in rows] == ["linear SVM"] * 3 + ["fine-tuned"] * 3


def test_few_labels_make_as_many_updates():
    for count, epochs in ((1, 250), (2, 125), (5, 50), (10, 25), (50, 5)):
        config = label_efficiency.fine_tuning(count)
        assert (config.total_bs, config.max_epoch + 1, config.scheduler.kwargs.epochs) == (15, epochs, epochs)
