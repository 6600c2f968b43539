"""The pictures of the README and of the documentation site, in docs/pictures/.

    python scripts/pictures.py

Segments the head of Colin27 that comes with the package, and draws: `segmentation.jpg`, the scan and its label map in three planes;
`qc_report.png`, the QC report of that prediction, which needs Chromium or Chrome; `standardisation.png`, the scan before and after
standardisation. `made_scans.png` and `curve.png` are cut from the pictures that scripts/gallery.py and scripts/finetuning_report.py drew.
Needs matplotlib (extra `view`), which brings Pillow.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from brainseg_jax.cli.arguments import Parser
from brainseg_jax.core.errors import InputError, exit_code
from brainseg_jax.data import labels, nifti, preprocess
from brainseg_jax.qc import figures

ROOT = Path(__file__).parents[1]
SCAN = ROOT / "brainseg_jax" / "data" / "sample_files" / "colin27_T1_head.nii.gz"
TABLE = "intracranial"  # what the network that comes with the package segments
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CUTS = (0.36, 0.47, 0.46)  # of each axis of "RAS", where the brain is cut, as a share of its length
OPACITY, SCALE = 0.55, 2  # of the colours on the scan; pixels a voxel
REPORT = (1200, 530)  # pixels of the window that the QC report is shown in
# What is cut from a picture, as left, top, right and bottom in pixels.
CROPS = {"made_scans.png": ("made_scans.png", (0, 0, 784, 196)), "curve.png": ("finetuning_2mm_seg4.png", (0, 0, 488, 384))}


def main() -> int:
    """Draws all pictures. Returns the exit code."""
    parser = Parser("python scripts/pictures.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures", help="the folder to write to (docs/pictures)")
    return exit_code(lambda: draw(parser.parse_args().out))


def draw(out: Path) -> int:
    """Draws all pictures into the folder `out`; without a browser all but the QC report's."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        predicted = Path(folder, "predicted")
        command = ["--i", str(SCAN), "--o", str(predicted), "--qc", str(predicted / "qc.html")]
        subprocess.run([sys.executable, "-m", "brainseg_jax", "predict", *command], check=True, cwd=ROOT)
        save(segmentation(predicted / f"{SCAN.name.partition('.')[0]}_seg.nii.gz"), out / "segmentation.jpg")
        if browser := next(filter(None, map(shutil.which, BROWSERS)), None):
            save(screenshot(browser, predicted / "qc.html", REPORT), out / "qc_report.png", colours=256)
        else:
            print("qc_report.png: left as it is, for it needs Chromium or Chrome (Debian's package is chromium)")
    standardisation(out / "standardisation.png")
    for name, (source, box) in CROPS.items():
        save(Image.open(ROOT / "docs" / source).convert("RGBA").convert("RGB").crop(box), out / name, colours=64)
    return 0


def segmentation(file: Path) -> Image.Image:
    """The scan, and below it the scan with its label map in the label table's colours: a sagittal, a coronal and an axial slice."""
    scan, found = nifti.read(SCAN), nifti.read_labels(file)
    grey = np.clip(scan.voxels / np.percentile(scan.voxels, 99.7), 0, 1)
    colours = np.zeros((1 + max(s.id for s in labels.read_table(TABLE).structures), 3))
    for structure in labels.read_table(TABLE).structures:
        colours[structure.id] = [int(structure.colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    codes = nifti.orientation(scan.affine)
    plain, painted = [], []
    for axis, share in enumerate(CUTS):
        shade, ids = (slice_of(figures.to_ras(volume, codes), axis, share) for volume in (grey, found.voxels))
        wide = np.asarray(Image.fromarray(np.rint(255 * shade).astype(np.uint8)).resize([SCALE * n for n in shade.shape[::-1]]))
        plain.append(np.repeat(wide[..., None], 3, axis=2))
        painted.append(painted_over(plain[-1], colours[np.kron(ids, np.ones((SCALE, SCALE), int))]))
    return Image.fromarray(np.concatenate([in_a_row(plain), in_a_row(painted)]))


def slice_of(volume: np.ndarray, axis: int, share: float) -> np.ndarray:
    """A slice across an axis of "RAS", the front or the top upwards."""
    return np.rot90(np.take(volume, int(share * volume.shape[axis]), axis))


def painted_over(grey: UInt8[np.ndarray, "h w 3"], colours: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """Colours from 0 to 1 laid over a picture, where they are not black."""
    opacity = OPACITY * (colours.max(-1, keepdims=True) > 0)
    return np.rint((1 - opacity) * grey + opacity * 255 * colours).astype(np.uint8)


def in_a_row(tiles: list[Integer[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures side by side on black, in the middle of the height of the highest."""
    high = max(len(tile) for tile in tiles)
    above = [(high - len(tile)) // 2 for tile in tiles]
    return np.concatenate(
        [np.pad(t, ((a, high - len(t) - a), (4, 4), (0, 0))) for a, t in zip(above, tiles, strict=True)], axis=1, dtype=np.uint8
    )


def screenshot(browser: str, page: Path, size: tuple[int, int]) -> Image.Image:
    """A page as a browser shows it in a window of that size. Raises InputError where the browser draws nothing."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
        window = [f"--window-size={size[0]},{size[1] + 200}", f"--screenshot={shot}", page.resolve().as_uri()]  # headless windows end early
        done = subprocess.run([browser, *flags, *window], capture_output=True, text=True, timeout=120)
        if not shot.exists():
            raise InputError(f"{browser}: drew nothing ({(done.stderr.strip().splitlines() or ['no message'])[-1]}); try another browser")
        return Image.open(shot).convert("RGB").crop((0, 0, *size))


def standardisation(file: Path) -> None:
    """The scan as it is stored, as the default standardisation leaves it, and as the published one does."""
    scan = nifti.read(SCAN)
    columns = {"as stored": figures.to_ras(scan.voxels / scan.voxels.max(), nifti.orientation(scan.affine))}
    for name, title in (("default", "default"), ("paper", "the paper's")):
        ready = preprocess.standardize(scan, preprocess.spec(name, dtype="float16"), SCAN.name)
        columns[title] = figures.to_ras(ready.image.astype(np.float32), nifti.orientation(ready.affine))
    figures.slices(file, columns, "Standardisation of Colin27, 1 mm, 192³ voxels", (figures.PLANES[0], figures.PLANES[2]))
    save(Image.open(file).convert("RGB"), file, colours=64)


def save(image: Image.Image, file: Path, colours: int = 0) -> None:
    """Writes a picture: as JPEG, or as PNG in that many colours."""
    if colours:
        image.quantize(colours, dither=Image.Dither.NONE).save(file, optimize=True)
    else:
        image.save(file, quality=82, optimize=True)
    print(f"{file}: written, {file.stat().st_size // 1000} kB")


if __name__ == "__main__":
    sys.exit(main())
