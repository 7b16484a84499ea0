"""Photographs with fixation maps, which show where people look."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from vis.data.datasets import Dataset, folder
from vis.data.images import read_image
from vis.errors import UserError

SIGMA = 24  # of the blur, in pixels of OSIE's photographs: the one that its authors use


def osie(path: str) -> Dataset:
    """Load OSIE, 700 photographs that 15 people looked at (Xu et al. 2014), or other photographs with fixation maps.

    path: a folder with the authors' `data/stimuli/*.jpg` and `data/eye/fixations.mat`, or one with `images/` and
    `fixation_maps/`: pictures with the images' names, bright where people look. Photographs without fixations are left out.
    """
    root = Path(path).expanduser()
    eye, maps = root / "data" / "eye" / "fixations.mat", root / "fixation_maps"
    if eye.is_file():
        data, points = folder(str(root / "data" / "stimuli")), fixations(eye)
        return _with_gaze(data, [points.get(name) for name in data.names])
    if not maps.is_dir():
        raise UserError(
            f"dataset.path={path} holds neither data/eye/fixations.mat, as in the authors' repository "
            "github.com/NUS-VIP/predicting-human-gaze-beyond-pixels, nor a folder fixation_maps beside images"
        )
    data, pictures = folder(str(root / "images")), folder(str(maps)).files or []
    by_name = {file.relative_to(maps).with_suffix("").as_posix(): file for file in pictures}
    return _with_gaze(data, [by_name.get(Path(name).with_suffix("").as_posix()) for name in data.names])


def _with_gaze(data: Dataset, looks: list[Path | np.ndarray | None]) -> Dataset:
    """Add fixation maps, files or places, to the images; leave out images without one."""

    def gaze(i: int) -> Image.Image:
        look = looks[i]
        assert look is not None
        return read_image(look).convert("L") if isinstance(look, Path) else blurred(look, data.read(i).size)

    kept = [i for i, look in enumerate(looks) if look is not None]
    if not kept:
        raise UserError(f"no image has fixations under its name: {data.origin}, {data.names[0]}, ...")
    return replace(data, gaze=gaze).part(kept)


def fixations(file: Path) -> dict[str, np.ndarray]:
    """Read the places (x, y) [n, 2], in pixels from 1, that people looked at, by image, from the authors' MATLAB file."""
    from scipy.io import loadmat

    return {
        str(each["img"]): np.concatenate(
            [np.atleast_2d(np.transpose([subject["fix_x"], subject["fix_y"]])) for subject in each["subjects"]]
        )
        for each in loadmat(file, simplify_cells=True)["fixations"]
    }


def blurred(points: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draw places (x, y) [n, 2], in pixels from 1, in a picture of (width, height), blurred by a Gaussian of `SIGMA`."""
    from scipy.ndimage import gaussian_filter

    width, height = size
    x, y = (np.clip(points[:, k].round().astype(int), 1, side) - 1 for k, side in enumerate((width, height)))
    counts = np.zeros((height, width))
    np.add.at(counts, (y, x), 1)
    density = gaussian_filter(counts, SIGMA, mode="constant")
    return Image.fromarray((255 * density / max(density.max(), np.finfo(float).tiny)).round().astype(np.uint8))
