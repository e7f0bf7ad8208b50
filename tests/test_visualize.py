"""`python -m tools.visualize`: what its page shows is what the model says, and the page needs nothing but itself."""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sklearn.decomposition import PCA

from datasets import build_dataset
from datasets.synthetic import write_meshes, write_modelnet, write_shapenet, write_shapenetpart
from models import build_model
from tests.browser import CHROMIUM, Page, browser
from tests.playground import CLASSES, CONFIGS, POINTS, REPOSITORY, changed, write_config
from tools import visualize
from tools.evaluation import explain, page
from tools.evaluation.clouds import first_of_each, of_files, unseen_or_seen
from tools.evaluation.page import packed, unpacked
from utils.config import load_config

PRETRAIN, M2AE, TUNE, PARTS = "pre-training/i2p", "pre-training/m2ae", "fine-tuning/modelnet", "part-segmentation/small"
MAE = "point-mae/pre-train"
TRANSFORMER = {"trans_dim": 48, "encoder_dims": 48, "depth": 1, "decoder_depth": 1, "num_heads": 3}
POINT_MAE = {
    "NAME": "Point_MAE",
    "num_group": 16,
    "group_size": 8,
    "transformer_config": {**TRANSFORMER, "decoder_num_heads": 3},
}
ALL = {**CONFIGS, MAE: {**CONFIGS[PRETRAIN], "model": POINT_MAE}}

pytestmark = pytest.mark.filterwarnings("ignore:the 2D teacher is untrained")


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with small data sets, configs, and weights of each model as it is initialised."""
    folder = tmp_path_factory.mktemp("playground")
    write_shapenet(folder / "data", classes=CLASSES, train=2, test=2, num_points=128)
    write_modelnet(folder / "data", classes=CLASSES, train=1, test=3, num_points=128)
    write_shapenetpart(folder / "data", classes=["mug", "knife", "table"], train=1, test=2, num_points=96)
    write_meshes(folder / "data", classes=CLASSES[:2], train=1, test=3)
    for name in (PRETRAIN, M2AE, MAE, TUNE, PARTS):
        write_config(folder, name, ALL[name])
        torch.manual_seed(0)
        state = build_model(ALL[name]["model"]).state_dict()
        weights = weights_of(name, folder)
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"base_model": state}, weights)
    return folder


def weights_of(name: str, folder: Path = Path()) -> Path:
    return folder / f"ckpts/{name}.pth"


def show(name: str, *flags: object, output: str = "page") -> dict:
    """Write the page of a config's model, and return its content."""
    given = ["--config", f"cfgs/{name}.yaml", "--ckpts", weights_of(name), "-o", output, *flags]
    assert visualize.main([str(flag) for flag in given]) == 0
    return content_of(Path(output))


def content_of(folder: Path) -> dict:
    text = (folder / "index.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL)[1])


def section(content: dict, name: str) -> dict:
    return next(section for section in content["sections"] if section["id"] == name)


def layer_points(shape: dict, name: str, scene: int = 0) -> np.ndarray:
    layer = next(layer for layer in shape["layers"] if layer["name"] == name and scene in layer["scenes"])
    return unpacked(shape["points"][layer["points"]]).reshape(-1, 3)


def model_of(name: str) -> torch.nn.Module:
    model = build_model(ALL[name]["model"])
    model.load_state_dict(torch.load(weights_of(name), weights_only=True)["base_model"])
    return model.eval()


TAXONOMIES = {
    "03001627": [0, 1],
    "03636649": [4, 5],
    "03797390": [2, 3],
}  # places in the test list, of chair, lamp, mug
FIRST = [0, 4, 2, 1, 5, 3]  # the first of each, then the second of each


def unseen_points(count: int, seed: int = 0) -> torch.Tensor:
    entry = changed(
        CONFIGS[PRETRAIN]["dataset"]["train"], "others", {"subset": "test", "npoints": POINTS, "seed": seed}
    )
    dataset = build_dataset(entry)
    return torch.stack([dataset[index][0] for index in FIRST[:count]])


# ---- pre-training models ----


@pytest.mark.parametrize("name", [PRETRAIN, M2AE, MAE])
def test_a_reconstruction_is_that_of_the_model_under_the_seed(here, name):
    content = show(name, "--shapes", 4, "--seed", 3)
    points = unseen_points(4, seed=3)
    model = model_of(name)
    torch.manual_seed(3)
    found = model.reconstruct(points)
    shapes = section(content, "reconstruction")["shapes"]
    places = [f"{taxonomy}, item {first}" for taxonomy, (first, _) in TAXONOMIES.items()]
    assert [shape["name"] for shape in shapes] == [*places, "03001627, item 1"]
    for i, shape in enumerate(shapes):
        visible = found["visible"][i]
        expected = {
            ("visible points", 0): found["neighborhoods"][i][visible],
            ("masked points", 0): found["neighborhoods"][i][~visible],
            ("visible points", 1): found["neighborhoods"][i][visible],
            ("predicted points", 1): found["predictions"][i][~visible],
            ("all points", 0): points[i],
        }
        for (layer, scene), values in expected.items():
            np.testing.assert_allclose(layer_points(shape, layer, scene), values.reshape(-1, 3), atol=1e-4)
        assert shape["caption"].startswith(f"{int(visible.sum())} of {len(visible)} tokens are visible")
    features = section(content, "features")["shapes"][0]
    np.testing.assert_allclose(layer_points(features, "features"), points[0], atol=1e-4)


def test_the_teacher_is_shown_with_its_saliency(here):
    guidance = section(show(PRETRAIN, "--shapes", 2), "guidance")
    model, points = model_of(PRETRAIN), unseen_points(2)
    expected = model.look(points).saliency_at(points)
    for shape, values in zip(guidance["shapes"], expected, strict=True):
        assert [image["name"] for image in shape["images"]] == [
            *("x down, y to the right", "z down, x to the right", "y down, z to the right"),
        ]
        addresses = [image[part] for image in shape["images"] for part in ("under", "over")]
        assert all(address.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for address in addresses)
        saliency, probability = shape["layers"]
        np.testing.assert_allclose(unpacked(saliency["values"]), values, atol=1e-4 * float(values.max()))
        assert (saliency["name"], probability["name"]) == ("saliency", "probability to be masked")
    assert guidance["choose"]
    pictures = {path.name for path in Path("page").glob("*.png")}
    assert pictures == {"reconstructions.png", "saliency.png", "masking.png", "features.png", "overview.png"}


@pytest.mark.parametrize("name", [PRETRAIN, M2AE])
def test_the_overview_leads_from_the_cloud_to_its_features(here, monkeypatch, name):
    clouds, figures = [], {}
    monkeypatch.setattr("tools.evaluation.figures._scatter", lambda axis, *given: clouds.append(given))
    monkeypatch.setattr(
        "tools.evaluation.figures.save_figure", lambda figure, path: figures.update({path.name: figure})
    )
    content = show(name, "--shapes", 2, "--seed", 3)
    axes = figures["overview.png"].axes
    teacher = ["seen from one side", "where the 2D teacher looks"] if name == PRETRAIN else []
    titles = ["a cloud", *teacher, "visible points", "and predicted points", "features"]
    assert [axis.get_title() for axis in axes] == [*titles, *[""] * len(titles)]
    assert axes[0].texts[0].get_text() == section(content, "reconstruction")["shapes"][0]["name"]

    points = unseen_points(2, seed=3)
    model = model_of(name)
    torch.manual_seed(3)
    found = model.reconstruct(points)
    for shape, drawn in enumerate((clouds[-10:-5], clouds[-5:])):
        visible = found["visible"][shape]
        seen = found["neighborhoods"][shape][visible].reshape(-1, 3)
        expected = [points[shape], seen, seen, found["predictions"][shape][~visible].reshape(-1, 3), points[shape]]
        for (cloud, _), other in zip(drawn, expected, strict=True):
            torch.testing.assert_close(cloud, other)
        assert [colour for _, colour in drawn[:4]] == ["tab:blue", "tab:blue", "tab:blue", "tab:orange"]
    if teacher:
        views = model.look(points)
        for first, count in ((1, 1), (2, 2)):
            assert len(axes[first].images) == count
        image = views.saliency.unflatten(0, (3, 2))[0, 0][None, None]
        enlarged = torch.nn.functional.interpolate(image, (model.teacher.image_size,) * 2, mode="bicubic")[0, 0]
        np.testing.assert_allclose(axes[2].images[1].get_array(), enlarged, atol=1e-6)


def test_the_probability_to_be_masked_is_that_of_the_model(here):
    """Drawn uniformly all tokens are masked as often as the ratio says; by a cold softmax never the most salient."""
    model, points = model_of(PRETRAIN), unseen_points(3)
    model.mask_temperature = float("inf")
    uniform = explain.mask_probability(model, points, 0)
    ratio = 1 - model.num_visible / model.num_groups[-1]
    assert uniform.mean().item() == pytest.approx(ratio, abs=0.05)
    assert (uniform - ratio).abs().max() < 5 * (ratio * (1 - ratio) / explain.MASKS_DRAWN) ** 0.5
    model.mask_temperature = 1e-9
    cold = explain.mask_probability(model, points, 0)
    centers = model.group(points)[-1].centers
    saliency = model.look(points).saliency_at(centers)
    visible = saliency >= saliency.topk(model.num_visible).values[:, -1:]
    nearest = torch.stack(
        [(point - centers[i]).norm(dim=-1).argmin(-1) for i, cloud in enumerate(points) for point in cloud]
    )
    expected = (~visible).float().gather(1, nearest.view(3, -1))
    torch.testing.assert_close(cold, expected)


def test_colours_are_the_principal_components():
    features = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 9)
    colours, share = explain.component_colours(features)
    pca = PCA(3).fit(features.flatten(0, 1).numpy())
    assert share == pytest.approx(pca.explained_variance_ratio_.sum(), rel=1e-5)
    values = pca.transform(features.flatten(0, 1).numpy())
    inner = (colours > 0) & (colours < 1)
    for component in range(3):
        chosen = inner[..., component].flatten().numpy()
        given = colours[..., component].flatten().numpy()[chosen]
        assert abs(np.corrcoef(given, values[chosen, component])[0, 1]) == pytest.approx(1, abs=1e-5)
    assert (~inner).float().mean().item() == pytest.approx(0.04, abs=0.01)
    torch.testing.assert_close(explain.component_colours(features.flip(0))[0], colours.flip(0))


# ---- classifiers ----


def test_a_classifier_is_shown_with_its_confusions_and_a_map(here):
    content = show(TUNE, "--shapes", 3)
    model = model_of(TUNE)
    dataset = build_dataset(CONFIGS[TUNE]["dataset"]["test"])
    clouds = torch.stack([dataset[i][0] for i in range(len(dataset))])
    with torch.no_grad():
        predicted = model(visualized(clouds)).argmax(1)
    confusion, mapped = section(content, "confusion"), section(content, "map")
    expected = np.zeros((3, 3), int)
    for true, guess in zip(dataset.labels, predicted, strict=True):
        expected[true, guess] += 1
    assert confusion["counts"] == expected.tolist()
    np.testing.assert_allclose(np.sum(confusion["shares"], axis=1), 1, atol=1e-3)
    assert f"9 clouds: accuracy {100 * np.trace(expected) / 9:.1f} %" in confusion["text"]
    order = first_of_each(dataset.labels, 9)
    assert [cloud["label"] for cloud in mapped["clouds"]] == dataset.labels[order].tolist()
    assert [cloud["predicted"] for cloud in mapped["clouds"]] == predicted[order].tolist()
    shown = unpacked(mapped["clouds"][0]["points"]).reshape(-1, 3)
    np.testing.assert_allclose(shown, visualized(clouds[order[:1]])[0], atol=1e-2)
    assert {path.name for path in Path("page").glob("*.png")} >= {"confusion.png", "map.png", "decisions.png"}


def visualized(clouds: torch.Tensor) -> torch.Tensor:
    """Farthest point sampling to the config's 64 points, one by one."""
    samples = []
    for cloud in clouds:
        chosen, distance = [0], torch.full((len(cloud),), torch.inf)
        while len(chosen) < 64:
            distance = torch.minimum(distance, (cloud - cloud[chosen[-1]]).square().sum(1))
            chosen.append(int(distance.masked_fill(cloud.square().sum(1) <= 1e-3, -1).argmax()))
        samples.append(cloud[chosen])
    return torch.stack(samples)


def test_the_saliency_of_a_decision_is_the_slope_of_its_logit(here):
    shape = section(show(TUNE, "--shapes", 1), "decisions")["shapes"][0]
    (layer,) = shape["layers"]
    values = unpacked(layer["values"])
    model = model_of(TUNE).double()
    points = torch.from_numpy(layer_points(shape, "saliency"))[None]
    logits = model(points)
    winner, place, step = int(logits.argmax()), int(values.argmax()), 1e-5
    slopes = []
    for axis in range(3):
        sides = points.repeat(2, 1, 1)
        sides[:, place, axis] += torch.tensor([step, -step], dtype=torch.float64)
        forward, back = model(sides)[:, winner]
        slopes.append(float(forward - back) / (2 * step))
    assert values[place] == pytest.approx(np.linalg.norm(slopes), rel=0.02)
    assert shape["caption"].startswith(f"predicted: {CLASSES[winner]} ")


@pytest.mark.parametrize("inputs", [[], ["data/meshes/test/chair"]])
def test_outputs_without_a_class_have_numbers(here, inputs):
    """Of a classifier of five classes on a data set that names three, or that is not on the disk."""
    config = changed(CONFIGS[TUNE], "model.num_classes", 5)
    if inputs:
        config = changed(config, "dataset.test.DATA_PATH", "data/nowhere")
    write_config(here, "fine-tuning/five", config)
    torch.manual_seed(0)
    torch.save({"base_model": build_model(config["model"]).state_dict()}, weights_of("fine-tuning/five"))
    content = show("fine-tuning/five", *inputs, "--shapes", 1)
    if not inputs:
        assert section(content, "confusion")["classes"] == [*CLASSES, "class 3", "class 4"]
        assert np.shape(section(content, "confusion")["counts"]) == (5, 5)
    else:
        caption = section(content, "decisions")["shapes"][0]["caption"]
        assert re.fullmatch(r"predicted: class \d \d+ %, class \d \d+ %, class \d \d+ %", caption)


def test_features_of_the_map_are_what_the_head_takes(here):
    model = model_of(TUNE)
    points = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = explain.BeforeHead(model).eval()(points)
        torch.testing.assert_close(outputs[:, -3:], model(points))
        torch.testing.assert_close(model.cls_head_finetune(outputs[:, :-3]), model(points))


# ---- part segmenters ----


def test_parts_are_those_of_the_files_beside_those_of_the_model(here):
    content = show(PARTS, "--shapes", 3)
    model, dataset = model_of(PARTS), build_dataset(CONFIGS[PARTS]["dataset"]["test"])
    order = first_of_each(dataset.labels, 3)
    shapes = section(content, "parts")["shapes"]
    for index, shape, (category, own) in zip(order, shapes, PARTS_OF, strict=True):
        points, label, true = dataset[index]
        with torch.no_grad():
            log_probs = model(points[None], torch.tensor([label]))[0]
        predicted = torch.tensor(own)[log_probs[:, own].argmax(1)]
        ious = []
        for part in own:
            for scene, parts in enumerate((true, predicted)):
                shown = layer_points(shape, f"{category} part {part}", scene)
                np.testing.assert_allclose(shown, points[parts == part].reshape(-1, 3), atol=1e-4)
            both, either = ((true == part) & (predicted == part)).sum(), ((true == part) | (predicted == part)).sum()
            ious.append(float(both / either) if either else 1.0)
        assert shape["caption"] == f"mIoU of this shape: {100 * np.mean(ious):.1f} %"
    assert (Path("page") / "parts.png").is_file()


PARTS_OF = [("Knife", [22, 23]), ("Mug", [36, 37]), ("Table", [47, 48, 49])]


# ---- files of one's own ----


def test_files_are_shown_to_a_classifier(here):
    content = show(TUNE, "data/meshes/test/chair", "data/meshes/test/mug/mug_0001.obj", "--shapes", 9)
    assert [section["id"] for section in content["sections"]] == ["decisions"]
    names = [shape["name"] for shape in section(content, "decisions")["shapes"]]
    assert names == ["chair/chair_0000.ply", "chair/chair_0001.obj", "chair/chair_0002.off", "mug/mug_0001.obj"]
    assert ["shapes", "4 of files, 64 points each"] in content["about"]


def test_files_are_shown_to_a_segmenter_that_is_told_the_category(here):
    content = show(PARTS, "data/meshes/test/mug", "--category", "Mug", "--shapes", 2)
    parts = section(content, "parts")
    assert parts["scenes"] == ["predicted parts"]
    assert ["shapes", "2 of files, the first 2 of 3, 64 points each"] in content["about"]
    assert sum(len(layer_points(parts["shapes"][0], f"Mug part {part}")) for part in (36, 37)) == 64


def test_the_axis_that_points_up_is_turned(tmp_path):
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).normal(size=(40, 3)))
    along_y, along_z = (of_files([tmp_path / "cloud.npy"], 1, 40, up, 0).points[0] for up in "yz")
    torch.testing.assert_close(along_z[:, 1], along_y[:, 2])
    torch.testing.assert_close(along_z[:, 2], -along_y[:, 1])
    assert along_y.norm(dim=1).max().item() == pytest.approx(1)


# ---- the page ----


def test_the_page_is_small_and_leads_nowhere(here):
    content = show(M2AE, "--shapes", 2)
    text = (Path("page") / "index.html").read_text()
    own = text.replace(page.plotly_script(), "")
    assert len(text) - len(own) > 1e6
    assert len(text.encode()) < 6_000_000
    assert not re.findall(r"\bhttps?:|//\w+\.|\bsrc=|\bhref=|@import|url\(", own)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', own)[1]
    assert policy.split("; ")[0] == "default-src 'none'"
    assert not re.search(r"connect-src|https?:|\*", policy)
    assert dict(content["about"])["command"] == (
        f"python -m tools.visualize --config cfgs/{M2AE}.yaml --ckpts {weights_of(M2AE)} -o page --shapes 2"
    )
    assert dict(content["about"])["checkpoint"].startswith(f"{weights_of(M2AE)}, SHA-256 ")


@pytest.mark.parametrize("name", [PRETRAIN, TUNE])
def test_the_same_seed_gives_the_same_page(here, name):
    show(name, "--shapes", 1)
    first = {path.name: path.read_bytes() for path in Path("page").iterdir()}
    torch.rand(1)
    show(name, "--shapes", 1)
    assert {path: (Path("page") / path).read_bytes() for path in first} == first


def test_names_of_files_cannot_end_the_script(tmp_path):
    name = "</script><script>alert(1)</script><!--"
    page.write_page(name, [("config", name)], [], tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    assert "<script>alert" not in text
    assert content_of(tmp_path) == {"title": name, "about": [["config", name]], "sections": []}


@pytest.mark.parametrize(("num_bytes", "steps"), [(1, 255), (2, 65535)])
def test_numbers_are_rounded_to_a_step_of_their_range(num_bytes, steps):
    values = np.random.default_rng(0).uniform(-3, 5, 1000)
    assert np.abs(unpacked(packed(values, num_bytes)) - values).max() <= 8 / steps / 2 + 1e-12
    np.testing.assert_array_equal(unpacked(packed([2.5, 2.5])), [2.5, 2.5])
    assert unpacked(packed(np.empty((0, 3)))).size == 0


def test_a_page_that_would_be_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match=r"would have \d\.\d MB, more than 1; show fewer with --shapes"):
        page.write_page("title", [], [], tmp_path / "index.html")
    assert not list(tmp_path.iterdir())


def test_without_plotly_the_way_out_is_said(here, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(ValueError, match=r"run `pip install -r requirements-pictures\.txt`"):
        show(M2AE, output="nothing")
    assert not Path("nothing").exists()
    assert (REPOSITORY / "requirements-pictures.txt").read_text().splitlines()[-1].startswith("plotly")


# ---- the page in a browser ----

in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a Chromium (apt install chromium) to open the page in"
)
PAGES = {True: "rgb(17, 20, 24)", False: "rgb(246, 246, 243)"}  # dark or not → colour behind everything


def scene(number: int) -> str:
    return f"document.querySelectorAll('.scene')[{number}]"


def eye(tab: Page, number: int) -> list[float]:
    return tab.run(f"(eye => [eye.x, eye.y, eye.z])({scene(number)}.layout.scene.camera.eye)")


def shown_pixels(tab: Page, number: int) -> float:
    """Share of the pixels of a scene that are not background."""
    box = tab.run(f"(b => [b.x + scrollX, b.y + scrollY, b.width, b.height])({scene(number)}.getBoundingClientRect())")
    left, top, width, height = map(int, box)
    picture = imread(io.BytesIO(tab.screenshot()))[top + 5 : top + height - 5, left + 5 : left + width - 5, :3]
    return (np.abs(picture - picture[0, 0]).max(axis=2) > 0.05).mean()


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_clouds_turn_and_layers_switch_in_a_browser(here, tmp_path, width, dark):
    content = show(PRETRAIN, "--shapes", 2)
    with browser(tmp_path) as tab:
        tab.open(Path("page/index.html"), width, 844, dark)
        tab.until("document.querySelectorAll('.scene canvas').length == 4")
        assert tab.run("document.documentElement.scrollWidth") == width
        assert tab.run("getComputedStyle(document.body).backgroundColor") == PAGES[dark]
        assert min(shown_pixels(tab, number) for number in range(4)) > 0.002

        before = eye(tab, 0)
        tab.run(f"{scene(0)}.scrollIntoView({{block: 'center'}})")
        x, y = tab.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({scene(0)}.getBoundingClientRect())")
        tab.mouse("Moved", x, y)
        tab.mouse("Pressed", x, y, held=True)
        for step in range(1, 6):
            tab.mouse("Moved", x + 12 * step, y, held=True)
        tab.mouse("Released", x + 60, y)
        tab.until(f"Math.abs({scene(1)}.layout.scene.camera.eye.x - {before[0]}) > 0.05")
        assert eye(tab, 1) == pytest.approx(eye(tab, 0), abs=0.02)
        assert np.linalg.norm(eye(tab, 0)) == pytest.approx(np.linalg.norm(before), rel=0.01)  # turned, not zoomed
        assert eye(tab, 2) == before

        visible = f"{scene(0)}.data.map(trace => trace.visible)"
        assert tab.run(visible) == [True, True, False]
        tab.click("#reconstruction .chip[aria-pressed=true]")
        assert tab.run(visible) == [False, True, False]

        tab.click("#features button[aria-label='next shape']")
        assert (
            tab.run("[...document.querySelectorAll('select[aria-label=shape]')].map(s => s.selectedIndex)") == [1] * 3
        )
        drawn = tab.run(f"(t => [...t.x].flatMap((x, i) => [x, t.z[i], -t.y[i]]))({scene(3)}.data[0])")
        expected = layer_points(section(content, "features")["shapes"][1], "features")
        np.testing.assert_allclose(np.reshape(drawn, (-1, 3)), expected, atol=1e-6)
        tab.click("#guidance .chip[aria-pressed=false]")
        assert tab.run(f"{scene(2)}.data.map(trace => trace.visible)") == [False, True]
        assert tab.problems == []


@pytest.mark.slow
@in_a_browser
def test_a_mark_of_the_map_shows_its_cloud_in_a_browser(here, tmp_path):
    clouds = section(show(TUNE, "--shapes", 2), "map")["clouds"]
    with browser(tmp_path) as tab:
        tab.open(Path("page/index.html"), 1280, 1600)
        tab.until("document.querySelectorAll('.scene canvas').length == 2")
        shown = f"[...{scene(0)}.data[0].x]"
        first = tab.run(shown)
        x, y, number = tab.run(
            "(box => { const trace = box.data[2], b = box.getBoundingClientRect(), l = box._fullLayout;"
            "return [b.x + l.xaxis._offset + l.xaxis.l2p(trace.x[1]), b.y + l.yaxis._offset + l.yaxis.l2p(trace.y[1]),"
            "trace.customdata[1]]; })(document.querySelector('#map .chart'))"
        )
        tab.mouse("Moved", x - 2, y)
        tab.mouse("Moved", x, y)
        tab.until(f"JSON.stringify({shown}) != {json.dumps(json.dumps(first, separators=(',', ':')))}")
        np.testing.assert_allclose(tab.run(shown), unpacked(clouds[number]["points"])[::3], atol=1e-6)
        assert tab.problems == []


# ---- training curves ----


def test_curves_are_what_the_runs_have_logged(tmp_path):
    history = [{"epoch": 0, "loss": 2.0, "lr": 0.1}, {"epoch": 1, "loss": 1.5, "lr": 0.05, "evaluation": 70.0}]
    done, running = tmp_path / "done", tmp_path / "running"
    done.mkdir()
    running.mkdir()
    (done / "results.json").write_text(json.dumps({"pre-training": {"history": history}, "test": {"accuracy": 3.0}}))
    torch.save({"history": history[:1], "epoch": 0}, running / "ckpt-last.pth")
    assert visualize.main(["--runs", str(done), str(running), "-o", str(tmp_path / "page")]) == 0
    (training,) = content_of(tmp_path / "page")["sections"]
    assert training["quantities"] == ["loss", "lr", "evaluation"]
    assert {run["name"]: run["curves"] for run in training["runs"]} == {
        str(done): {"loss": [[0, 1], [2.0, 1.5]], "lr": [[0, 1], [0.1, 0.05]], "evaluation": [[1], [70.0]]},
        str(running): {"loss": [[0], [2.0]], "lr": [[0], [0.1]], "evaluation": [[], []]},
    }
    assert (tmp_path / "page/training.png").is_file()


# ---- what the documents say ----


def test_commands_of_the_documents_are_ones(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    texts = [(REPOSITORY / name).read_text() for name in ("docs/PICTURES.md", "README.md")]
    commands = [line for text in texts for line in re.findall(r"^python -m tools\.visualize (.+)$", text, re.MULTILINE)]
    assert len(commands) == 8
    for command in commands:
        args = visualize.parse_args(shlex.split(command))
        assert args.config is None or load_config(args.config).model.NAME
        assert not args.ckpts or args.ckpts.parts[:3] == ("experiments", "demo", args.config.stem)


def test_the_picture_of_the_documents_is_small():
    picture = (REPOSITORY / "docs/PICTURES.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 400_000


# ---- which shapes ----


def test_the_first_of_each_class_comes_first():
    assert first_of_each(np.array([2, 0, 0, 2, 5, 0]), 5) == [1, 0, 4, 2, 3]


@pytest.mark.parametrize(("key", "value"), [("DATA_PATH", "data/nowhere"), ("PC_PATH", "data/damaged")])
def test_shapes_that_are_trained_on_stand_in_where_no_others_can_be_read(here, caplog, key, value):
    data = CONFIGS[PRETRAIN]["dataset"]["train"]
    for name in Path(data["DATA_PATH"], "test.txt").read_text().split():
        Path("data/damaged").mkdir(exist_ok=True)
        Path("data/damaged", name).write_bytes(b"")
    config = {"dataset": {"train": changed(data, key, value)}}
    seen = build_dataset(CONFIGS[PRETRAIN]["dataset"]["train"])
    with caplog.at_level("INFO"):
        shapes = unseen_or_seen(config, seen, 0, 2)
    torch.testing.assert_close(shapes, torch.stack([seen[0][0], seen[4][0]]))
    assert "reconstructions will be drawn of shapes that are trained on: " in caplog.text
    torch.testing.assert_close(unseen_or_seen(CONFIGS[PRETRAIN], seen, 0, 4), unseen_points(4))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("name", "flags", "error", "message"),
    [
        (TUNE, ["nowhere.ply"], FileNotFoundError, "INPUT nowhere.ply does not exist"),
        (TUNE, ["cfgs/fine-tuning/modelnet.yaml"], ValueError, r"modelnet\.yaml is of no kind that is read: \.npy"),
        (TUNE, ["broken.ply"], ValueError, r"broken\.ply: not a readable \.ply file"),
        (TUNE, ["--category", "Mug"], ValueError, "--category is that of INPUT, for a part segmenter"),
        (PARTS, ["data/meshes/test/mug"], ValueError, "--category is None; give one of Airplane"),
        (PARTS, ["data/meshes/test/mug", "--category", "Cup"], ValueError, "--category is Cup; give one of"),
        (TUNE, ["--ckpts", f"ckpts/{PARTS}.pth"], ValueError, "seems to hold a part segmenter with 50 parts"),
        (TUNE, ["--runs", "nowhere"], FileNotFoundError, "--runs nowhere does not exist"),
        (TUNE, ["--runs", "data"], ValueError, "--runs data holds no run that has trained an epoch"),
    ],
)
def test_what_cannot_be_shown_is_refused(here, name, flags, error, message):
    Path("broken.ply").write_text("ply\nformat nonsense")
    with pytest.raises(error, match=message):
        show(name, *flags, output="refused")
    assert not list(Path().glob("refused/*"))


def test_a_model_without_pictures_is_refused(here):
    write_config(here, "none", {"dataset": {}, "model": {"NAME": "Point_NN"}})
    with pytest.raises(ValueError, match=r"model\.NAME is Point_NN, of which there are no pictures"):
        visualize.main(["--config", "cfgs/none.yaml", "--ckpts", str(weights_of(TUNE)), "-o", "refused"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give a model, --config FILE --ckpts FILE, or --runs RUN"),
        (["--config", "x.yaml"], "--config and --ckpts go together"),
        (["x.ply", "--runs", "run"], "INPUT is shown to a model: add --config FILE --ckpts FILE"),
    ],
)
def test_a_command_line_that_says_too_little_is_refused(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        visualize.main([*flags, "-o", "refused"])
    assert message in capsys.readouterr().err
