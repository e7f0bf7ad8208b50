"""What README.md promises, and docs/FAMILY.md for it: a command for each config, a table that tells the truth."""

import json
import re
import shlex
from pathlib import Path

from utils.config import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BOTH = README + (ROOT / "docs/FAMILY.md").read_text()
COMMANDS = sorted(set(re.findall(r"^python main\.py (--config .+)$", BOTH, re.MULTILINE)))


def test_every_shipped_config_but_the_demos_has_a_command():
    shipped = {str(path.relative_to(ROOT)) for path in ROOT.glob("cfgs/*/*.yaml")}
    commanded = {re.search(r"--config (\S+)", command)[1] for command in COMMANDS}
    shipped, commanded = (
        {n for n in names if not re.match("cfgs/(dataset|demo)/", n)} for names in (shipped, commanded)
    )
    assert shipped == commanded


def test_the_readme_says_where_the_other_commands_are():
    assert "](docs/FAMILY.md)" in README


SYSTEMS = {
    "I2P_MAE": "I2P-MAE",
    "Point_M2AE": "Point-M2AE",
    "Point_MAE": "Point-MAE",
    "Point_NN": "Point-NN",
    "Point_BERT": "Point-BERT",
}
FOLDERS = {  # of the systems that share names of models
    "point-mae": "Point-MAE",
    "point-bert": "Point-BERT",
    "act": "ACT",
}


def done_by(command: str) -> tuple[str, str]:
    """Which system a command runs, and what it does."""
    arguments = shlex.split(re.sub(r"--ckpts \S+", "", command))
    config = load_config(ROOT / arguments[1])
    data = (config.dataset.get("train") or config.dataset.get("svm_train")).NAME
    tasks = {"ModelNetFewShot": "few-shot", "ShapeNetPart": "part segmentation", "S3DIS": "part segmentation"}
    flags = {
        "--test_svm": "linear SVM",
        "--test_bank": "memory bank",
        "--finetune_model": "fine-tuning",
        "--test": "test",
    }
    task = tasks.get(data) or next((name for flag, name in flags.items() if flag in arguments), "pre-training")
    path = Path(arguments[1])
    if path.parent.name in FOLDERS:
        return FOLDERS[path.parent.name], task
    system = next(name for model, name in SYSTEMS.items() if config.model.NAME.startswith(model))
    return ("I2P-MAE" if path.stem == "i2p-mae" else system), task


def test_the_table_of_systems_says_yes_where_there_is_a_command_and_no_elsewhere():
    (table,) = re.findall(r"^\| \| configs .*\n\|---.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    (header,) = re.findall(r"^\| \| configs \| (.*) \|$", README, re.MULTILINE)
    claimed, places = {}, []
    for line in table.splitlines():
        system, configs, *cells = line.strip("| ").split(" | ")
        places += re.findall(r"`(?:cfgs/)?([\w-]+)/`", configs)
        claimed |= {(system, task): cell for task, cell in zip(header.split(" | "), cells, strict=True)}
    found = {done_by(command) for command in COMMANDS}
    assert len(claimed) == 6 * 6
    assert claimed == {key: "yes" if key in found else "no" for key in claimed}
    assert {system for system, _ in found} == {system for system, _ in claimed}
    assert places
    assert all((ROOT / "cfgs" / place).is_dir() for place in places)


def test_imports_of_the_examples_exist():
    lines = re.findall(r"^from [a-z_.0-9]+ import \w+$", README, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        exec(line, {})


def test_a_device_is_named_in_one_place():
    """Device and dtype come from the inputs; utils/ chooses them, and the kernels' runtime drives a GPU."""
    rooms = ("models", "datasets", "tools", "extensions")
    named = re.compile(r"[\"']cuda(:\d)?[\"']|\.cuda\(")
    found = [p for room in rooms for p in (ROOT / room).rglob("*.py") if named.search(p.read_text())]
    assert [path.name for path in found] == ["cuda_runtime.py"]


def test_the_readme_counts_the_rows_of_fidelity():
    numbers = re.findall(r"^\| (\**\d+\**) \|", (ROOT / "docs/FIDELITY.md").read_text(), re.MULTILINE)
    places, differing = re.search(r"lists (\d+) places.*In (\w+) of them figures differ", README, re.DOTALL).groups()
    assert [int(number.strip("*")) for number in numbers] == list(range(1, int(places) + 1))
    assert sum("*" in number for number in numbers) == {"six": 6, "seven": 7, "eight": 8, "nine": 9}[differing]


PUBLISHED = {  # row of the table → where its figures stand; `_unverified` behind one that has no source
    "linear SVM, ModelNet40": ("svm", "modelnet40"),
    "linear SVM, OBJ-BG": ("svm", "scan_obj-bg"),
    "fine-tuned, ModelNet40": ("finetune", "modelnet40"),
    "the same, best of 49 votes": ("finetune", "modelnet40_vote"),
    "fine-tuned, OBJ-BG": ("finetune", "scan_obj-bg"),
    "fine-tuned, OBJ-ONLY": ("finetune", "scan_obj"),
    "fine-tuned, PB-T50-RS": ("finetune", "scan_pb"),
    "few-shot, 5-way 10-shot": ("fewshot", "5w10s"),
    "parts, instance mIoU": ("part_seg", "instance_mIoU"),
}


def test_published_figures_are_those_that_are_reproduced():
    published = json.loads((ROOT / "tools/evaluation/paper_results.json").read_text())
    header, _, *rows = re.search(r"^\| published \|.*\n(?:\|.*\n)+", README, re.MULTILINE)[0].splitlines()
    methods = [cell.strip() for cell in header.split("|")[2:-2]]
    assert methods == ["I2P-MAE", "Point-M2AE", "Point-MAE", "Point-BERT", "ACT"]
    cells = {name.strip(): figures for _, name, *figures, _, _ in (row.split("|") for row in rows)}
    assert list(cells) == list(PUBLISHED)
    for name, (section, key) in PUBLISHED.items():
        for method, cell in zip(methods, cells[name], strict=True):
            of_method = published[method]
            unverified = of_method.get(f"{section}_unverified", {})
            found = {**unverified, **of_method.get(section, {})}.get(key)
            value = found[0] if isinstance(found, list) else found
            expected = "–" if value is None else f"{value}\\*" if key in unverified else str(value)
            assert cell.strip() == expected, (name, method)
