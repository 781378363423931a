import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d, roi_align

from projects import flops
from projects.flops import Counts, count, count_inference

# A 3×3 convolution of 10×10 pixels, 3 to 4 channels, without padding, and a norm; then a 1×1 convolution to 2.
CONVOLUTION, NORM, SECOND = 8 * 8 * 4 * 3 * 9, 8 * 8 * 4 * 2, 8 * 8 * 2 * 4


class TwoParts(nn.Module):
    """In Detectron2's way from dicts to dicts; nothing but a threshold depends on its second convolution."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, batched_inputs):
        x = self.backbone(batched_inputs[0]["image"][None])
        found = bool(self.head(x).max() > 1e9)
        shape = batched_inputs[0]["height"], batched_inputs[0]["width"]
        return [{"instances": x.sum() if found else None, "shape": shape, "resized": F.interpolate(x, size=(16, 16))}]


def test_parts_and_the_rest_are_counted():
    counts = count_inference(TwoParts().eval(), torch.rand(3, 10, 10))
    # The nearest neighbours of 16 × 16 pixels are one operation each.
    expected = {"backbone": CONVOLUTION + NORM, "head": SECOND, "outside of them": 16 * 16 * 4}
    assert counts.columns == {"as it runs": expected}
    assert counts.total("as it runs") == sum(expected.values())


def test_what_the_function_returns_comes_back_without_gradients():
    model = TwoParts().eval()
    counted = count(model, lambda x: {"any": [model.backbone(x)]}, torch.rand(1, 3, 10, 10))
    (result,) = counted.result["any"]
    assert result.shape == (1, 4, 8, 8) and not result.requires_grad
    assert counted.total == counted.parts["backbone"] == CONVOLUTION + NORM
    assert counted.parts["backbone.0"] == CONVOLUTION
    assert not counted.parts["head"]


def test_unknown_operators_are_told():
    counted = count(nn.Identity(), lambda x: x.cumprod(dim=0), torch.rand(5))
    assert counted.total == 0 and counted.uncounted == {"aten::cumprod": 1}


def test_no_hook_stays_behind():
    model = TwoParts().eval()
    count_inference(model, torch.rand(3, 10, 10))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("sampling_ratio, points", [(2, 4), (1, 1), (0, 1)])
def test_roi_align(sampling_ratio, points):
    boxes = torch.tensor([[0.0, 0, 0, 8, 8]] * 3)
    pool = lambda x: roi_align(x, boxes, (4, 5), sampling_ratio=sampling_ratio)  # noqa: E731
    assert count(nn.Identity(), pool, torch.rand(1, 6, 9, 9)).total == 3 * 6 * 4 * 5 * points * 4


def test_deformable_convolution():
    weight, offsets = torch.rand(4, 3, 3, 3), torch.rand(2, 2 * 9, 6, 7)
    counted = count(nn.Identity(), lambda x: deform_conv2d(x, offsets, weight, padding=1), torch.rand(2, 3, 6, 7))
    convolution, samples = 2 * 6 * 7 * 4 * 3 * 9, 2 * 6 * 7 * 9 * 3 * 4
    assert counted.total == convolution + samples


def test_registered_operators_are_counted_by_shapes_and_values(monkeypatch):
    seen = []
    monkeypatch.setitem(flops.REGISTERED, "aten::cumprod", lambda *arguments: seen.append(arguments) or 17)
    assert count(nn.Identity(), lambda x: x.cumprod(dim=1), torch.rand(5, 2)).total == 17
    assert seen == [([5, 2], 1, None)]


def test_overhead_is_over_the_base():
    counts = Counts({"a": {"x": 6, "y": 3}, "b": {"x": 6}}, {"a": "b"})
    assert counts.total("a") == 9 and counts.overhead("a") == 0.5
