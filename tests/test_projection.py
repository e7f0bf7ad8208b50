"""Depth images and back-projection: by hand, against loops and against PyTorch's own resizing."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.projection import project, resize_matrix

SIZE = 32
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

# View 0 (rows x, columns y, depth z) at 32 pixels: cell = 29 / 29 = 1. Rows: cells 0 and 29 cover −1…3 and 28…32,
# centred already, and both ends move inwards. Columns: cells 0 and 3 cover −1…6, whose centre 2 goes to 15: offset 13.
BY_HAND = torch.tensor([[[0.0, 0, 0.5], [29, 3, -1]]])


def cloud(batch: int = 2, n: int = 60, seed: int = 0) -> Tensor:
    return torch.randn(batch, n, 3, generator=torch.Generator().manual_seed(seed))


def depths(images: Tensor) -> Tensor:
    """Summed depths (V·B, S, S) of images: normalisation and sigmoid undone."""
    return torch.logit(images * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)).mean(1)


def test_depth_image_by_hand():
    images, _ = project(BY_HAND, SIZE)
    expected = torch.zeros(SIZE, SIZE)
    expected[0:4, 12:17] += 0.5
    expected[0, 12:17] += 0.5  # row −1 moved inwards
    expected[28:32, 15:20] -= 1
    expected[31, 15:20] -= 1  # row 32 moved inwards
    torch.testing.assert_close(depths(images)[0], expected, rtol=1e-4, atol=1e-5)


def test_layout_by_hand():
    _, projection = project(BY_HAND, SIZE)
    assert projection.minimum[0].tolist() == [[0, 0]]
    assert projection.cell[0].tolist() == [1]
    assert projection.offset[0].tolist() == [[0, 13]]
    assert projection.pixels(BY_HAND)[0].tolist() == [[[1, 14], [30, 17]]]


def test_depths_on_one_pixel_add_up():
    above = torch.tensor([[[0.0, 0, 0.25]]])
    images, _ = project(torch.cat([BY_HAND, above], 1), SIZE)
    assert depths(images)[0, 2, 12].item() == pytest.approx(0.75, rel=1e-4)


def test_background_is_the_sigmoid_of_zero_in_imagenets_statistics():
    images, _ = project(BY_HAND, SIZE)
    torch.testing.assert_close(images[0, :, 16, 0], (0.5 - MEAN) / STD)


def literal_depths(points: np.ndarray, view: tuple[int, int, int], size: int) -> np.ndarray:
    """One cloud's (size, size) summed depths, point by point and pixel by pixel."""
    plane, depth = points[:, view[:2]], points[:, view[2]]
    low, high = plane.min(0), plane.max(0)
    cell = (high - low).max() / np.float32(size - 3)
    covered = [[math.floor((p[a] - low[a]) / cell) + 1 + s for a in (0, 1) for s in range(-2, 3)] for p in plane]
    covered = np.array(covered).reshape(-1, 2, 5)
    image = np.zeros((size, size))
    for axis in (0, 1):
        centre = math.floor((covered[:, axis].max() + covered[:, axis].min()) / 2)
        covered[:, axis] += size // 2 - centre - 1
    covered[covered < 0] += 1
    covered[covered > size - 1] -= 1
    for (rows, cols), value in zip(covered, depth, strict=True):
        for row in rows:
            for col in cols:
                image[row, col] += value
    return image


@pytest.mark.parametrize("size", [32, 56, 224])
def test_all_views_against_loops_in_their_order(size):
    points = 0.3 * cloud(2, 20)  # depths small enough for the sigmoid to be undone
    images, _ = project(points, size)
    assert images.shape == (6, 3, size, size)
    views = [(0, 1, 2), (2, 0, 1), (1, 2, 0)]
    expected = [literal_depths(sample.numpy(), view, size) for view in views for sample in points]  # view-major
    np.testing.assert_allclose(depths(images), np.stack(expected), rtol=1e-3, atol=1e-4)


def test_images_do_not_depend_on_the_order_of_the_points():
    points = cloud()
    shuffled = points[:, torch.randperm(points.shape[1], generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(project(points, SIZE)[0], project(shuffled, SIZE)[0])


def test_images_do_not_depend_on_the_rest_of_the_batch():
    points = cloud()
    together, alone = project(points, SIZE)[0], project(points[1:], SIZE)[0]
    torch.testing.assert_close(together.unflatten(0, (3, 2))[:, 1:].flatten(0, 1), alone)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10), n=st.integers(1, 20))
@example(seed=0, scale=1.0, shift=0.0, n=2)
def test_the_object_is_centred_and_every_point_has_a_pixel(seed, scale, shift, n):
    points = scale * cloud(1, n, seed) + shift
    _, projection = project(points, SIZE)
    pixels = projection.pixels(points)
    assert (pixels >= 0).all()
    assert (pixels < SIZE).all()
    middle = (pixels.amin(2) + pixels.amax(2)) / 2
    assert ((middle - (SIZE - 1) / 2).abs() <= 0.5).all()


@pytest.mark.parametrize(
    "points",
    [
        torch.tensor([[[0.3, -0.2, 0.7]]]),
        torch.zeros(1, 5, 3),
        cloud(1) * torch.tensor([1.0, 1.0, 0.0]),
        cloud(1) * torch.tensor([0.0, 1.0, 0.0]),
        torch.full((1, 5, 3), 1e-30) * torch.arange(5)[:, None],
    ],
    ids=["one point", "origin", "flat", "line", "tiny"],
)
def test_clouds_without_extent_give_finite_images_and_features(points):
    images, projection = project(points, SIZE)
    features = projection.look_up(torch.ones(3, 2, 4, 4), points)
    assert images.isfinite().all()
    torch.testing.assert_close(features, torch.ones_like(features))


def test_a_single_point_is_a_blot_in_the_middle():
    images, projection = project(torch.tensor([[[0.3, -0.2, 0.7]]]), SIZE)
    assert projection.pixels(torch.tensor([[[0.3, -0.2, 0.7]]])).unique().tolist() == [15]
    expected = torch.zeros(SIZE, SIZE)
    expected[13:18, 13:18] = 0.7
    torch.testing.assert_close(depths(images)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [33, 35])
def test_odd_image_sizes(size):
    images, projection = project(cloud(), size)
    assert images.shape == (6, 3, size, size)
    assert (projection.pixels(cloud()) < size).all()


@pytest.mark.parametrize(("grid", "size"), [((14, 14), 224), ((37, 37), 518), ((4, 4), 32), ((3, 5), 30)])
def test_look_up_reads_the_bicubically_enlarged_map(grid, size):
    points = cloud()
    _, projection = project(points, size)
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(6, 5, *grid, generator=generator, dtype=torch.float64)
    queries = points[:, ::7]
    full = F.interpolate(maps, (size, size), mode="bicubic", align_corners=False).unflatten(0, (3, 2))
    expected = torch.stack(
        [
            torch.stack([full[v, b, :, rows, cols].T for b, (rows, cols) in enumerate(view.transpose(1, 2))])
            for v, view in enumerate(projection.pixels(queries))
        ]
    )
    assert expected.shape == (3, 2, 9, 5)
    torch.testing.assert_close(projection.look_up(maps, queries), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("grid", "size"), [(14, 224), (16, 224), (37, 518)])
def test_look_up_is_at_the_points_own_place_whatever_the_patches(grid, size):
    points = cloud()
    _, projection = project(points, size)
    centres = (torch.arange(grid) + 0.5) * size / grid - 0.5  # pixel in the middle of each patch
    maps = torch.stack(torch.meshgrid(centres, centres, indexing="ij")).expand(6, 2, grid, grid)
    pixels = projection.pixels(points).float()
    inner = ((pixels > 2 * size / grid) & (pixels < size - 2 * size / grid)).all(-1)  # of a ramp that goes on
    found = projection.look_up(maps, points)
    assert inner.sum() > 100
    torch.testing.assert_close(found[inner], pixels[inner], rtol=0, atol=0.05 * size / grid)  # bicubic


def test_pixels_of_queries_use_the_clouds_own_layout():
    points = cloud()
    _, projection = project(points, SIZE)
    everything = projection.pixels(points)
    assert torch.equal(projection.pixels(points[:, 5:9]), everything[:, :, 5:9])


def test_rows_of_the_resize_matrix_sum_to_one():
    matrix = resize_matrix(14, 224, torch.zeros(1))
    assert matrix.shape == (224, 14)
    torch.testing.assert_close(matrix.sum(1), torch.ones(224))
