"""One page that opens anywhere: what it shows, and the script that draws it, are inside the file.

The page is page.html beside this file, with plotly's script and the content as JSON put in. It asks the network for
nothing: its Content-Security-Policy forbids the browser to.
"""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.files import atomic_write

MAX_BYTES = 6_000_000
TEMPLATE = Path(__file__).with_name("page.html")
INSTALL = "pip install -r requirements-pictures.txt"


def plotly_script() -> str:
    """Plotly's script, about 4.8 MB; ValueError if it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError(f"plotly is not installed, whose script draws the page; run `{INSTALL}`") from error
    return get_plotlyjs()


def write_page(title: str, about: Sequence[tuple[str, str]], sections: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a page, which is whole or absent.

    Args:
        title: of the page.
        about: names and values that say what it was made of.
        sections: see `tools.evaluation.sections`.
        path: the file to write, in an existing folder.

    Raises:
        ValueError: if it would be larger than `MAX_BYTES`, or plotly is not installed.
    """
    content = json.dumps({"title": title, "about": about, "sections": sections}, ensure_ascii=False, allow_nan=False)
    parts = {"{{plotly}}": plotly_script(), "{{content}}": content.replace("<", r"\u003c")}
    text = TEMPLATE.read_text(encoding="utf-8").replace("{{title}}", html.escape(title))
    for place, part in parts.items():
        before, after = text.split(place)
        text = before + part + after
    data = text.encode()
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"the page would have {len(data) / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}; show fewer with --shapes"
        )
    with atomic_write(path) as file:
        file.write(data)


def packed(values: Any, num_bytes: int = 2) -> dict[str, Any]:
    """Write numbers as low + step · whole numbers of one or two bytes, in base 64.

    Args:
        values: array or tensor of any shape; it is flattened.
        num_bytes: 1 rounds to 1/255 of the range of the values, 2 to 1/65535.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    most = 256**num_bytes - 1
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    step = (high - low) / most or 1.0
    codes = np.rint((array - low) / step).astype(f"<u{num_bytes}")
    return {"bytes": num_bytes, "low": low, "step": step, "data": base64.b64encode(codes.tobytes()).decode()}


def unpacked(array: dict[str, Any]) -> np.ndarray:
    """Read what `packed` wrote, (n,) float64."""
    codes = np.frombuffer(base64.b64decode(array["data"]), dtype=f"<u{array['bytes']}")
    return array["low"] + array["step"] * codes


def picture(pixels: np.ndarray) -> str:
    """A picture as an address that holds it: (H, W) grey as it is, or (H, W, 3) colours, smooth ones; uint8."""
    file = io.BytesIO()
    kind = "png" if pixels.ndim == 2 else "jpeg"
    Image.fromarray(pixels).save(file, kind, optimize=True, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
