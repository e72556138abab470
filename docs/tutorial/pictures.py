"""Draw the pictures of the tutorial from the folder in which its commands were run.

python docs/tutorial/pictures.py FOLDER [--browser chromium]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SIZE = (1100, 1500)


def draw(folder: Path, browser: str) -> None:
    """Copy the counts that `taet data show` drew, and photograph the beginning of the report."""
    shutil.copyfile(folder / "counts.png", HERE / "counts.png")
    with tempfile.TemporaryDirectory() as profile:
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        words += [f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={HERE / 'report.png'}"]
        subprocess.run([browser, *words, (folder / "report.html").resolve().as_uri()], check=True, capture_output=True)
    with Image.open(HERE / "report.png") as image:
        image.convert("RGB").quantize(64).save(HERE / "report.png", optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--browser", default="chromium")
    given = parser.parse_args()
    draw(given.folder, given.browser)
