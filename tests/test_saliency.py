"""`python -m tools.saliency`: that its picture is of the two teachers and the shapes that it names."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.synthetic import sample_shape
from models import build_model
from models.teacher import build_teacher
from tests.playground import CONFIGS, changed, write_config
from tools import saliency
from utils.config import load_config

pytestmark = pytest.mark.filterwarnings("ignore:the 2D teacher is untrained")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a config whose teacher has weights of its own, those of an untrained one times two."""
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    model = CONFIGS["pre-training/i2p"]["model"]
    settings = {**model["clip_config"], "pretrained": "tower.safetensors"}
    tower = build_teacher(**model["clip_config"]).visual
    save_file(
        {f"visual.{key}": (2 * value).contiguous() for key, value in tower.state_dict().items()}, "tower.safetensors"
    )
    write_config(tmp_path, "i2p", changed(CONFIGS["pre-training/i2p"], "model.clip_config", settings))
    return tmp_path


def drawn(monkeypatch, *argv: object) -> tuple[list, list]:
    """Call the command; return the panels of its figure, and the (N, 3) points and (N, 4) colours of each cloud."""
    panels, clouds = [], []

    def read(figure, path):
        panels.extend(figure.axes)
        path.touch()

    monkeypatch.setattr("tools.evaluation.figures.save_figure", read)
    monkeypatch.setattr("tools.evaluation.figures._scatter", lambda axis, *given: clouds.append(given))
    assert saliency.main([str(arg) for arg in ("--config", "cfgs/i2p.yaml", "-o", "out/a.png", *argv)]) == 0
    assert Path("out/a.png").exists()
    return panels, clouds


def test_the_picture_is_of_the_untrained_and_of_the_trained_teacher(here, monkeypatch, capsys):
    panels, coloured = drawn(monkeypatch, "--classes", "mug", "chair", "--points", 128)
    assert capsys.readouterr().out.startswith("picture  out/a.png")
    assert len(panels) == 2 * (3 + 2 * (3 + 1))
    of_teachers = [[name] * 3 + [f"{name}, cloud"] for name in ("untrained", "trained")]
    titles = ["side 1", "side 2", "side 3", *of_teachers[0], *of_teachers[1]]
    assert [panel.get_title() for panel in panels] == [*titles, *[""] * 11]
    assert [panel.texts[0].get_text() for panel in panels if panel.texts] == ["mug", "chair"]

    clouds = [torch.from_numpy(sample_shape(name, 0, 128, 0, "saliency").points) for name in ("mug", "chair")]
    points = torch.stack(clouds)
    config = load_config("cfgs/i2p.yaml").model
    for first, source in ((3, "untrained"), (7, "tower.safetensors")):
        model = build_model({**config, "clip_config": {**config.clip_config, "pretrained": source}}).eval()
        views = model.look(points)
        for shape in range(2):
            row = panels[11 * shape :]
            for view in range(3):
                image = views.saliency.unflatten(0, (3, 2))[view, shape]
                size = (model.teacher.image_size,) * 2
                enlarged = torch.nn.functional.interpolate(image[None, None], size, mode="bicubic")[0, 0]
                np.testing.assert_allclose(row[first + view].images[1].get_array(), enlarged, atol=1e-6)
            values = views.saliency_at(points)[shape]
            cloud, colours = coloured[2 * shape + (first == 7)]
            assert torch.equal(cloud, points[shape])
            bright = colours[:, :3].sum(1)[values.argsort()]  # grows along inferno
            assert (np.diff(bright) > -0.02).all()
            assert bright[-1] - bright[0] > 2


def test_files_of_ones_own_are_shown(here, monkeypatch):
    clouds = np.random.default_rng(0).normal(size=(2, 64, 3)).astype(np.float32)
    for name, cloud in zip("ab", clouds, strict=True):
        np.save(f"{name}.npy", cloud)
    panels, _ = drawn(monkeypatch, "a.npy", "b.npy", "--shapes", 1, "--points", 64)
    assert len(panels) == 11
    assert panels[0].texts[0].get_text() == "a.npy"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-o", "a.jpg"], "--output is a.jpg; its name must end in .png"),
        (["--classes", "unicorn"], "unicorn"),
        (["missing.ply"], "INPUT missing.ply does not exist"),
    ],
)
def test_what_cannot_be_drawn_is_refused(here, capsys, argv, message):
    with pytest.raises((SystemExit, ValueError, FileNotFoundError)) as refused:
        saliency.main(["--config", "cfgs/i2p.yaml", "-o", "a.png", *argv])
    assert message in capsys.readouterr().err + str(refused.value)
    assert not Path("a.png").exists()


def test_a_config_without_a_teacher_is_refused(here):
    write_config(here, "m2ae", CONFIGS["pre-training/m2ae"])
    with pytest.raises(ValueError, match=r"cfgs/m2ae\.yaml has no 2D teacher \(model\.clip_config\.visual_encoder\)"):
        saliency.main(["--config", "cfgs/m2ae.yaml", "-o", "a.png"])
