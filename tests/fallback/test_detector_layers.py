"""Layers of detectors against known answers and plain statements of what they compute."""

import pytest
import torch
from torch.nn import functional as F

from detectron2.layers import (
    DeformConv,
    ModulatedDeformConv,
    ROIAlign,
    get_norm,
    paste_masks_in_image,
    roi_align,
)
from detectron2.structures import Boxes, ROIMasks


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class TestROIAlign:
    def ramp(self, height=24, width=32):
        """[1, 2, H, W]: x and y of the pixels' centres."""
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        return torch.stack([x, y])[None]

    @pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
    @pytest.mark.parametrize("scale", [1.0, 0.25])
    def test_a_linear_ramp_is_its_value_at_the_bins_centres(self, scale, sampling_ratio):
        x0, y0, x1, y1 = 3.3, 2.9, 20.8, 17.6  # in features
        rois = torch.tensor([[0, x0, y0, x1, y1]]) / torch.tensor([1, *[scale] * 4])
        crops = ROIAlign((7, 5), scale, sampling_ratio)(self.ramp(), rois)[0]
        x = x0 + (torch.arange(5) + 0.5) / 5 * (x1 - x0)
        y = y0 + (torch.arange(7) + 0.5) / 7 * (y1 - y0)
        torch.testing.assert_close(crops[0], x.expand(7, 5))
        torch.testing.assert_close(crops[1], y[:, None].expand(7, 5))

    def test_not_aligned_is_half_a_feature_further(self):
        rois = torch.tensor([[0.0, 4, 4, 12, 12]])
        further = ROIAlign(4, 1.0, 2, aligned=False)(self.ramp(), rois)
        torch.testing.assert_close(further, ROIAlign(4, 1.0, 2)(self.ramp(), rois) + 0.5)

    def test_rois_name_their_image(self):
        images = torch.stack([torch.full((1, 8, 8), value) for value in (1.0, 2.0, 3.0)])
        rois = torch.tensor([[2.0, 1, 1, 5, 5], [0, 1, 1, 5, 5]])
        assert ROIAlign(2, 1.0, 1)(images, rois)[:, 0, 0, 0].tolist() == [3, 1]

    def test_the_function_is_torchvisions_with_its_default(self):
        features, rois = torch.randn(1, 3, 8, 8), torch.tensor([[0.0, 1, 1, 6, 5]])
        expected = ROIAlign(3, 1.0, 0, aligned=False)(features, rois)
        assert torch.equal(roi_align(features, rois, 3, 1.0, 0), expected)

    def test_gradients_are_those_of_the_differences(self):
        features = torch.randn(1, 1, 6, 6, dtype=torch.double, requires_grad=True)
        rois = torch.tensor([[0.0, 0.5, 1, 4.2, 5]], dtype=torch.double)
        assert torch.autograd.gradcheck(lambda x: ROIAlign(2, 1.0, 2)(x, rois), features)

    def test_no_rois(self):
        assert ROIAlign(3, 0.5, 0)(torch.randn(2, 4, 8, 8), torch.zeros(0, 5)).shape == (0, 4, 3, 3)

    def test_rois_of_another_shape_are_refused(self):
        with pytest.raises(AssertionError):
            ROIAlign(3, 0.5, 0)(torch.randn(2, 4, 8, 8), torch.zeros(1, 4))

    def test_half_precision_features_stay_so(self):
        crops = ROIAlign(4, 1.0, 2)(self.ramp().half(), torch.tensor([[0.0, 4, 4, 12, 12]]))
        assert crops.dtype == torch.half
        assert crops[0, 0, 0].tolist() == [5, 7, 9, 11]


def constant_offset(dy, dx, kernel_area, shape, groups=1):
    """Offsets that move every sample by dy rows and dx columns."""
    return torch.tensor([dy, dx] * kernel_area * groups).float()[None, :, None, None].expand(1, -1, *shape)


class TestDeformConv:
    @pytest.mark.parametrize("stride, dilation, groups", [(1, 1, 1), (2, 1, 2), (1, 2, 4)])
    def test_without_offsets_it_is_a_convolution(self, stride, dilation, groups):
        options = {"stride": stride, "padding": dilation, "dilation": dilation, "groups": groups}
        conv, x = DeformConv(4, 8, 3, **options), torch.randn(2, 4, 7, 9)
        expected = F.conv2d(x, conv.weight, **options)
        offset = torch.zeros(2, 18, *expected.shape[2:])
        torch.testing.assert_close(conv(x, offset), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dy, dx", [(1, 0), (0, -2), (-1, 1)])
    def test_whole_offsets_shift_the_image(self, dy, dx):
        conv, x = DeformConv(2, 3, 3, padding=1), torch.randn(1, 2, 8, 9)
        moved = F.conv2d(F.pad(x, (3, 3, 3, 3)), conv.weight)  # begins 2 rows and columns further up left
        expected = moved[:, :, 2 + dy : 10 + dy, 2 + dx : 11 + dx]
        result = conv(x, constant_offset(dy, dx, 9, (8, 9)))
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)

    def test_each_sample_has_its_own_offset_between_pixels(self):
        conv = DeformConv(1, 1, (1, 2))  # samples at x and x + 1
        conv.weight.data[:] = torch.tensor([1.0, 10])
        x = torch.arange(6.0).expand(1, 1, 1, 6).contiguous()
        offset = torch.zeros(1, 4, 1, 5)
        offset[:, 1], offset[:, 3] = 0.5, -0.25  # columns of the first sample and of the second
        position = torch.arange(5.0)
        expected = (position + 0.5) + 10 * (position + 1 - 0.25)
        torch.testing.assert_close(conv(x, offset)[0, 0, 0].detach(), expected)

    def test_norm_and_activation_follow(self):
        conv = DeformConv(3, 32, 3, padding=1, norm=get_norm("GN", 32), activation=torch.tanh)
        x, offset = torch.randn(2, 3, 6, 6), torch.zeros(2, 18, 6, 6)
        expected = torch.tanh(conv.norm(F.conv2d(x, conv.weight, padding=1)))
        torch.testing.assert_close(conv(x, offset), expected, rtol=1e-4, atol=1e-4)

    def test_an_empty_batch_has_the_shape_of_the_result(self):
        conv = DeformConv(6, 4, 3, stride=2, padding=1, groups=2, norm=get_norm("BN", 4))
        assert conv(torch.zeros(0, 6, 9, 11), torch.zeros(0, 18, 5, 6)).shape == (0, 4, 5, 6)

    def test_weights_are_named_and_initialized_as_a_convolutions(self):
        conv = DeformConv(64, 32, 3, groups=2, norm=get_norm("BN", 32))
        assert [name for name, _ in conv.named_parameters()] == ["weight", "norm.weight", "norm.bias"]
        assert conv.weight.shape == (32, 32, 3, 3) and conv.bias is None
        bound = (6 / (32 * 9)) ** 0.5
        assert 0.95 * bound < conv.weight.abs().max() <= bound

    def test_it_has_no_bias(self):
        with pytest.raises(AssertionError):
            DeformConv(3, 4, 3, bias=True)

    def test_channels_must_fit_the_groups(self):
        with pytest.raises(AssertionError):
            DeformConv(3, 4, 3, groups=2)


class TestModulatedDeformConv:
    def test_weights_are_named_and_initialized_as_a_convolutions(self):
        conv = ModulatedDeformConv(8, 4, 3, deformable_groups=2, norm=get_norm("BN", 4))
        assert [name for name, _ in conv.named_parameters()] == ["weight", "bias", "norm.weight", "norm.bias"]
        assert conv.weight.shape == (4, 8, 3, 3) and conv.bias.tolist() == [0] * 4
        assert list(ModulatedDeformConv(8, 4, 3, bias=False).state_dict()) == ["weight"]

    def test_the_mask_weights_the_samples(self, deform_conv_on_cpu):
        conv, x = deform_conv_on_cpu.ModulatedDeformConv(2, 3, 3, padding=1), torch.randn(1, 2, 5, 6)
        conv.bias.data.normal_()
        mask = torch.rand(9)
        expected = F.conv2d(x, conv.weight * mask.view(3, 3), conv.bias, padding=1)
        result = conv(x, torch.zeros(1, 18, 5, 6), mask[None, :, None, None].expand(1, 9, 5, 6))
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)

    def test_groups_of_channels_have_their_own_offsets_and_masks(self, deform_conv_on_cpu):
        conv = deform_conv_on_cpu.ModulatedDeformConv(4, 2, 1, deformable_groups=2)
        x = torch.randn(1, 4, 5, 6)
        offset = torch.cat([constant_offset(1, 0, 1, (5, 6)), constant_offset(0, 2, 1, (5, 6))], dim=1)
        mask = torch.tensor([0.5, 3])[None, :, None, None].expand(1, 2, 5, 6)
        below = F.pad(x[:, :2], (0, 0, 0, 1))[:, :, 1:]
        right = F.pad(x[:, 2:], (0, 2))[..., 2:]
        expected = F.conv2d(torch.cat([0.5 * below, 3 * right], dim=1), conv.weight, conv.bias)
        torch.testing.assert_close(conv(x, offset, mask), expected, rtol=1e-4, atol=1e-5)

    def test_gradients_are_those_of_the_differences(self, deform_conv_on_cpu):
        conv = deform_conv_on_cpu.ModulatedDeformConv(2, 2, 2, deformable_groups=2).double()
        x, offset, mask = (torch.rand(1, c, s, s, dtype=torch.double) for c, s in ((2, 4), (16, 3), (8, 3)))
        inputs = [tensor.requires_grad_() for tensor in (x, offset * 0.4 + 0.3, mask)]  # between the pixels
        assert torch.autograd.gradcheck(conv, inputs)
        conv(*inputs).sum().backward()
        assert conv.weight.grad.abs().min() > 0 and (conv.bias.grad == 9).all()

    def test_offsets_must_fit_the_groups(self, deform_conv_on_cpu):
        x, offset = torch.zeros(1, 4, 5, 6), torch.zeros(1, 18, 5, 6)
        with pytest.raises(AssertionError, match="18 channels, expected 36"):
            deform_conv_on_cpu.DeformConv(4, 4, 3, padding=1, deformable_groups=2)(x, offset)

    def test_it_learns_without_a_mask_too(self, deform_conv_on_cpu):
        conv = deform_conv_on_cpu.DeformConv(2, 2, 3, padding=1)
        offset = torch.full((1, 18, 4, 4), 0.3, requires_grad=True)
        conv(torch.randn(1, 2, 4, 4), offset).sum().backward()
        assert offset.grad.abs().max() > 0 and conv.weight.grad.abs().max() > 0

    def test_an_empty_batch_has_the_shape_of_the_result(self, deform_conv_on_cpu):
        conv = deform_conv_on_cpu.ModulatedDeformConv(3, 4, 3, stride=2, padding=1)
        assert conv(torch.zeros(0, 3, 9, 11), *(torch.zeros(0, c, 5, 6) for c in (18, 9))).shape == (0, 4, 5, 6)

    def test_both_describe_themselves(self, deform_conv_on_cpu):
        described = repr(deform_conv_on_cpu.DeformConv(2, 4, 3, padding=1))
        assert "kernel_size=(3, 3)" in described and "padding=(1, 1)" in described and "bias=False" in described


def plain_paste(mask, box, height, width):
    """One mask [M, M] at the centres of an image's pixels: bilinear between its cells, 0 beyond them."""
    size, (x0, y0, x1, y1) = len(mask), box.double().tolist()
    samples = torch.zeros(height, width, dtype=torch.double)
    for row in range(height):
        for column in range(width):
            x = (column + 0.5 - x0) / (x1 - x0) * size - 0.5
            y = (row + 0.5 - y0) / (y1 - y0) * size - 0.5
            for i in range(max(int(y), 0), min(int(y) + 2, size)):
                for j in range(max(int(x), 0), min(int(x) + 2, size)):
                    weight = max(1 - abs(y - i), 0) * max(1 - abs(x - j), 0)
                    samples[row, column] += weight * mask[i, j].item()
    return samples


class TestPasteMasks:
    boxes = torch.tensor([[2.3, 3.1, 17.8, 13.4], [0, 0, 20, 16], [-4.2, 5, 9, 22.5], [6, 6, 7.5, 7.5]])

    def samples(self, masks):
        return torch.stack([plain_paste(mask, box, 16, 20) for mask, box in zip(masks, self.boxes)])

    @pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
    def test_a_pixel_belongs_if_its_sample_reaches_the_threshold(self, threshold):
        masks = torch.rand(4, 5, 5)
        samples = self.samples(masks)
        pasted = paste_masks_in_image(masks, self.boxes, (16, 20), threshold)
        x, y = torch.arange(20) + 0.5, torch.arange(16) + 0.5
        x0, y0, x1, y1 = self.boxes.T[..., None]
        inside = ((x0 < x) & (x < x1))[:, None] & ((y0 < y) & (y < y1))[:, :, None]
        decided = inside & ((samples - threshold).abs() > 1e-5)  # how far a mask fades beyond its box is open
        assert pasted.dtype == torch.bool and decided.sum() > 500
        assert torch.equal(pasted[decided], samples[decided] >= threshold)
        far = F.max_pool2d(inside.float(), 5, stride=1, padding=2) == 0
        assert far.any() and not pasted[far].any()

    def test_a_negative_threshold_keeps_the_samples(self):
        masks = torch.rand(4, 5, 5)
        pasted = paste_masks_in_image(masks, self.boxes, (16, 20), threshold=-1)
        assert pasted.dtype == torch.uint8
        middle = (slice(None, 3), slice(7, 12), slice(4, 8))  # inside of the first three boxes
        assert (pasted[middle] - self.samples(masks)[middle] * 255).abs().max() <= 1

    def test_full_masks_fill_the_pixels_whose_centres_are_in_the_box(self):
        boxes = torch.tensor([[2.0, 3, 6, 9], [2.4, 3.4, 5.6, 8.6], [2.6, 3.6, 5.4, 8.4]])
        pasted = paste_masks_in_image(torch.ones(3, 28, 28), Boxes(boxes), (12, 10))
        expected = torch.zeros(3, 12, 10, dtype=torch.bool)
        expected[:2, 3:9, 2:6] = True
        expected[2, 4:8, 3:5] = True
        assert torch.equal(pasted, expected)

    def test_halves_of_a_mask_are_halves_of_its_box(self):
        mask = torch.zeros(1, 4, 4)
        mask[:, :, 2:] = 1
        pasted = paste_masks_in_image(mask, torch.tensor([[0.0, 0, 16, 8]]), (8, 16))[0]
        pasted = pasted[2:6]  # corners fade in both directions
        assert pasted[:, 8:].all() and not pasted[:, :8].any()

    def test_nothing_to_paste(self):
        assert paste_masks_in_image(torch.zeros(0, 28, 28), torch.zeros(0, 4), (6, 8)).shape == (0, 6, 8)

    def test_masks_must_be_square_and_one_a_box(self):
        with pytest.raises(AssertionError):
            paste_masks_in_image(torch.zeros(1, 28, 14), torch.zeros(1, 4), (6, 8))
        with pytest.raises(AssertionError):
            paste_masks_in_image(torch.zeros(2, 28, 28), torch.ones(1, 4), (6, 8))

    def test_masks_in_boxes_become_masks_of_the_image(self):
        masks = ROIMasks(torch.rand(4, 7, 7))
        bitmasks = masks.to_bitmasks(Boxes(self.boxes), 16, 20, threshold=0.4)
        assert torch.equal(bitmasks.tensor, paste_masks_in_image(masks.tensor, self.boxes, (16, 20), 0.4))
        assert len(masks) == 4 and torch.equal(masks[1:3].tensor, masks.tensor[1:3])
        chosen = torch.tensor([True, False, False, True])
        assert torch.equal(masks[chosen].to("cpu").tensor, masks.tensor[[0, 3]])
        with pytest.raises(ValueError):
            ROIMasks(torch.rand(4, 1, 7, 7))
