"""Where the values of each epoch are drawn: TensorBoard and, where it was asked for, Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from tools.training.tracking import Tracker
from utils.files import writing


class Curves:
    """The curves of a training run, its texts and its pictures.

    Args:
        folder: of TensorBoard's files.
        tracker: of Weights & Biases; None if it was not asked for.
    """

    def __init__(self, folder: Path, tracker: Tracker | None) -> None:
        self.folder, self.tracker = folder, tracker
        with writing(folder):
            self.writer = SummaryWriter(str(folder))

    def begin(self, name: str, config: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        """Keep what the run is: its name and config, and texts by their titles."""
        if self.tracker:
            self.tracker.begin(name, config)
        with writing(self.folder):
            for title, text in texts.items():
                self.writer.add_text(title, "\n".join(f"    {line}" for line in text.splitlines()))  # code, in Markdown
            self.writer.flush()

    def draw(self, values: Mapping[str, float], epoch: int) -> None:
        """Add a point to each curve."""
        with writing(self.folder):
            for name, value in values.items():
                self.writer.add_scalar(name, value, epoch)
            self.writer.flush()
        if self.tracker:
            self.tracker.draw(values, epoch)

    def picture(self, path: Path, epoch: int) -> None:
        """Show a picture that the run has left."""
        with Image.open(path) as image, writing(self.folder):
            self.writer.add_image(path.stem, np.asarray(image.convert("RGB")), epoch, dataformats="HWC")
            self.writer.flush()
        if self.tracker:
            self.tracker.picture(path, epoch)

    def close(self, done: bool) -> None:
        """Finish the curves of a run that has come to its end, or has not."""
        self.writer.close()
        if self.tracker:
            self.tracker.close(done)


def pictures_in(folder: Path) -> list[Path]:
    """Pictures that a run has left in its folder, by name."""
    return sorted(folder.glob("*.png"))
