"""RD4AD, MKD and DRA: distances, maps and losses by hand."""

import pytest
import torch

from madclip.data.load import load_dataset
from madclip.errors import DataError
from madclip.methods import load_baseline
from madclip.methods.distillation import image_distance, patch_distance, seeded, to_planes
from madclip.methods.dra import Heads, cut_mix, deviation_loss, top_mean, total_loss
from madclip.methods.mkd import WEIGHT, Cloner, distances
from madclip.methods.rd4ad import Student, reverse_map


def planes(*vectors):
    """Planes [1, T, 2, 1, G] of one row of patches, each tap a list of vectors."""
    return torch.tensor(vectors, dtype=torch.float32).transpose(1, 2)[None, :, :, None]


class TestDistances:
    def test_map_of_rd4ad_by_hand(self):
        teacher = planes([[1, 0], [0, 2]], [[1, 0], [3, 4]])
        student = planes([[5, 0], [1, 0]], [[0, 1], [-3, -4]])
        # Cosines 1 and 0; 0 and -1. Distances 0 and 1; 1 and 2. Half of their means over the taps.
        torch.testing.assert_close(patch_distance(student, teacher)[0], torch.tensor([[0.0, 1.0], [1.0, 2.0]]))
        torch.testing.assert_close(reverse_map(student, teacher)[0], torch.tensor([0.25, 0.75]))

    def test_distance_of_a_whole_tap_by_hand(self):
        teacher, student = planes([[1, 0], [0, 2]]), planes([[1, 0], [2, 0]])
        # (1, 0, 0, 2) . (1, 0, 2, 0) = 1 over |.| |.| = 5.
        assert float(image_distance(student, teacher)) == pytest.approx(1 - 1 / 5)
        # Squares of the differences: 0, 0 and 4, 4; their mean is 2.
        assert float(distances(student, teacher)) == pytest.approx(1 - 1 / 5 + WEIGHT * 2)

    def test_planes(self):
        tokens = torch.arange(24.0).view(1, 1, 6, 4)
        assert to_planes(tokens, (2, 3))[0, 0, :, 1, 2].tolist() == tokens[0, 0, 5].tolist()

    @pytest.mark.parametrize("build", [lambda: Student(2, 5), lambda: Cloner(2, 5, (3, 4))])
    def test_students_say_every_tap_and_a_seed_determines_them(self, build):
        inputs = torch.randn(2, 2, 5, 3, 4) if isinstance(build(), Student) else torch.randn(2, 3, 36, 48)
        one, same, other = (seeded(build, seed) for seed in (1, 1, 2))
        assert one(inputs).shape == (2, 2, 5, 3, 4)
        assert torch.equal(one(inputs), same(inputs))
        assert not torch.equal(one(inputs), other(inputs))

    def test_the_embedding_is_narrower_than_what_it_stands_for(self):
        student = Student(4, 192)
        assert student.embed(torch.randn(2, 4 * 192, 3, 3)).shape[1] < 192


class TestDRA:
    def test_deviation_loss_by_hand(self):
        prior = torch.tensor([-1.0, 1.0, 3.0])  # mean 1, standard deviation 2
        scores, target = torch.tensor([1.0, -3.0, 2.0, 20.0]), torch.tensor([False, False, True, True])
        # Deviations 0, -2, 0.5 and 9.5: losses 0 and 2; 5 - 0.5 and none beyond the margin.
        assert float(deviation_loss(scores, target, prior)) == pytest.approx((0 + 2 + 4.5 + 0) / 4)

    def test_top_tenth(self):
        patches = torch.arange(40.0)[None]
        assert float(top_mean(patches)) == pytest.approx((39 + 38 + 37 + 36) / 4)
        assert float(top_mean(torch.tensor([[1.0, 5.0]]))) == 5

    def test_each_head_is_asked_about_its_own_kinds(self):
        prior = torch.randn(5000, generator=torch.Generator().manual_seed(0))
        labels = torch.tensor([0, 1, 2])
        far, near = 9.0, float(prior.mean())

        def heads(holistic, *patches):
            return torch.tensor(holistic), *(torch.tensor(one)[:, None].repeat(1, 10) for one in patches)

        right = heads([far, near, near], [near, far, 0.3], [near, 0.3, far], [near, far, far])
        # What the seen head says of made anomalies, and the pseudo head of seen ones, does not count.
        assert float(total_loss(right, labels, prior)) == pytest.approx(0, abs=1e-6)
        wrong = heads([near, near, near], [near, far, 0.3], [near, 0.3, far], [near, far, far])
        assert float(total_loss(wrong, labels, prior)) == pytest.approx(5 / 3, rel=1e-3)

    def test_heads(self):
        heads = seeded(lambda: Heads(6), 0)
        features = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))
        holistic, *patches = heads(features, features[0])
        assert holistic.shape == (2,)
        assert [one.shape for one in patches] == [(2, 12)] * 3
        assert all((one >= 0).all() for one in (holistic, *patches))
        # An image that is what is normal has no residual: the last head says the same of all its inner patches.
        zero = heads.residual(torch.zeros(1, 6, 3, 4)).abs().flatten(1)
        torch.testing.assert_close(patches[2][:1], zero)

    def test_pasted_patches(self):
        image, donor = torch.full((3, 60, 60), 0.5), torch.rand(3, 60, 60, generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            made = cut_mix(image, donor, generator)
            changed = (made != image).any(0)
            rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
            area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / 3600
            assert 0.015 <= float(area) <= 0.16
            assert made.min() >= 0
            assert made.max() <= 1
        assert torch.equal(image, torch.full((3, 60, 60), 0.5))

    def test_one_abnormal_image(self, small_backbone, small_data):
        with pytest.raises(DataError, match="at least 2 abnormal images: there is 1"):
            load_baseline("dra")(small_backbone, objective="Brain").fit(small_data, shots=(4, 1))

    def test_normal_shots_alone(self, small_backbone, small_data):
        normal = [sample for sample in load_dataset(small_data).shot_pool if not sample.label]
        with pytest.raises(DataError, match="4 normal and 0 abnormal"):
            load_baseline("dra")(small_backbone, objective="Brain").fit(normal)
