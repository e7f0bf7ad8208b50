"""The teacher beside the student: what runs on a second stream gives what it gives alone."""

import pytest
import torch

from extensions.streams import beside
from tests.test_pretraining_models import MASK, i2p_mae

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a second stream needs a GPU")


def test_on_a_cpu_the_block_runs_as_it_stands():
    points = torch.zeros(3)
    with beside(points) as join:
        result = points + 1
    join(result)
    assert result.tolist() == [1, 1, 1]


def test_an_error_in_the_block_is_not_swallowed():
    with pytest.raises(ValueError, match="inside"):
        with beside(torch.zeros(1)):
            raise ValueError("inside")


@needs_gpu
def test_on_a_gpu_results_of_the_block_are_ready_after_the_join():
    big = torch.randn(4096, 4096, device="cuda")
    for _ in range(5):
        with beside(big) as join:
            product = big @ big @ big
        other = big + 1
        join(product)
        torch.testing.assert_close(product - other, big @ big @ big - (big + 1))


@needs_gpu
def test_on_a_gpu_the_losses_are_those_of_the_cpu():
    model = i2p_mae(drop_path_rate=0.0).eval()
    points = torch.nn.functional.normalize(torch.randn(2, 128, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = model(points, MASK)
    losses = model.to("cuda")(points.to("cuda"), MASK.to("cuda"))
    for name in ("loss", "loss_3d", "loss_2d"):
        torch.testing.assert_close(losses[name].cpu(), expected[name], rtol=2e-5, atol=1e-6)
