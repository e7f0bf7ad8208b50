"""`--env`: the report names versions, kernels, data and weights, found or not."""

import pytest
import torch

import main
from extensions import knn_cuda
from tools import runner_environment
from tools.training import environment


def test_the_report_needs_no_config(capsys):
    assert main.main(["--env"]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__.partition("+")[0] in shown
    for title in ("versions", "machine", "kernels", "data in data/", "weights in ckpts/"):
        assert title in shown


def test_data_and_weights_are_counted(tmp_path):
    (tmp_path / "data/ScanObjectNN/main_split").mkdir(parents=True)
    (tmp_path / "ckpts").mkdir()
    (tmp_path / "ckpts/pre-train.pth").write_bytes(b"0" * 1_500_000)
    lines = runner_environment.report(tmp_path / "data", tmp_path / "ckpts").splitlines()
    found = {line.split()[0]: line for line in lines if line}
    assert found["ScanObjectNN"].endswith("1 entries")
    assert "missing: python -m datasets.check says more" in found["ModelNetFewshot"]
    assert found["pre-train.pth"].endswith("1.5 MB")


@pytest.mark.parametrize(
    ("ready", "text"), [(True, "CUDA kernels"), (False, "plain PyTorch: see the warning"), (RuntimeError("why"), "why")]
)
def test_on_a_gpu_the_report_says_which_kernels_run_and_why(monkeypatch, ready, text):
    def answer(tensor):
        if isinstance(ready, Exception):
            raise ready
        return ready

    monkeypatch.setattr(environment, "choose_device", lambda: torch.device("meta"))  # any that is not the CPU
    monkeypatch.setattr(knn_cuda.KERNELS, "ready", answer)
    assert text in environment._kernels(knn_cuda)


def test_a_command_without_a_config_is_refused(capsys):
    with pytest.raises(SystemExit):
        main.main(["--resume"])
    assert "give a config: --config FILE" in capsys.readouterr().err
