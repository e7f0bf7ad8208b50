"""What the published data sets hold: their splits, classes, parts and few-shot settings. Needs no PyTorch."""

# ScanObjectNN
SCAN_SPLITS = {  # variant → folder, ending of the file name
    "obj-bg": ("main_split", ""),
    "obj": ("main_split_nobg", ""),
    "pb": ("main_split", "_augmentedrot_scale75"),
}
SCAN_CLASS_NAMES = [
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table"),
    *("bed", "pillow", "sink", "sofa", "toilet"),
]

# ShapeNetPart
PARTS: dict[str, range] = {  # category → its parts; the order gives the categories their labels
    "Airplane": range(4),
    "Bag": range(4, 6),
    "Cap": range(6, 8),
    "Car": range(8, 12),
    "Chair": range(12, 16),
    "Earphone": range(16, 19),
    "Guitar": range(19, 22),
    "Knife": range(22, 24),
    "Lamp": range(24, 28),
    "Laptop": range(28, 30),
    "Motorbike": range(30, 36),
    "Mug": range(36, 38),
    "Pistol": range(38, 41),
    "Rocket": range(41, 44),
    "Skateboard": range(44, 47),
    "Table": range(47, 50),
}
CATEGORIES = list(PARTS)
NUM_PARTS = sum(map(len, PARTS.values()))

# S3DIS
ROOM_CLASSES = [
    *("ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board"),
    "clutter",
]
TEST_AREA = 5  # whose rooms test; those of the five others train

# Few-shot tasks of ModelNet40
WAYS, SHOTS, FOLDS = (5, 10), (10, 20), 10  # the published settings: each way with each shot, ten folds of each
TEST_CLOUDS = 20  # of each class


def fold_name(way: int, shot: int, fold: int) -> str:
    """Return the path of a fold's file within the folder ModelNetFewshot."""
    return f"{way}way_{shot}shot/{fold}.pkl"
