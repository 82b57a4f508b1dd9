"""A scan with its heat map in NiiVue, in a headless Chromium: a picture to look at, and a check by numbers.

`npm --prefix pages ci`, then `python benchmarks/niivue.py SCAN.nii.gz HEATMAP.nii.gz --out picture.png`. NiiVue is
asked what it has at a hundred points of the heat map, given in millimetres, and nibabel what the files have there.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

NIIVUE = Path(__file__).parents[1] / "pages/node_modules/@niivue/niivue/dist/niivue.umd.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGE = """<!doctype html><canvas id="view" width="1200" height="800"></canvas><script src="niivue.js"></script>"""
SHOW = """async ([at, low, high]) => {
  const viewer = new niivue.Niivue({ backColor: [0, 0, 0, 1], isResizeCanvas: false, isColorbar: true })
  await viewer.attachToCanvas(document.getElementById('view'))
  await viewer.loadVolumes([
    { url: 'scan.nii.gz', colormap: 'gray' },
    { url: 'heat.nii.gz', colormap: 'viridis', opacity: 0.6, cal_min: low, cal_max: high, colormapType: 1 },
  ])
  viewer.setSliceType(viewer.sliceTypeMultiplanar)
  viewer.scene.crosshairPos = viewer.mm2frac(at)
  viewer.drawScene()
  globalThis.viewer = viewer
}"""
ASK = """(points) => points.map((mm) => globalThis.viewer.volumes.map((one) => one.getValue(...one.mm2vox(mm))))"""


class Files(SimpleHTTPRequestHandler):
    """Serves a folder, and does not talk."""

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def moved(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [N, 3] by a matrix [4, 4]."""
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3])


def points_of(heat: Any, count: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of a heat map, the highest first and the rest drawn, and where they lie: mm."""
    values = np.asarray(heat.dataobj)
    generator = np.random.default_rng(0)
    drawn = np.stack([generator.integers(1, side - 1, count - 1) for side in values.shape], 1)
    voxels = np.concatenate([[np.unravel_index(values.argmax(), values.shape)], drawn])
    return voxels, moved(heat.affine, voxels)


def main() -> None:
    """Draw, compare, and say how far NiiVue and nibabel are apart."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("heat", type=Path)
    parser.add_argument("--out", type=Path, default=Path("niivue.png"))
    options = parser.parse_args()
    volumes: list[Any] = [nibabel.load(options.scan), nibabel.load(options.heat)]
    voxels, places = points_of(volumes[1])
    values = np.asarray(volumes[1].dataobj)
    limits = [float(np.percentile(values, 99)), float(values.max())]
    with tempfile.TemporaryDirectory() as folder:
        for name, source in {"scan.nii.gz": options.scan, "heat.nii.gz": options.heat, "niivue.js": NIIVUE}.items():
            shutil.copy(source, Path(folder) / name)
        (Path(folder) / "index.html").write_text(PAGE, encoding="utf-8")
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as session:
            arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
            browser = session.chromium.launch(executable_path=CHROMIUM, args=arguments)
            page = browser.new_page(viewport={"width": 1220, "height": 820})
            page.set_default_timeout(120_000)
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            page.evaluate(SHOW, [places[0].tolist(), *limits])
            found = np.array(page.evaluate(ASK, places.tolist()), float)
            page.locator("#view").screenshot(path=options.out)
            browser.close()
        server.shutdown()
    for number, (name, volume) in enumerate(zip(("scan", "heat map"), volumes, strict=True)):
        there = moved(np.linalg.inv(volume.affine), places)
        apart = np.abs(there - np.rint(there)).max()
        mine = np.asarray(volume.dataobj)[tuple(np.rint(there).astype(int).T)]
        differ = np.abs(found[:, number] - mine).max()
        print(f"{name}: {len(places)} points, at most {apart:.1e} voxels from a centre; values differ by {differ:.2g}")
    print(f"{options.out}: the heat map's highest voxel {voxels[0].tolist()} under the crosshair")


if __name__ == "__main__":
    main()
