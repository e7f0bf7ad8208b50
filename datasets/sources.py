"""The published data sets: what each holds, where it goes, where it comes from, on which terms. Needs no PyTorch.

One table for the readers' messages, `datasets.check`, `datasets.download`, the warnings of a run and the tables in
data/README.md and docs/DATASET.md. What is not known for certain is None.
"""

from dataclasses import dataclass, field
from typing import Any

from datasets.published import CATEGORIES, ROOM_CLASSES, SCAN_CLASS_NAMES

MARKER = "SYNTHETIC.json"  # stands in a folder of generated shapes
DRAWN_LISTS = "lists.json"  # stands beside lists that `python -m datasets.lists` drew


@dataclass(frozen=True)
class Version:
    """One published form of a data set.

    Attributes:
        title: what the papers call it.
        clouds: subset → how many clouds it has; empty where a subset is a file of many.
    """

    title: str
    clouds: dict[str, int]


@dataclass(frozen=True)
class Source:
    """One published data set.

    Attributes:
        title: what people call it.
        use: what it is used for here.
        home: the folder that holds all of it, within the folder of the data sets.
        folders: key of its config entry → folder that it gives, within the folder of the data sets.
        files: (folder, what stands in it) for the table of layouts.
        versions: SPLIT of a config entry → that version; "" where there is one only.
        classes: names of the published classes; of ShapeNet-55 their taxonomies.
        points: points per cloud in a published file; None where the number differs from cloud to cloud.
        points_key: where a config says how many of them a file must have, or how many are read.
        layout: its name for `python -m datasets.synthetic`.
        published_by: the authors of these files, and what they were made from.
        terms: on which it may be used, in short; the publisher's own words hold.
        archive: the published file, where there is one.
        size: of the archive, as the publishers say; None = not known.
        url: where the archive is; None where a form or a drive stands in the way.
        landmark: a file of the archive that tells where in it the folder is.
        steps: what a person has to do where there is no url, or where there is more than the archive.
        sha256: of the archive; None = not known.
    """

    title: str
    use: str
    home: str
    folders: dict[str, str]
    files: tuple[tuple[str, str], ...]
    versions: dict[str, Version]
    classes: tuple[str, ...]
    points: int | None
    points_key: str
    layout: str
    published_by: str
    terms: str
    archive: str | None = None
    size: str | None = None
    url: str | None = None
    landmark: str | None = None
    steps: tuple[str, ...] = field(default=())
    sha256: str | None = None


_TAXONOMIES = """
    02691156 02747177 02773838 02801938 02808440 02818832 02828884 02843684 02871439 02876657 02880940
    02924116 02933112 02942699 02946921 02954340 02958343 02992529 03001627 03046257 03085013 03207941
    03211117 03261776 03325088 03337140 03467517 03513137 03593526 03624134 03636649 03642806 03691459
    03710193 03759954 03761084 03790512 03797390 03928116 03938244 03948459 03991062 04004475 04074963
    04090263 04099429 04225987 04256520 04330267 04379243 04401088 04460130 04468005 04530566 04554684
"""
_MODELNET_40 = (
    *("airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain"),
    *("desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel"),
    *("monitor", "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool"),
    *("table", "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox"),
)
_STANFORD = "https://shapenet.cs.stanford.edu/media"
_SHAPENET_TERMS = "ShapeNet's: non-commercial research and education"
_MODELNET_TERMS = "ModelNet's: academic research; the models belong to their authors"

SOURCES: dict[str, Source] = {  # NAME of a config entry → what it names
    "ShapeNet": Source(
        title="ShapeNet-55",
        use="pre-training",
        home="ShapeNet55-34",
        folders={"DATA_PATH": "ShapeNet55-34/ShapeNet-55", "PC_PATH": "ShapeNet55-34/shapenet_pc"},
        files=(
            ("ShapeNet55-34/ShapeNet-55/", "`train.txt`, `test.txt`: one `<taxonomy>-<model>.npy` a line"),
            ("ShapeNet55-34/shapenet_pc/", "`<taxonomy>-<model>.npy`: (8192, 3) float32"),
        ),
        versions={"": Version("ShapeNet-55", {"train": 41_952, "test": 10_518})},
        classes=tuple(_TAXONOMIES.split()),
        points=8192,
        points_key="N_POINTS",
        layout="shapenet",
        published_by="the authors of PoinTr, made from ShapeNet (shapenet.org)",
        terms=_SHAPENET_TERMS,
        steps=(
            "open DATASET.md of the repository yuxumin/PoinTr on GitHub and follow its link for ShapeNet55/34, a drive",
            "put the .npy files into {root}/ShapeNet55-34/shapenet_pc/",
            "put train.txt and test.txt of ShapeNet-55, published by the same authors, into "
            "{root}/ShapeNet55-34/ShapeNet-55/; `python -m datasets.lists --root {root}` draws others where they are "
            "missing",
        ),
    ),
    "ModelNet40_SVM": Source(
        title="ModelNet40, .h5",
        use="linear SVM, memory bank",
        home="modelnet40_ply_hdf5_2048",
        folders={"DATA_DIR": "modelnet40_ply_hdf5_2048"},
        files=(
            (
                "modelnet40_ply_hdf5_2048/",
                "`ply_data_train*.h5`, `ply_data_test*.h5`: `data` (n, 2048, 3), `label` (n, 1); `shape_names.txt` "
                "gives class names where present",
            ),
        ),
        versions={"": Version("ModelNet40 as HDF5 files", {"train": 9_840, "test": 2_468})},
        classes=_MODELNET_40,
        points=2048,
        points_key="others.num_points",
        layout="modelnet_svm",
        published_by="the authors of PointNet, made from ModelNet (modelnet.cs.princeton.edu)",
        terms=_MODELNET_TERMS,
        archive="modelnet40_ply_hdf5_2048.zip",
        size="416 MB",
        url=f"{_STANFORD}/modelnet40_ply_hdf5_2048.zip",
        landmark="ply_data_train0.h5",
    ),
    "ModelNet": Source(
        title="ModelNet40 with normals",
        use="fine-tuning",
        home="ModelNet/modelnet40_normal_resampled",
        folders={"DATA_PATH": "ModelNet/modelnet40_normal_resampled"},
        files=(
            (
                "ModelNet/modelnet40_normal_resampled/",
                "`modelnet40_shape_names.txt`, and either the processed or the text files:",
            ),
            ("", "processed: `modelnet40_train_8192pts_fps.dat`, `modelnet40_test_8192pts_fps.dat`"),
            (
                "",
                "text: `modelnet40_train.txt`, `modelnet40_test.txt` and `<class>/<class>_NNNN.txt`, 10000 lines of 6 "
                "comma-separated numbers",
            ),
        ),
        versions={"": Version("ModelNet40 with normals", {"train": 9_843, "test": 2_468})},
        classes=_MODELNET_40,
        points=10_000,
        points_key="N_POINTS",
        layout="modelnet",
        published_by="the authors of PointNet++, made from ModelNet; the processed `.dat` files come with Point-BERT",
        terms=_MODELNET_TERMS,
        archive="modelnet40_normal_resampled.zip",
        size="1.6 GB",
        url=f"{_STANFORD}/modelnet40_normal_resampled.zip",
        landmark="modelnet40_shape_names.txt",
        steps=(
            "the processed .dat files, which published figures were measured on, are linked in DATASET.md of the "
            "repository lulutang0608/Point-BERT on GitHub; `python -m datasets.process_modelnet --root {root}` makes "
            "such files from the text files",
        ),
    ),
    "ModelNetFewShot": Source(
        title="ModelNet40 few-shot",
        use="few-shot",
        home="ModelNetFewshot",
        folders={"DATA_PATH": "ModelNetFewshot"},
        files=(
            (
                "ModelNetFewshot/{5,10}way_{10,20}shot/",
                '`0.pkl` … `9.pkl`: a pickled {"train": [(points (8192, 6), label, class)], "test": […]}',
            ),
        ),
        versions={"": Version("few-shot tasks of ModelNet40", {})},
        classes=_MODELNET_40,
        points=8192,
        points_key="N_POINTS",
        layout="fewshot",
        published_by="the authors of Point-BERT",
        terms=_MODELNET_TERMS,
        steps=(
            "open DATASET.md of the repository lulutang0608/Point-BERT on GitHub and follow its link for the few-shot "
            "data, a drive",
            "unpack it so that {root}/ModelNetFewshot/5way_10shot/0.pkl is there",
            "or draw other folds from ModelNet40 with normals: `python -m datasets.few_shot_splits --source "
            "{root}/ModelNet/modelnet40_normal_resampled --out {root}/ModelNetFewshot`",
        ),
    ),
    "ScanObjectNN": Source(
        title="ScanObjectNN",
        use="fine-tuning, linear SVM, memory bank",
        home="ScanObjectNN",
        folders={"ROOT": "ScanObjectNN"},
        files=(
            ("ScanObjectNN/main_split/", "OBJ-BG: `training_objectdataset.h5`, `test_objectdataset.h5`"),
            (
                "",
                "PB-T50-RS: `training_objectdataset_augmentedrot_scale75.h5`, "
                "`test_objectdataset_augmentedrot_scale75.h5`",
            ),
            ("ScanObjectNN/main_split_nobg/", "OBJ-ONLY: `training_objectdataset.h5`, `test_objectdataset.h5`"),
        ),
        versions={
            "obj-bg": Version("OBJ-BG", {"train": 2_309, "test": 581}),
            "obj": Version("OBJ-ONLY", {"train": 2_309, "test": 581}),
            "pb": Version("PB-T50-RS", {"train": 11_416, "test": 2_882}),
        },
        classes=tuple(SCAN_CLASS_NAMES),
        points=2048,
        points_key="others.npoints",
        layout="scanobjectnn",
        published_by="hkust-vgd.github.io/scanobjectnn, made from SceneNN and ScanNet",
        terms="its own, to be accepted on its page",
        archive="h5_files.zip",
        landmark="main_split/training_objectdataset.h5",
        steps=(
            "open https://hkust-vgd.github.io/scanobjectnn and accept the terms of use; h5_files.zip is behind them",
            "unpack what you received: `python -m datasets.download ScanObjectNN --root {root} --archive h5_files.zip`",
        ),
    ),
    "ShapeNetPart": Source(
        title="ShapeNetPart",
        use="part segmentation",
        home="shapenetcore_partanno_segmentation_benchmark_v0_normal",
        folders={"ROOT": "shapenetcore_partanno_segmentation_benchmark_v0_normal"},
        files=(
            (
                "shapenetcore_partanno_segmentation_benchmark_v0_normal/",
                "`synsetoffset2category.txt`, `train_test_split/shuffled_{train,val,test}_file_list.json`, "
                "`<synset>/<id>.txt`: lines of `x y z nx ny nz part`",
            ),
        ),
        versions={"": Version("ShapeNetPart", {"train": 12_137, "val": 1_870, "test": 2_874})},
        classes=tuple(CATEGORIES),
        points=None,
        points_key="others.npoints",
        layout="shapenetpart",
        published_by="the authors of PointNet++, made from ShapeNet",
        terms=_SHAPENET_TERMS,
        archive="shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
        size="674 MB",
        url=f"{_STANFORD}/shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
        landmark="synsetoffset2category.txt",
    ),
    "S3DIS": Source(
        title="S3DIS",
        use="segmentation of rooms",
        home="stanford_indoor3d",
        folders={"ROOT": "stanford_indoor3d"},
        files=(("stanford_indoor3d/", "`Area_<area>_<room>.npy`: (points, 7) floats, `x y z r g b class` in metres"),),
        versions={"": Version("S3DIS, area 5 for the test", {"train": 204, "test": 68})},
        classes=tuple(ROOM_CLASSES),
        points=None,
        points_key="others.npoints",
        layout="s3dis",
        published_by="Stanford (the building parser data set); the .npy files are made of it by a script of PointNet",
        terms="its own, to be accepted in a form",
        steps=(
            "fill in the form of the data set Stanford Large-Scale 3D Indoor Spaces and download "
            "Stanford3dDataset_v1.2_Aligned_Version.zip",
            "make a file of each room with collect_indoor3d_data.py of the repository charlesq34/pointnet or "
            "yanx27/Pointnet_Pointnet2_pytorch on GitHub",
            "put the files into {root}/stanford_indoor3d/",
        ),
    ),
}


def version_of(entry: dict[str, Any]) -> Version:
    """Return the version that a config entry of a published data set names."""
    versions = SOURCES[entry["NAME"]].versions
    return versions[entry.get("SPLIT", "")] if len(versions) > 1 else versions[""]


def layout_rows() -> list[list[str]]:
    """Rows of the table in data/README.md: data set, what for, folder, files."""
    rows = []
    for source in SOURCES.values():
        for i, (folder, files) in enumerate(source.files):
            about = [source.title, source.use] if i == 0 else ["", ""]
            rows.append([*about, f"`{folder}`" if folder else "", files])
    return rows


def origin_rows() -> list[list[str]]:
    """Rows of the table in docs/DATASET.md: NAME, version, clouds, points, archive, size, published by, terms."""
    rows = []
    for name, source in SOURCES.items():
        about = [
            f"{source.points:,}" if source.points else "differs",
            f"`{source.archive}`" if source.archive else "no single file",
            source.size or "unknown",
            source.published_by,
            source.terms,
        ]
        for i, version in enumerate(source.versions.values()):
            clouds = " + ".join(f"{count:,}" for count in version.clouds.values()) or "4 settings, 10 folds of each"
            rows.append([f"`{name}`" if i == 0 else "", version.title, clouds, *(about if i == 0 else [""] * 5)])
    return rows
