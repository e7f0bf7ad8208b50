"""The pre-training steps in their literal formulation, as released: the baseline of `bench_train_step`.

The same weights and the same mathematics as `models.i2p_mae` and `models.point_mae`, written down step by step: loops
over samples, maps of the image's size, attention weights that are formed in full. benchmarks/README.md lists what is
literal, what shared.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions.chamfer_dist import ChamferDistanceL2
from extensions.pointnet2_ops.pointnet2_utils import furthest_point_sample
from models.encoder import EncodedLevel, HierarchicalEncoder
from models.i2p_mae import I2P_MAE, TeacherViews
from models.masking import propagate_mask
from models.point_mae import Point_MAE
from models.projection import VIEWS, Projection
from models.propagation import TokenPropagation
from models.single_scale import SingleScaleEncoder
from models.teacher import CLIPTeacher
from models.tokenizer import ColumnConv, Group, TokenEmbed, take
from models.transformer import Attention

Model = TypeVar("Model", I2P_MAE, Point_MAE)

FORBIDDEN = -1e5  # added to the score of a key that must not be attended to; its softmax is 0


def released(model: Model) -> Model:
    """Copy a model into the literal formulation, with its teacher, which is in half precision on a GPU."""
    twin = copy.deepcopy(model)
    teacher = getattr(twin, "teacher", None)
    for module in [*twin.modules(), *(teacher.modules() if teacher else ())]:
        module.__class__ = LITERAL.get(type(module), type(module))
    if isinstance(teacher, LiteralTeacher) and next(teacher.parameters()).is_cuda:
        teacher.half()
    return twin


def scale_and_translate_by_cloud(points: Tensor, rng: np.random.Generator) -> Tensor:
    """Scale and shift (B, N, 3) points as `datasets.transforms.scale_and_translate` does, cloud by cloud with NumPy."""
    moved = points.clone()
    for i in range(len(points)):
        factor = torch.from_numpy(rng.uniform(2 / 3, 3 / 2, 3).astype(np.float32)).to(points.device)
        offset = torch.from_numpy(rng.uniform(-0.2, 0.2, 3).astype(np.float32)).to(points.device)
        moved[i] = points[i] * factor + offset
    return moved


class LoopPacking:
    """`models.masking.Packing`, sample by sample; padding holds zeros.

    Args:
        mask: (B, G) bool, True = masked.

    Attributes:
        valid: (B, L) bool, True = a visible token, False = padding.
        attention_mask: (B, 1, L, L) float, added to the attention scores: 0 for keys that are visible tokens.
    """

    def __init__(self, mask: Tensor):
        self.visible = [~row for row in mask]
        self.counts = [int(row.sum()) for row in self.visible]
        longest = max(self.counts)
        self.valid = torch.zeros(len(mask), longest, dtype=torch.bool, device=mask.device)
        for i, count in enumerate(self.counts):
            self.valid[i, :count] = True
        forbidden = (~self.valid).float() * FORBIDDEN
        self.attention_mask = forbidden[:, None, None, :].repeat(1, 1, longest, 1)

    def pack(self, x: Tensor) -> Tensor:
        """Take the visible tokens, (B, L, C), out of all, (B, G, C)."""
        packed = x.new_zeros(*self.valid.shape, x.shape[-1])
        for i, (visible, count) in enumerate(zip(self.visible, self.counts, strict=True)):
            packed[i, :count] = x[i][visible]
        return packed

    def unpack(self, packed: Tensor, onto: Tensor) -> Tensor:
        """Write packed tokens (B, L, C) over the visible positions of a copy of `onto` (B, G, C)."""
        x = onto.clone()
        for i, (visible, count) in enumerate(zip(self.visible, self.counts, strict=True)):
            x[i, visible] = packed[i, :count]
        return x


class DenseProjection(Projection):
    """Reads maps that were enlarged to the size of the image."""

    def look_up(self, maps: Tensor, points: Tensor) -> Tensor:
        """Back-project (V·B, C, h, w) maps to (B, M, 3) points, (V, B, M, C), one view after the other."""
        views = zip(maps.chunk(len(VIEWS)), self.pixels(points), strict=True)
        return torch.stack([self._enlarge_and_read(view, pixels) for view, pixels in views])

    def _enlarge_and_read(self, maps: Tensor, pixels: Tensor) -> Tensor:
        """Values (B, M, C) of one view's (B, C, h, w) maps at (B, M, 2) pixels; the enlarged maps go on return."""
        size = self.image_size
        enlarged = F.interpolate(maps, size=(size, size), mode="bicubic", align_corners=False)  # (B, C, S, S)
        rows, cols = pixels.unbind(-1)
        index = (rows * size + cols).unsqueeze(1).expand(-1, enlarged.shape[1], -1)  # (B, C, M)
        return enlarged.flatten(2).gather(2, index).transpose(1, 2)


class LiteralTeacher(CLIPTeacher):
    """CLIP's image tower in the precision of its weights; the last block's attention weights are formed in full."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (V, C, h, w) and saliency (V, h, w), float32, of (V, 3, S, S) images."""
        *blocks, last = self.visual.transformer.resblocks
        tokens = self._embed(images.to(self.visual.conv1.weight.dtype))  # (V, 1 + P, width)
        for block in blocks:
            tokens = block(tokens)
        qkv = F.linear(last.ln_1(tokens), last.attn.in_proj_weight, last.attn.in_proj_bias)
        query, key, value = qkv.unflatten(-1, (3, last.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT * key.shape[-1] ** -0.5).softmax(-1)  # (V, heads, 1 + P, 1 + P)
        tokens = tokens + last.attn.out_proj((weights @ value).transpose(1, 2).flatten(2))
        tokens = tokens + last.mlp(last.ln_2(tokens))
        features = self.visual.ln_post(tokens)[:, 1:] @ self.visual.proj  # (V, P, C)
        saliency = weights.mean(1)[:, 0, 1:]  # (V, P)
        grid = self.visual.grid_size
        return features.float().mT.unflatten(2, grid), saliency.float().unflatten(1, grid)


class LiteralTokenEmbed(TokenEmbed):
    """The mini-PointNet by convolutions over the members of each group; each takes its pooled feature along."""

    def forward(self, members: Tensor) -> Tensor:
        """Embed (B, G, k, in_dim) members as (B, G, dim) tokens."""
        x = self.first_conv(members.flatten(0, 1).transpose(1, 2))  # (B·G, second, k)
        pooled = x.max(dim=2, keepdim=True).values.expand_as(x)
        x = self.second_conv(torch.cat([pooled, x], dim=1))  # (B·G, dim, k)
        return x.max(dim=2).values.unflatten(0, members.shape[:2])


class LiteralAttention(Attention):
    """Self-attention by two matrix products and a softmax between them."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend among (B, L, C) tokens; `mask` is added to the scores."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, head_dim)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, heads, L, L)
        if mask is not None:
            scores = scores + mask
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class LiteralTokenPropagation(TokenPropagation):
    """Interpolation from the three first of all sorted distances, then convolutions over each sample's tokens."""

    def forward(self, centers: Tensor, coarse_centers: Tensor, tokens: Tensor, coarse_tokens: Tensor) -> Tensor:
        """Bring (B, M, coarse_dim) tokens to the (B, N, dim) of this level."""
        distance = (centers.unsqueeze(2) - coarse_centers.unsqueeze(1)).square().sum(-1)  # (B, N, M)
        distance, index = (found[..., :3] for found in distance.sort(dim=-1))
        weight = 1 / (distance + 1e-8)
        weight = weight / weight.sum(-1, keepdim=True)
        interpolated = (take(coarse_tokens, index) * weight.unsqueeze(-1)).sum(2)  # (B, N, coarse_dim)
        x = torch.cat([tokens, interpolated], dim=-1).transpose(1, 2)  # (B, dim + coarse_dim, N)
        return self.extraction(self.fuse(x)).transpose(1, 2)


class LiteralEncoder(HierarchicalEncoder):
    """The masked encoder with `LoopPacking`."""

    def forward(self, groups: Sequence[Group], coarse_mask: Tensor) -> list[EncodedLevel]:
        """Encode the visible tokens of each level, fine to coarse."""
        levels: list[EncodedLevel] = []
        tokens: Tensor | None = None
        masks = propagate_mask(coarse_mask, [group.index for group in groups])
        for level, (group, mask) in enumerate(zip(groups, masks, strict=True)):
            tokens = self._embed(level, group, tokens)
            packing = LoopPacking(mask)
            position = self.encoder_pos_embeds[level](packing.pack(group.centers))
            visible = self.encoder_blocks[level](packing.pack(tokens), position, packing.attention_mask)
            tokens = packing.unpack(visible, onto=tokens)
            levels.append(EncodedLevel(self.encoder_norms[level](visible), packing, mask))
        return levels


def group_by_cloud(points: Tensor, num_groups: Sequence[int], group_sizes: Sequence[int]) -> list[Group]:
    """Group (B, N, 3) points level by level, fine to coarse, the neighbours searched cloud by cloud."""
    levels = []
    for groups, size in zip(num_groups, group_sizes, strict=True):
        centers = take(points, furthest_point_sample(points, groups))
        index = []
        for reference, query in zip(points, centers, strict=True):
            distance = torch.cdist(query, reference, compute_mode="donot_use_mm_for_euclid_dist")
            index.append(distance.topk(size, largest=False).indices)
        members = take(points, torch.stack(index))
        levels.append(Group(centers, torch.stack(index), members, members - centers.unsqueeze(2)))
        points = centers
    return levels


class ReleasedI2P_MAE(I2P_MAE):
    """I2P-MAE, step after step: neighbours sample by sample, features at all tokens, losses on selected ones."""

    def forward(
        self, points: Tensor, coarse_mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The losses (loss, loss_3d, loss_2d) of (B, N, 3) points; arguments as in `I2P_MAE`."""
        groups = self.group(points)
        views = self.look(points)
        saliency = views.saliency_at(groups[-1].centers)
        mask = self.mask(saliency / self.mask_temperature, coarse_mask, generator)
        encoded = self.h_encoder(groups, mask)
        decoded = self.decode(groups, encoded)
        loss_3d = self.loss_3d(self.rec_head_3d, decoded, groups[1], encoded[1].mask)
        loss_2d = self.loss_2d(decoded, groups[1], encoded[1], views)
        return {"loss": loss_3d + loss_2d, "loss_3d": loss_3d, "loss_2d": loss_2d}

    def group(self, points: Tensor) -> list[Group]:
        """Group (B, N, 3) points into the three levels, fine to coarse."""
        return group_by_cloud(points, self.num_groups, self.group_sizes)

    @torch.no_grad()
    def look(self, points: Tensor) -> TeacherViews:
        """Project (B, N, 3) points to depth images and pass all 3·B through the teacher at once."""
        views = super().look(points)
        return dataclasses.replace(views, projection=DenseProjection(**vars(views.projection)))

    def loss_3d(self, head: nn.Module, decoded: Tensor, group: Group, mask: Tensor) -> Tensor:
        """Chamfer distance of the predicted neighbourhoods of the masked tokens."""
        return ChamferDistanceL2()(head(decoded[mask]).unflatten(-1, (-1, 3)), group.neighborhoods[mask])

    def loss_2d(self, decoded: Tensor, group: Group, encoded: EncodedLevel, views: TeacherViews) -> Tensor:
        """Mean squared error to the teacher's features, looked up at all tokens' neighbours, at the visible ones."""
        visible = ~encoded.mask  # (B, G)
        target = views.features_at(group.points.flatten(1, 2)).unflatten(2, group.points.shape[1:3])  # (V, B, G, k, C)
        target = target.permute(1, 2, 3, 0, 4)[visible].flatten(1)  # (visible, k·V·C)
        predicted = self.rec_head_2d(decoded[visible])
        return F.mse_loss(predicted.to(target.dtype), target)


class LiteralSingleScaleEncoder(SingleScaleEncoder):
    """The masked encoder of a single scale, over the tokens that a boolean mask leaves of all."""

    def encode_group(self, group: Group, mask: Tensor) -> Tensor:
        """Encode the visible tokens: (B, L, C) for a (B, G) mask, True = masked, that leaves L of each sample."""
        tokens, batch = self.encoder(group.neighborhoods), len(mask)
        visible = tokens[~mask].view(batch, -1, tokens.shape[-1])
        centers = group.centers[~mask].view(batch, -1, 3)
        return self.norm(self.blocks(visible, self.pos_embed(centers)))


class ReleasedPoint_MAE(Point_MAE):
    """Point-MAE, step after step: the mask drawn sample by sample, the mask tokens behind the visible ones."""

    def forward(
        self, points: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The losses (loss, loss_3d) of (B, N, 3) points; arguments as in `Point_MAE`."""
        group = self.group(points)
        mask = self.split(group, mask, generator)
        encoded = self.MAE_encoder.encode_group(group, mask)
        loss = self.loss_3d(self.decode(group, encoded, mask), group, mask)
        return {"loss": loss, "loss_3d": loss}

    def group(self, points: Tensor) -> Group:
        """Group (B, N, 3) points."""
        return group_by_cloud(points, self.num_groups, [self.group_size])[0]

    def split(self, group: Group, mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """The given mask, or one that NumPy draws sample by sample: (B, G) bool, True = masked."""
        if mask is not None:
            return mask
        masks = np.zeros(group.centers.shape[:2], bool)
        masks[:, self.num_visible :] = True
        rng = np.random.default_rng()
        for row in masks:
            rng.shuffle(row)
        return torch.from_numpy(masks).to(group.centers.device)

    def decode(self, group: Group, encoded: Tensor, mask: Tensor) -> Tensor:
        """Predict the neighbourhoods of the masked tokens, (B·M, k, 3)."""
        batch = len(mask)
        seen, hidden = (self.decoder_pos_embed(group.centers[which].view(batch, -1, 3)) for which in (~mask, mask))
        tokens = torch.cat([encoded, self.mask_token.expand(*hidden.shape[:2], -1)], dim=1)
        tokens = self.MAE_decoder(tokens, torch.cat([seen, hidden], dim=1))
        tokens = self.MAE_decoder.norm(tokens[:, -hidden.shape[1] :])
        head = self.increase_dim[0]
        points = F.conv1d(tokens.transpose(1, 2), head.weight, head.bias)  # (B, 3k, M)
        return points.transpose(1, 2).reshape(-1, self.group_size, 3)

    def loss_3d(self, predicted: Tensor, group: Group, mask: Tensor) -> Tensor:
        """Chamfer distance of the predicted neighbourhoods of the masked tokens."""
        return self.distance(predicted, group.neighborhoods[mask])


LITERAL: dict[type[nn.Module], type[nn.Module]] = {
    I2P_MAE: ReleasedI2P_MAE,
    CLIPTeacher: LiteralTeacher,
    HierarchicalEncoder: LiteralEncoder,
    TokenEmbed: LiteralTokenEmbed,
    Attention: LiteralAttention,
    TokenPropagation: LiteralTokenPropagation,
    ColumnConv: nn.Conv1d,
    Point_MAE: ReleasedPoint_MAE,
    SingleScaleEncoder: LiteralSingleScaleEncoder,
}
