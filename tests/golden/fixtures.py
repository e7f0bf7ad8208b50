"""Deterministic weights and inputs behind the golden numbers in this folder.

A golden file was made by filling the official model with `fill_parameters`, feeding it
`clouds(...)` and writing down what came out. The tests do the same with the models of this
repository and compare.
"""

import zlib

import numpy as np
import torch


def fill_parameters(module: torch.nn.Module) -> torch.nn.Module:
    """Overwrite every tensor of `module.state_dict()` from a generator seeded by crc32 of its key.

    The key is the official one: where our module stores a tensor under another name
    (the 2D teacher, say), pass it through the official name first.
    """
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            tensor.copy_(golden_tensor(key, tensor))
    return module


def golden_tensor(key: str, like: torch.Tensor) -> torch.Tensor:
    """The golden value of the tensor that the official state dict calls `key`, shaped as `like`."""
    if not like.is_floating_point():
        return torch.zeros_like(like)
    rng = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    noise = np.asarray(rng.standard_normal(size=tuple(like.shape)) if like.dim() else rng.standard_normal())
    if key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(noise)
    elif key.endswith("running_mean"):
        value = 0.1 * noise
    elif like.dim() == 1 and key.endswith("weight"):
        value = 1 + 0.1 * noise
    elif like.dim() <= 1:
        value = 0.02 * noise
    else:
        value = 0.05 * noise
    return torch.from_numpy(np.asarray(value, dtype=np.float32)).to(like)


def clouds(batch: int, n_points: int, seed: int) -> torch.Tensor:
    """(batch, n_points, 3) float32: box shell, torus, cone in turn, centred, in the unit sphere."""
    rng = np.random.RandomState(seed)
    out = []
    for b in range(batch):
        u = rng.rand(n_points, 2) * 2 * np.pi
        if b % 3 == 0:
            p = rng.rand(n_points, 3) * 2 - 1
            axis = rng.randint(0, 3, n_points)
            rows = np.arange(n_points)
            p[rows, axis] = np.sign(p[rows, axis])
            p = p * np.array([1.0, 0.6, 0.35])
        elif b % 3 == 1:
            ring = 1 + 0.35 * np.cos(u[:, 1])
            p = np.stack([ring * np.cos(u[:, 0]), 0.35 * np.sin(u[:, 1]), ring * np.sin(u[:, 0])], 1)
        else:
            h = rng.rand(n_points)
            p = np.stack([(1 - h) * np.cos(u[:, 0]), h * 1.6 - 0.8, (1 - h) * np.sin(u[:, 0])], 1)
        p = p - p.mean(0)
        out.append(p / np.sqrt((p**2).sum(1)).max())
    return torch.from_numpy(np.stack(out).astype(np.float32))


def coarse_mask(batch: int, n_groups: int, n_visible: int, seed: int) -> torch.Tensor:
    """(batch, n_groups) bool, True = masked; sample 0 always keeps group 0 visible."""
    rng = np.random.RandomState(seed)
    mask = np.ones((batch, n_groups), bool)
    for b in range(batch):
        visible = rng.permutation(n_groups)[:n_visible]
        if b == 0 and 0 not in visible:
            visible[0] = 0
        mask[b, visible] = False
    return torch.from_numpy(mask)


def summary(tensor: torch.Tensor) -> dict:
    """The figures that a golden file keeps of a tensor: count, sum of x_i cos(i), mean, std, norm, first 6, last 3."""
    flat = tensor.detach().double().flatten()
    return {
        "n": flat.numel(),
        "dot_cos": (flat * torch.cos(torch.arange(flat.numel(), dtype=torch.float64))).sum().item(),
        "mean": flat.mean().item(),
        "std": flat.std().item() if flat.numel() > 1 else 0.0,
        "norm": flat.norm().item(),
        "first": flat[:6].tolist(),
        "last": flat[-3:].tolist(),
    }
