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
from tests.playground import CLASSES, CONFIGS, POINTS, SCAN_DATA, SHAPENET, write_config
from tests.test_pretraining_models import UNUSED, drawn_mask, i2p_mae, points, without_gradient  # noqa: F401
from tools import ablation
from tools.ablation import SETTINGS, Figures, Setting, draw, read_text, summarise
from utils.config import load_config, save_config

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
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS) == 7
    assert Path(f"{SETTINGS[-1].name}.yaml").stem == SETTINGS[-1].name
    assert {s.mask_temperature for s in SETTINGS if s.losses == "both"} == {math.inf, 1, 0.1, 0.01, 0.001}
    assert {s.losses for s in SETTINGS if s.mask_temperature == 1} == {"3d", "2d", "both"}


@pytest.fixture
def table():
    return {
        "untrained": [Figures(20.0, None), Figures(22.0, None)],
        Setting(math.inf, "both"): [Figures(30.0, 0.2), Figures(34.0, 0.22)],
        Setting(1.0, "both"): [Figures(31.0, 0.25), Figures(31.0, 0.25)],
        Setting(1.0, "3d"): [Figures(29.0, 0.25), Figures(33.0, 0.25)],
    }


def test_rows_hold_mean_and_deviation(table):
    rows = summarise(table)
    assert rows[0] == ["untrained", "–", "21.0 ± 1.0", "20.0 22.0", "–"]
    assert rows[1] == ["random", "both", "32.0 ± 2.0", "30.0 34.0", "21.0 ± 1.0"]
    assert summarise({key: runs[:1] for key, runs in table.items()})[2][2:] == ["31.0", "31.0", "25.0"]


def test_the_picture_is_drawn(table, tmp_path):
    draw(table, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_means_and_deviations_of_each_setting(table, monkeypatch):
    shown = []

    def read(figure, path):
        for axis in figure.axes:
            (means, _, (bars,)) = axis.containers[0].lines
            half = [(top - bottom) / 2 for (_, bottom), (_, top) in bars.get_segments()]
            ticks = [label.get_text() for label in axis.get_xticklabels()]
            shown.append((axis.get_title(), axis.get_xlabel(), ticks, list(means.get_ydata()), pytest.approx(half)))

    monkeypatch.setattr("tools.evaluation.figures.save_figure", read)
    draw(table, Path("picture.png"))
    accuracy = ("linear SVM, %", "mask temperature", ["random", "1"], [32.0, 31.0], [2.0, 0.0])
    saliency = ("saliency held by visible tokens, %", "mask temperature", ["random", "1"], [21.0, 25.0], [1.0, 0.0])
    assert shown == [accuracy, saliency, ("linear SVM, %", "losses", ["both", "3d"], [31.0, 31.0], [0.0, 2.0])]


def test_a_document_needs_a_place_for_the_figures(tmp_path):
    (tmp_path / "notes.md").write_text("# Notes\n")
    with pytest.raises(ValueError, match=r"notes\.md has no line '## Figures'"):
        read_text(tmp_path / "notes.md")
    assert read_text(ROOT / "docs/ABLATION.md").endswith("\n")


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

    monkeypatch.setattr(ablation, "CONFIG", Path("cfgs/ablation.yaml"))
    monkeypatch.setattr(ablation, "SETTINGS", (Setting(math.inf, "both"),))
    monkeypatch.setattr("datasets.synthetic.write_demo", write_demo)
    monkeypatch.setattr(ablation, "launch", launch)
    return commands


@pytest.mark.filterwarnings("ignore:the 2D teacher is untrained")
def test_the_whole_comparison_and_that_finished_runs_are_not_repeated(small, capsys):
    document = Path("notes.md")
    document.write_text("# Notes\n\n## Figures\n\nold\n")
    arguments = ["--seeds", "3", "--write", "notes.md"]
    assert ablation.main(arguments) == 0
    run = Path("experiments/ablation/temperature-inf-both/seed3")
    history = json.loads((run / "results.json").read_text())["pre-training"]["history"]
    figures = Figures(**json.loads((run / "figures.json").read_text()))
    assert figures.visible_saliency == history[-1]["visible_saliency"]
    assert figures.accuracy in [pytest.approx(100 * hits / 9) for hits in range(10)]
    assert load_config(run / "config.yaml").model.mask_temperature == math.inf
    text = document.read_text()
    assert text.startswith("# Notes\n\n## Figures\n\nMade by `python -m tools.ablation --seeds 3 --write notes.md`")
    assert "old" not in text
    assert f"| random | both | {figures.accuracy:.1f} |" in text
    assert Path("notes.png").exists()

    assert ablation.main(arguments) == 0  # everything is read
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
    monkeypatch.setattr(ablation, "measure_untrained", lambda *_: Figures(20.0, None))
    monkeypatch.setattr(ablation, "measure", measure)
    settings = (Setting(math.inf, "both"), Setting(1.0, "2d"))
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
    runs = [Figures(40.0, 0.25), Figures(41.0, 0.25)]
    assert table == {"untrained": [Figures(20.0, None)] * 2, settings[0]: runs, settings[1]: runs}


@pytest.mark.filterwarnings("ignore:the 2D teacher is untrained")
def test_a_run_of_another_config_is_not_taken_for_this_one(small):
    run = Path("experiments/ablation/temperature-inf-both/seed0")
    run.mkdir(parents=True)
    shutil.copy("cfgs/ablation.yaml", run / "config.yaml")  # of temperature 1
    with pytest.raises(ValueError, match=r"seed0 holds a run of another config; move it away"):
        ablation.main(["--seeds", "0"])
    assert small == []


def test_a_failed_run_ends_the_command_with_its_code(small, monkeypatch):
    monkeypatch.setattr(ablation, "launch", lambda command: 75)
    with pytest.raises(SystemExit) as stopped:
        ablation.main(["--seeds", "0", "--quick"])
    assert stopped.value.code == 75
    assert not list(Path("experiments/ablation-quick").glob("temperature*/*/figures.json"))
