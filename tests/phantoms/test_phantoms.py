"""Every modality passes the same tests."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from madclip.errors import DataError
from madclip.metrics.image import auroc
from madclip.phantoms import BATCH, MODALITIES, generate, locate
from madclip.phantoms.captions import ABNORMAL_STATES, FINDINGS, NORMAL_STATES, OBJECTIVES, captions
from madclip.phantoms.dataset import write_phantoms
from madclip.phantoms.fields import Canvas, Finish, compress, develop, mark

SIZE = 96


@pytest.fixture(scope="module", params=MODALITIES)
def modality(request):
    return request.param


class TestEveryModality:
    def test_shapes_and_types(self, modality):
        drawn = generate(modality, 5, 0, size=64)
        assert drawn.pixels.shape == (5, 3, 64, 64)
        assert drawn.pixels.dtype == torch.uint8
        assert drawn.masks.shape == (5, 64, 64)
        assert drawn.masks.dtype == torch.bool
        assert drawn.labels.shape == (5,)
        assert len(drawn.captions) == len(drawn.attributes) == 5

    def test_same_seed_same_bytes_and_other_seed_others(self, modality):
        random.seed(1)
        torch.manual_seed(1)
        one = generate(modality, 8, 3, size=SIZE)
        torch.manual_seed(2)
        two, other = generate(modality, 8, 3, size=SIZE), generate(modality, 8, 4, size=SIZE)
        assert torch.equal(one.pixels, two.pixels)
        assert torch.equal(one.masks, two.masks)
        assert one.captions == two.captions
        assert not torch.equal(one.pixels, other.pixels)

    def test_global_random_state_is_left_alone(self, modality):
        before = torch.random.get_rng_state()
        generate(modality, 2, 0, size=64)
        assert torch.equal(before, torch.random.get_rng_state())

    def test_an_image_does_not_depend_on_how_many_are_drawn(self, modality):
        few, many = generate(modality, 3, 7, size=64), generate(modality, BATCH + 3, 7, size=64)
        assert torch.equal(few.pixels, many.pixels[:3])
        assert few.captions == many.captions[:3]

    @pytest.mark.soak
    def test_masks_are_empty_exactly_where_images_are_normal(self, modality, soak):
        count = soak(2000)
        drawn = generate(modality, count, 5, size=SIZE)
        assert torch.equal(drawn.masks.flatten(1).any(1), drawn.labels == 1)
        assert 0 < int(drawn.labels.sum()) < count

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_share_of_abnormal_images(self, modality, share):
        assert torch.all(generate(modality, 8, 1, size=64, abnormal=share).labels == int(share))

    def test_images_have_content_and_differ(self, modality):
        pixels = generate(modality, 8, 2, size=SIZE).pixels.float()
        assert torch.all(pixels.flatten(1).std(1) > 4)
        assert all(not torch.equal(pixels[0], pixels[i]) for i in range(1, 8))

    def test_captions_say_what_was_drawn(self, modality):
        drawn = generate(modality, 16, 6, size=SIZE)
        sentences = captions(drawn.attributes, torch.Generator().manual_seed(0), 40)
        for row, texts in zip(drawn.attributes, sentences, strict=True):
            assert row["modality"] == modality
            text = " | ".join(texts).lower()
            assert OBJECTIVES[modality].lower() in text
            if row["label"]:
                assert any(word.lower() in text for word in FINDINGS.get(row["finding"], (row["finding"],)))
                assert "healthy" not in text
            else:
                assert "finding" not in row
                assert "healthy" in text or "normal" in text

    def test_brightness_alone_does_not_tell_the_classes_apart(self, modality):
        drawn = generate(modality, 200, 11, size=SIZE)
        area = auroc(drawn.labels.numpy(), drawn.pixels.float().mean((1, 2, 3)).numpy())
        assert 0.3 < area < 0.7

    def test_lesions_change_what_is_under_the_mask(self, modality):
        drawn = generate(modality, 64, 8, size=SIZE, difficulty=0.0, abnormal=1.0)
        grey = drawn.pixels.float().mean(1)
        changed = []
        for image, mask in zip(grey, drawn.masks, strict=True):
            near = torch.nn.functional.max_pool2d(mask[None].float(), 9, 1, 4)[0].bool() & ~mask
            if near.any():
                changed.append(float((image[mask].mean() - image[near].mean()).abs()))
        # Whole-image findings have nothing beside them.
        assert len(changed) < 8 or np.mean(changed) > 3

    @pytest.mark.parametrize("difficulty", [0.0, 1.0])
    def test_both_ends_of_difficulty(self, modality, difficulty):
        drawn = generate(modality, 8, 0, size=64, difficulty=difficulty, abnormal=1.0)
        assert drawn.masks.flatten(1).any(1).all()


class TestCaptions:
    def test_prompts_of_the_method_occur(self):
        rows = [{"modality": m, "label": label} for m in MODALITIES for label in (0, 1)]
        seen = {
            t.rstrip(".").lower() for texts in captions(rows, torch.Generator().manual_seed(0), 4000) for t in texts
        }
        for objective in OBJECTIVES.values():
            for state in (*NORMAL_STATES[:7], *ABNORMAL_STATES[:7]):
                assert state.format(objective).lower() in seen

    def test_position_size_and_brightness_are_spoken(self):
        row = {
            "modality": "brain",
            "label": 1,
            "finding": "tumour",
            "side": "left",
            "height": "upper",
            "size": "small",
            "brightness": "bright",
            "view": "axial flair",
        }
        text = " | ".join(captions([row], torch.Generator().manual_seed(0), 200)[0])
        for word in ("left", "upper", "small", "bright", "axial flair", "tumour"):
            assert word in text
        assert "right" not in text.replace("bright", "")

    def test_a_finding_that_is_not_listed_is_called_by_its_name(self):
        row = {"modality": "generic", "label": 1, "finding": "scratch"}
        assert "scratch" in " ".join(captions([row], torch.Generator().manual_seed(0), 30)[0])


def test_place_in_words():
    masks = torch.zeros(3, 100, 100, dtype=torch.bool)
    masks[0, 10:15, 5:10] = True
    masks[1, 70:90, 70:95] = True
    masks[2, 45:55, 10:20] = masks[2, 45:55, 80:90] = True
    assert locate(masks) == [
        {"side": "left", "height": "upper", "size": "small"},
        {"side": "right", "height": "lower", "size": "large"},
        {"side": "both", "height": "middle", "size": "medium"},
    ]


def _canvas(n=8, size=SIZE, seed=0):
    return Canvas(n, size, torch.Generator().manual_seed(seed))


class TestFields:
    @pytest.mark.parametrize("cells", [3, 11.5, 40])
    def test_noise_has_unit_deviation(self, cells):
        noise = _canvas(n=64, size=64).noise(cells)
        assert noise.std() == pytest.approx(1, abs=0.12)
        assert noise.mean() == pytest.approx(0, abs=0.12)

    def test_noise_takes_a_frequency_for_each_image(self):
        canvas = _canvas(n=2)
        noise = canvas.noise(torch.tensor([2.0, 30.0]).reshape(2, 1, 1))
        rough = noise.diff(dim=2).abs().mean((1, 2))
        assert rough[1] > 4 * rough[0]

    def test_place_finds_the_region(self):
        canvas = _canvas(n=50)
        region = ((canvas.x > 0.5) & (canvas.y < -0.5)).float()
        cx, cy = canvas.place(region)
        assert torch.all(cx > 0.45)
        assert torch.all(cy < -0.45)

    def test_blob_lies_at_its_place(self):
        canvas = _canvas()
        at, radius = torch.full((8, 1, 1), 0.3), torch.full((8, 1, 1), 0.2)
        inside = canvas.blob(at, -at, radius, rough=0, elongation=0) > 0
        assert inside.float().mean() == pytest.approx(3.1416 * 0.04 / 4, rel=0.05)
        assert not inside[:, SIZE // 2 :].any()

    def test_marks_are_independent_of_the_image(self):
        image = torch.full((8, 1, SIZE, SIZE), 0.5)
        drawn = mark(_canvas(), image, 1.0)
        assert torch.all((drawn != 0.5).flatten(1).any(1))
        assert torch.all((drawn != 0.5).flatten(1).float().mean(1) < 0.5)
        assert torch.equal(image, torch.full_like(image, 0.5))

    def test_compression_without_steps_changes_nothing(self):
        image = _canvas().rand(2, 3, 60, 60)
        assert torch.allclose(compress(image, 1e-6), image, atol=1e-4)
        assert not torch.allclose(compress(image, 0.1), image, atol=1e-2)

    def test_develop_keeps_range_and_shape(self):
        canvas = _canvas()
        image = develop(canvas, canvas.grain()[:, None], Finish(marks=1.0, blocks=1.0))
        assert image.shape == (8, 1, SIZE, SIZE)
        assert image.min() >= 0
        assert image.max() <= 1


class TestDataset:
    def test_layout(self, tmp_path):
        root = write_phantoms(tmp_path / "set", "brain", 3, 2, 0, size=64, shots=2)
        files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
        assert len([f for f in files if f.startswith("valid/good/img/")]) == 2
        assert len([f for f in files if f.startswith("test/good/img/")]) == 3
        assert [f.replace("/img/", "/anomaly_mask/") for f in files if "Ungood/img" in f] == [
            f for f in files if "anomaly_mask" in f
        ]
        rows = [json.loads(line) for line in (root / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
        assert {row["image"] for row in rows} == {f for f in files if "anomaly_mask" not in f}
        assert all(row["caption"] for row in rows)
        mask = np.asarray(Image.open(next((root / "test/Ungood/anomaly_mask").iterdir())))
        assert set(np.unique(mask)) == {0, 255}
        assert [p.name for p in tmp_path.iterdir()] == ["set"]

    def test_parts_do_not_share_images(self, tmp_path):
        root = write_phantoms(tmp_path / "set", "oct", 3, 3, 0, size=64, shots=3)
        contents = [p.read_bytes() for p in root.rglob("img/*.png")]
        assert len(set(contents)) == len(contents) == 12

    def test_same_seed_same_bytes(self, tmp_path):
        one, two = (write_phantoms(tmp_path / n, "liver", 2, 2, 5, size=64, shots=1) for n in "ab")
        for file in one.rglob("*.*"):
            assert file.read_bytes() == (two / file.relative_to(one)).read_bytes()

    def test_a_folder_with_content_is_refused(self, tmp_path):
        (tmp_path / "mine.txt").write_text("keep")
        with pytest.raises(DataError, match="not an empty folder"):
            write_phantoms(tmp_path, "brain", 1, 1, 0)
        assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]

    def test_nothing_is_left_behind_by_an_error(self, tmp_path):
        with pytest.raises(DataError, match="unknown modality"):
            write_phantoms(tmp_path / "set", "knee", 1, 1, 0)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "arguments", [{"n": 0}, {"size": 8}, {"difficulty": 2.0}, {"abnormal": -0.1}, {"modality": "knee"}]
    )
    def test_arguments_out_of_range(self, arguments):
        with pytest.raises(DataError):
            generate(**{"modality": "brain", "n": 1, "seed": 0, **arguments})
