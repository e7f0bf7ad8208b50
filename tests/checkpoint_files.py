"""Checkpoint files as other set-ups would have written them."""

import zipfile
from pathlib import Path


def rewrite_for_another_numpy(path: Path, target: Path) -> None:
    """Copy a file of torch.save that holds NumPy numbers, under the names that the other NumPy, 1 or 2, gives them."""
    names = b"numpy._core.multiarray", b"numpy.core.multiarray"  # NumPy 2's and 1's
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as rewritten:
        for entry in archive.namelist():
            content = archive.read(entry)
            if entry.endswith("/data.pkl"):
                here, there = names if names[0] in content else names[::-1]
                assert here in content
                content = content.replace(here, there)
            rewritten.writestr(entry, content)
