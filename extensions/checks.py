"""Checks that the distances between clouds share."""

from torch import Tensor


def check_pair(xyz1: Tensor, xyz2: Tensor) -> None:
    """Refuse what are no two batches of clouds to compare.

    Raises:
        ValueError: unless they are (B, n, 3) and (B, m, 3) on one device, n and m at least 1.
    """
    for name, points in (("xyz1", xyz1), ("xyz2", xyz2)):
        if points.dim() != 3 or points.shape[-1] != 3 or points.shape[1] < 1:
            raise ValueError(f"{name} must be (B, n, 3) with at least one point, got {tuple(points.shape)}")
    if xyz1.shape[0] != xyz2.shape[0]:
        raise ValueError(f"xyz1 and xyz2 must have the same batch size, got {xyz1.shape[0]} and {xyz2.shape[0]}")
    if xyz1.device != xyz2.device:
        raise ValueError(f"xyz1 and xyz2 must be on one device, got {xyz1.device} and {xyz2.device}")


def check_pair_of_a_mean(xyz1: Tensor, xyz2: Tensor) -> None:
    """`check_pair`, for what is averaged over the batch.

    Raises:
        ValueError: also if the batch is empty.
    """
    check_pair(xyz1, xyz2)
    if xyz1.shape[0] == 0:
        raise ValueError(f"there is no mean over an empty batch: xyz1 is {tuple(xyz1.shape)}; leave the batch out")
