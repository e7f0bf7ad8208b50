"""Classification metrics, in percent."""

import torch
from torch import Tensor


def overall_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of clouds whose largest logit is at their class.

    Args:
        logits: (n, classes).
        labels: (n,) int64 in 0 … classes − 1.

    Returns:
        Percent, 0 to 100.
    """
    return 100.0 * (logits.argmax(dim=1) == labels).double().mean().item()


def mean_class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the accuracy within each; classes without a cloud are left out.

    Args:
        logits: (n, classes).
        labels: (n,) int64 in 0 … classes − 1.

    Returns:
        Percent, 0 to 100.
    """
    right = (logits.argmax(dim=1) == labels).double()
    count = torch.bincount(labels)
    present = count > 0
    return 100.0 * (torch.bincount(labels, weights=right)[present] / count[present]).mean().item()


def own_argmax(log_probs: Tensor, own: Tensor) -> Tensor:
    """The most probable part of each point among those of its shape's category.

    Args:
        log_probs: (n, N, parts).
        own: (n, parts) bool, True = the category has the part.

    Returns:
        (n, N) int64.
    """
    return log_probs.masked_fill(~own.unsqueeze(1), -torch.inf).argmax(dim=-1)


def shape_ious(predicted: Tensor, true: Tensor, own: Tensor) -> Tensor:
    """Intersection over union of each shape, the mean over the parts of its category.

    A part that is neither in the truth nor in the prediction counts 1.

    Args:
        predicted: (n, N) int64, parts in 0 … parts − 1.
        true: (n, N) int64, likewise.
        own: (n, parts) bool, True = the category has the part.

    Returns:
        (n,) float64, 0 to 1.
    """
    ious, _ = _part_ious(predicted, true, own.shape[1])
    return (ious * own).sum(dim=1) / own.sum(dim=1)


def present_part_ious(predicted: Tensor, true: Tensor, num_parts: int) -> Tensor:
    """Intersection over union of each shape, the mean over the parts that it truly has, whatever its category has.

    Args:
        predicted: (n, N) int64, parts in 0 … num_parts − 1.
        true: (n, N) int64, likewise.
        num_parts: of all categories.

    Returns:
        (n,) float64, 0 to 1.
    """
    ious, present = _part_ious(predicted, true, num_parts)
    return (ious * present).sum(dim=1) / present.sum(dim=1)


def _part_ious(predicted: Tensor, true: Tensor, num_parts: int) -> tuple[Tensor, Tensor]:
    """Of each shape and part, (n, parts): intersection over union, 1 where neither is; whether the truth has it."""
    num_shapes = len(true)
    row = num_parts * torch.arange(num_shapes, device=true.device).unsqueeze(1)  # (n, 1): where a shape's counts start

    def count(parts: Tensor) -> Tensor:
        return torch.bincount(parts, minlength=num_shapes * num_parts).view(num_shapes, num_parts).double()

    both, truth = count((row + true)[predicted == true]), count((row + true).flatten())
    union = count((row + predicted).flatten()) + truth - both
    return torch.where(union > 0, both / union.clamp_min(1), 1.0), truth > 0


def confusion(predicted: Tensor, true: Tensor, num_classes: int) -> Tensor:
    """Count points by class and prediction.

    Args:
        predicted, true: int64 of one shape, in 0 … num_classes − 1.
        num_classes: how many there are.

    Returns:
        (num_classes, num_classes) float64; a row is a true class.
    """
    pairs = true.flatten() * num_classes + predicted.flatten()
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes).double()


def class_scores(counts: Tensor) -> dict[str, float | list[float | None]]:
    """The figures of a segmentation whose classes are the same for all clouds.

    Args:
        counts: confusion matrix of all points, (classes, classes), a row for each true class.

    Returns:
        Percents: mIoU, over the classes that are true or predicted anywhere; mean_class_accuracy, over those that are
        true; point_accuracy; ious, of each class, None where it is neither.
    """
    both, true, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    union = true + predicted - both
    ious = 100.0 * both / union
    return {
        "mIoU": ious[union > 0].mean().item(),
        "mean_class_accuracy": 100.0 * (both / true)[true > 0].mean().item(),
        "point_accuracy": 100.0 * (both.sum() / counts.sum()).item(),
        "ious": [iou if occurs else None for iou, occurs in zip(ious.tolist(), union > 0, strict=True)],
    }


def segmentation_scores(
    predicted: Tensor, true: Tensor, categories: Tensor, parts_of_categories: Tensor
) -> dict[str, float | list[float | None]]:
    """The figures of part segmentation.

    Args:
        predicted: (n, N) int64, the part given to each point.
        true: (n, N) int64, the part of each point.
        categories: (n,) int64.
        parts_of_categories: (categories, parts) bool, True = the category has the part.

    Returns:
        Percents: point_accuracy; instance_mIoU, the mean over all shapes; category_mIoU, a list with the mean over the
        shapes of each category, None for one without a shape; class_mIoU, the mean over the categories with shapes;
        present_part_mIoU, the mean over all shapes of `present_part_ious`.
    """
    ious = shape_ious(predicted, true, parts_of_categories[categories])
    sums = torch.bincount(categories, weights=ious, minlength=len(parts_of_categories))
    counts = torch.bincount(categories, minlength=len(parts_of_categories))
    per_category = 100.0 * sums / counts  # NaN for a category without a shape
    return {
        "point_accuracy": 100.0 * (predicted == true).double().mean().item(),
        "class_mIoU": per_category[counts > 0].mean().item(),
        "instance_mIoU": 100.0 * ious.mean().item(),
        "present_part_mIoU": 100.0 * present_part_ious(predicted, true, parts_of_categories.shape[1]).mean().item(),
        "category_mIoU": [mean if count else None for mean, count in zip(per_category.tolist(), counts, strict=True)],
    }
