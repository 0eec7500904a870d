"""A page of scripts.race as an animation, filmed by a browser: what docs/race.gif was made by.

python -m scripts.race --prompt "def " --out race.html && python -m tests.film race.html race.gif
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from tqdm import trange

from support.pictures import to_write
from support.terminal import BadInput, Parser, package, read_file, run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
FRAMES = 42  # of the animation
SIZE = 1240, 780  # pixels


def film(page, path):
    """Photograph a page at FRAMES moments, the share of the way behind its #."""
    image = package("PIL.Image", "an animation")
    width, height = SIZE
    frames = []
    with tempfile.TemporaryDirectory(prefix="race-") as folder:
        browser = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        browser += [f"--window-size={width},{height}", f"--user-data-dir={folder}/own"]
        for frame in trange(FRAMES + 1, desc="frames", leave=False):
            moment = f"{Path(page).resolve().as_uri()}#{frame / FRAMES}"
            shot = f"{folder}/{frame}.png"
            subprocess.run([*browser, f"--screenshot={shot}", moment], capture_output=True)
            with image.open(shot) as picture:  # there is none where the browser failed
                frames.append(picture.convert("RGB"))
    # One palette for all, so that only what moves is stored, which has the rare colours too
    palette = frames[FRAMES // 2].quantize(64, image.Quantize.MAXCOVERAGE)
    first, *others = [frame.quantize(palette=palette, dither=0) for frame in frames]
    lasts = [120] * FRAMES + [4000]  # milliseconds
    first.save(path, save_all=True, append_images=others, duration=lasts, loop=0)


def main(argv=None):
    parser = Parser(prog="tests.film", description="Film a page of scripts.race.")
    parser.add_argument("page")
    parser.add_argument("target", type=to_write(".gif"))
    options = parser.parse_args(argv)
    if not BROWSER:
        raise BadInput("chromium, which films the page, is not here")
    read_file(options.page, "the page")
    film(options.page, options.target)


if __name__ == "__main__":
    run(main, "tests.film")
