"""What histology, ultrasound, fundus and generic draw beyond what every modality must."""

import pytest
import torch

from madclip.phantoms import generate
from madclip.phantoms.fields import Canvas, dots
from madclip.phantoms.generic import DEFECTS, SURFACES, VISIBLE, Scene, damage
from madclip.phantoms.histology import Cells, lattice, stamp

OURS = ("histology", "ultrasound", "fundus", "generic")


def _canvas(n=1, size=120, seed=0):
    return Canvas(n, size, torch.Generator().manual_seed(seed))


class TestDots:
    def test_a_disc_has_its_area(self):
        at = torch.zeros(1, 1)
        assert dots(_canvas(), at, at, torch.full((1, 1), 0.2)).mean() == pytest.approx(3.1416 * 0.04 / 4, rel=0.03)

    def test_it_lies_at_its_centre(self):
        canvas = _canvas()
        plane = dots(canvas, torch.tensor([[0.41]]), torch.tensor([[-0.33]]), torch.tensor([[0.07]]))
        assert float((plane * canvas.x).sum() / plane.sum()) == pytest.approx(0.41, abs=0.004)
        assert float((plane * canvas.y).sum() / plane.sum()) == pytest.approx(-0.33, abs=0.004)

    def test_thin_ones_get_fainter_not_lost(self):
        canvas = _canvas()
        at = torch.full((1, 1), canvas.pixel / 2)
        thick, thin = (float(dots(canvas, at, at, torch.full((1, 1), r * canvas.pixel)).max()) for r in (0.5, 0.25))
        assert 0 < thin < thick <= 1

    def test_outside_leaves_no_trace_and_none_wraps_round(self):
        far = torch.tensor([[-1.5, 1.5, 0.0, 0.0]])
        assert not dots(_canvas(), far, far.flip(1), torch.full((1, 4), 0.1)).any()
        corner = dots(_canvas(), torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[0.1]]))
        assert corner[..., 60:].any()
        assert not corner[..., :60].any()

    def test_order_does_not_matter(self):
        canvas = _canvas(n=2)
        x, y, r, s = (canvas.uniform(low, high, 50) for low, high in ((-1, 1), (-1, 1), (0.01, 0.2), (0, 1)))
        again = dots(canvas, *(v.flip(1) for v in (x, y, r, s)))
        assert torch.equal(dots(canvas, x, y, r, s), again)


@pytest.mark.parametrize("modality", OURS)
@pytest.mark.parametrize("size", [32, 150, 300])
def test_any_size(modality, size):
    drawn = generate(modality, 8, 1, size=size)
    assert drawn.pixels.shape == (8, 3, size, size)
    assert torch.equal(drawn.masks.flatten(1).any(1), drawn.labels == 1)


@pytest.mark.parametrize("modality", OURS)
def test_lesions_lie_anywhere(modality):
    masks = generate(modality, 96, 3, size=48, abnormal=1.0).masks.float()
    share = masks.mean(0)
    quarters = [share[a, b].mean() for a in (slice(24), slice(24, 48)) for b in (slice(24), slice(24, 48))]
    left, right = quarters[0] + quarters[2], quarters[1] + quarters[3]
    assert 0.6 < left / right < 1.6
    # Masses lie where breast tissue is: not in the chest wall.
    assert modality == "ultrasound" or 0.5 < (quarters[0] + quarters[1]) / (quarters[2] + quarters[3]) < 2


def test_fundus_lesions_may_be_tiny_and_many():
    masks = generate("fundus", 24, 4, size=240, abnormal=1.0).masks.float()
    assert 0.002 < float(masks.mean((1, 2)).median()) < 0.05
    shrunk = 1 - torch.nn.functional.max_pool2d(1 - masks[:, None], 5, 1, 2)[:, 0]
    # Most of a lesion is gone when two pixels are taken from its rim.
    assert float((shrunk.sum((1, 2)) / masks.sum((1, 2))).median()) < 0.25


def test_fundus_normal_eyes_have_bright_and_dark_structures():
    drawn = generate("fundus", 16, 5, size=240, abnormal=0.0)
    green = drawn.pixels[:, 1].float()
    inside = drawn.pixels.float().amax(1) > 60
    for plane, where in zip(green, inside, strict=True):
        if where.float().mean() > 0.3:
            values = plane[where]
            assert values.quantile(0.995) > 1.2 * values.median()
            assert values.quantile(0.02) < 0.85 * values.median()


def test_ultrasound_masses_are_dark():
    drawn = generate("ultrasound", 40, 6, size=120, abnormal=1.0, difficulty=0.2)
    grey = drawn.pixels.float().mean(1)
    near = torch.nn.functional.max_pool2d(drawn.masks[:, None].float(), 15, 1, 7)[:, 0].bool() & ~drawn.masks
    darker = [float(g[m].mean() < g[b].mean()) for g, m, b in zip(grey, drawn.masks, near, strict=True) if b.any()]
    assert sum(darker) / len(darker) > 0.8


class TestHistology:
    def test_a_patch_may_be_all_tumour_or_hold_a_part(self):
        share = generate("histology", 64, 7, size=48, abnormal=1.0).masks.float().mean((1, 2))
        assert 0.2 < float((share > 0.95).float().mean()) < 0.8
        assert float((share < 0.6).float().mean()) > 0.1

    def test_nuclei_do_not_depend_on_their_order(self):
        canvas = _canvas()
        x, y = lattice(canvas, 11.0)
        k = x.shape[1]
        radius, ratio, angle, dark, pale = (canvas.rand(1, k) + low for low in (4, 0.8, 0, 0.5, 0))
        one = stamp(canvas, Cells(x, y, radius, ratio, angle, dark, pale), torch.zeros(1, 120, 120))
        flipped = Cells(*(v.flip(1) for v in (x, y, radius, ratio, angle, dark, pale)))
        two = stamp(canvas, flipped, torch.zeros(1, 120, 120))
        assert float((one[2] - two[2]).abs().max()) < 1e-6
        assert 0.2 < float((one[0] > 0).float().mean()) < 1

    def test_no_nucleus_at_all(self):
        canvas = _canvas()
        none = torch.zeros(1, 3)
        assert not stamp(canvas, Cells(*[none] * 7), torch.zeros(1, 120, 120))[0].any()

    def test_a_lattice_covers_the_image(self):
        x, y = lattice(_canvas(), 9.0)
        assert min(x.min(), y.min()) < 3
        assert min(x.max(), y.max()) > 117


class TestGeneric:
    @pytest.mark.parametrize("name", SURFACES)
    def test_every_surface(self, name):
        values = [SURFACES[name](_canvas(seed=seed)) for seed in range(6)]
        assert all(v.shape == (1, 120, 120) and torch.isfinite(v).all() for v in values)
        assert not torch.equal(values[0], values[1])
        assert sum(float(v.std()) > 0.01 for v in values) >= 5

    @pytest.mark.parametrize("name", DEFECTS)
    def test_every_defect_changes_what_it_covers_and_nothing_else(self, name, monkeypatch):
        monkeypatch.setattr("madclip.phantoms.generic.DEFECTS", {name: DEFECTS[name]})
        for seed in range(12):
            canvas = _canvas(seed=seed)
            image = (0.5 + 0.2 * canvas.noise(20)).clamp(0, 1)[:, None].expand(-1, 3, -1, -1).contiguous()
            palette = torch.tensor([[0.2], [0.8], [0.0]]).expand(3, 3)
            damaged, mask, finding, _ = damage(Scene(canvas, image, palette, 0.5))
            change = (damaged - image).abs().amax(1)
            near = torch.nn.functional.max_pool2d(mask[:, None].float(), 61, 1, 30)[:, 0].bool()
            assert finding in (name, "stain")
            assert not mask.any() or float(change[mask].mean()) > VISIBLE / 2
            assert float(change[mask].sum()) > 0.2 * float(change.sum())
            assert not mask.any() or float(change[~near].mean() if (~near).any() else 0) < 0.05
