"""The code of the how-tos runs: Python of the documents, a model class of one's own, a queue's script, the notebook."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import torch
from easydict import EasyDict
from nbclient import NotebookClient
from torch import nn

from models import MODELS, build_model, check_model_config, load_encoder
from tests.playground import CLASSES, CONFIGS, REPOSITORY, make_playground, results_of, run
from tests.test_docs import fenced, text_of
from tests.test_point_mae import CLASSIFIER as POINT_MAE
from tools.evaluation.feature_files import read_features
from utils.config import load_config

TUNE, PRE_TRAIN = "fine-tuning/modelnet", "pre-training/m2ae"
HEADS = text_of(Path("docs/HEADS.md"))


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """Small data, configs with models of one's own, and a small checkpoint where the documents have one."""
    tune = {**CONFIGS[TUNE], "model": {**POINT_MAE, "NAME": "MeanPooled", "cls_dim": len(CLASSES)}}
    plain = {**CONFIGS[TUNE], "model": {"NAME": "Plain", "num_classes": len(CLASSES)}}
    spread = {**CONFIGS[PRE_TRAIN], "model": {"NAME": "Spread"}}
    configs = {"mine/tune": tune, "mine/plain": plain, "mine/spread": spread}
    folder = make_playground(tmp_path_factory.mktemp("playground"), configs)
    model = CONFIGS["pre-training/i2p"]["model"]
    (folder / "ckpts").mkdir()
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="untrained"):
        state = build_model(model).state_dict()
    torch.save({"base_model": state, "config": {"model": model}}, folder / "ckpts/pre-train.pth")
    return folder


def python(text: str) -> list[str]:
    return fenced(text, "python")


def test_the_head_of_the_how_to_learns_and_its_encoder_too(here, capsys):
    names = {"__name__": "how_to"}
    head, both, _ = python(HEADS)
    exec(head, names)
    right, most = map(float, re.findall(r"([\d.]+) %", capsys.readouterr().out))
    assert right > most + 10
    before = {name: p.clone() for name, p in names["encoder"].named_parameters()}
    exec(both, names)
    moved = [name for name, p in names["encoder"].named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) > len(before) / 2


@pytest.fixture
def my_main(here):
    """`my_main.py` of docs/HEADS.md has been imported; its model is forgotten afterwards."""
    (code,) = [code for code in python(HEADS) if code.startswith('"""main.py with')]
    exec(code, {"__name__": "my_main"})
    yield
    del MODELS["MeanPooled"]


@pytest.mark.usefixtures("my_main")
def test_a_class_of_ones_own_trains_tests_and_encodes(tmp_path):
    (text,) = fenced(HEADS, "yaml")
    (tmp_path / "mine.yaml").write_text(text)
    shown = load_config(tmp_path / "mine.yaml").model
    check_model_config(shown)
    assert {**shown, "NAME": "PointTransformer"} == load_config(REPOSITORY / "cfgs/point-mae/modelnet40.yaml").model

    assert run("mine/tune", "--scratch_model", "--exp_name", "mine") == 0
    weights = "experiments/mine/tune/mine/ckpt-last.pth"
    assert run("mine/tune", "--test", "--exp_name", "test", "--ckpts", weights) == 0
    assert "test" in results_of("mine/tune", "test")
    encoder = load_encoder(weights)
    out = encoder(torch.rand(2, 64, 3) - 0.5)
    mean = out.tokens[0].mean(1)
    assert torch.equal(out.feature[:, -mean.shape[1] :], mean)


class Plain(nn.Module):
    """What docs/HEADS.md says a classifier has, and nothing else."""

    num_groups = (1,)

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.layer = nn.Linear(3, num_classes)

    def forward(self, points):
        return self.layer(points).amax(1)

    def loss(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels)


class Spread(nn.Module):
    """What docs/HEADS.md says a pre-training model has, and nothing else."""

    num_groups, num_tokens = (1,), 1

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def encode(self, points):
        return self.layer(points).amax(1)

    def forward(self, points):
        return {"loss": self.encode(points).square().mean()}


def test_what_the_how_to_says_a_class_needs_is_enough(here, monkeypatch):
    monkeypatch.setitem(MODELS, "Plain", Plain)
    monkeypatch.setitem(MODELS, "Spread", Spread)
    assert run("mine/plain", "--scratch_model") == 0
    assert (
        run("mine/plain", "--test", "--exp_name", "test", "--ckpts", "experiments/mine/plain/default/ckpt-last.pth")
        == 0
    )
    assert run("mine/spread") == 0
    assert results_of("mine/spread")["pre-training"]["final_accuracy"] > 0


# ---- a script of the queue ----

SLURM, SEVERAL, LOOP = fenced(text_of(Path("docs/PREEMPTION.md")), "bash")
STUB = """#!/bin/bash
echo "$(basename $0) $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $*" >> {folder}/calls
case $(basename $0) in
srun) exec "$@" ;;
scontrol) [ "$1" = show ] && echo node7 && echo node8 ;;
python)
    mkdir -p experiments/pre-training/i2p-mae/pre-train
    touch experiments/pre-training/i2p-mae/pre-train/ckpt-last.pth
    code=$(head -n 1 {folder}/codes)
    sed -i 1d {folder}/codes
    exit $code ;;
esac
exit 0
"""


@pytest.fixture
def submit(tmp_path):
    """Run a script where srun, scontrol and Python are replaced: (script, exit codes of Python) → its own, calls."""
    for name in ("bin/srun", "bin/scontrol", "bin/python", ".venv/bin/python"):
        stub = tmp_path / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(STUB.format(folder=tmp_path))
        stub.chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node[7-8]"}
    environment |= {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}

    def run_script(script: str, *codes: int) -> tuple[int, list[str]]:
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        (tmp_path / "calls").write_text("")
        ended = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=False).returncode
        return ended, [" ".join(call.split()) for call in (tmp_path / "calls").read_text().splitlines()]

    return run_script


MAIN = "main.py --config cfgs/pre-training/i2p-mae.yaml --exp_name pre-train --save_every_steps 200"


def test_the_script_of_the_queue_begins_stops_resumes_and_ends(submit):
    srun = f"srun .venv/bin/python {MAIN}"
    assert submit(SLURM, 75) == (75, [srun, f"python {MAIN}", "scontrol requeue 17"])
    assert submit(SLURM, 75) == (75, [f"{srun} --resume", f"python {MAIN} --resume", "scontrol requeue 17"])
    for code in (0, 1):
        assert submit(SLURM, code) == (code, [f"{srun} --resume", f"python {MAIN} --resume"])


def test_with_several_gpus_each_process_is_told_its_place(submit):
    script = re.sub(r"^srun .*$", "", SLURM, flags=re.MULTILINE).replace("code=$?", f"{SEVERAL}code=$?")
    for resume in ("", " --resume"):
        code, calls = submit(script, 75)
        assert code == 75
        flags = MAIN.replace("main.py", "main.py --launcher pytorch --sync_bn") + resume
        assert calls[0] == "scontrol show hostnames node[7-8]"
        assert calls[-2:] == [f"python 5 1 8 node7 {flags}", "scontrol node7 requeue 17"]


def test_the_loop_goes_on_until_the_run_ends_otherwise(submit):
    command = "python main.py --config cfgs/demo/pre-train.yaml --exp_name mine"
    assert submit(LOOP, 75, 75, 0)[1] == [command, f"{command} --resume", f"{command} --resume"]
    assert submit(LOOP, 75, 1)[1] == [command, f"{command} --resume"]


# ---- the notebook ----

TOUR = REPOSITORY / "docs/tour.ipynb"


def test_the_notebook_is_committed_without_outputs():
    cells = [cell for cell in nbformat.read(TOUR, 4).cells if cell.cell_type == "code"]
    assert len(cells) > 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_five_minutes_of_the_readme_run(tmp_path, monkeypatch, capsys):
    """Each command as it stands there, with fewer shapes and one epoch."""
    monkeypatch.chdir(tmp_path)
    for name in ("cfgs", "ckpts"):
        Path(name).symlink_to(REPOSITORY / name)
    section = text_of(Path("README.md")).partition("## Five minutes")[2]
    install, *commands = fenced(section, "")[0].splitlines()
    assert install.startswith("pip install -r requirements.txt ")
    monkeypatch.setattr("main.load_config", lambda *given: EasyDict({**load_config(*given), "max_epoch": 0}))
    for line in commands:
        if not Path("mine.ply").exists() and "mine.ply" in line:
            shutil.copy(next(Path("data/synthetic/meshes/test/mug").glob("*.ply")), "mine.ply")
        words = shlex.split(line.replace("--train 60 --test 20", "--train 4 --test 3"))
        module = words[2] if words[1] == "-m" else "main"
        package = f"{module}.__main__" if module == "datasets.synthetic" else module
        assert importlib.import_module(package).main(words[3 if module != "main" else 2 :]) in (0, None), line
    assert len(commands) == 5
    assert len(read_features(Path("features.npz")).paths) == 4 * (4 + 3) + 1
    assert {"found.png", "mine.ply"} <= {path.name for path in Path().iterdir()}
    assert Path("pictures/mine/index.html").stat().st_size > 1e6


def test_one_command_does_what_the_five_minutes_say(tmp_path):
    section = text_of(Path("README.md")).partition("## Five minutes")[2]
    _, shapes, learn, _, _, page = fenced(section, "")[0].splitlines()
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in ("requirements.txt", "requirements-own-data.txt", "requirements-pictures.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)

    typed = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not within `make test`

    def planned(*flags: str) -> subprocess.CompletedProcess:
        command = ["make", "-n", "page", *flags]
        return subprocess.run(command, cwd=tmp_path, env=typed, capture_output=True, text=True, check=False)

    lines = planned("CLOUD=mine.ply").stdout.splitlines()
    ours = [line.replace(".venv/bin/", "") for line in lines if re.search(r"python (main\.py|-m (?!venv|pip))", line)]
    assert ours == [shapes, learn, page]
    assert any("-r requirements-own-data.txt -r requirements-pictures.txt" in line for line in lines)
    refused = planned()
    assert "say which file: make page CLOUD=mine.ply" in refused.stderr
    assert refused.stdout == ""
    learnt = tmp_path / "experiments/demo/own-data/pre-train/ckpt-last.pth"  # it is there, and not made anew
    learnt.parent.mkdir(parents=True)
    learnt.touch()
    (tmp_path / "data/synthetic/meshes").mkdir(parents=True)
    assert learn not in planned("CLOUD=mine.ply").stdout.replace(".venv/bin/", "")


@pytest.mark.slow
def test_the_notebook_runs_learns_and_shows_pictures():
    notebook = nbformat.read(TOUR, 4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    first, *_, last = map(float, re.findall(r"3D loss ([\d.]+)", said))
    assert last < first / 2
    assert all(float(share) > 2 * 25 for share in re.findall(r"trained: ([\d.]+) %", said))
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
