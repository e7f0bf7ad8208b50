"""Frozen 2D teachers: images in, patch features and a saliency map out. One file for each family of 2D models."""

from .build import build_teacher, feature_width
from .clip import CLIP_TOWERS, CLIPTeacher, TowerSizes, tower_sizes
from .interface import Teacher
from .timm_models import TimmTeacher

__all__ = [
    "CLIP_TOWERS",
    "CLIPTeacher",
    "Teacher",
    "TimmTeacher",
    "TowerSizes",
    "build_teacher",
    "feature_width",
    "tower_sizes",
]
