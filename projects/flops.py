"""Counting a model's computation with fvcore's counter, this project's native ops and torchvision's included.

A multiply-add is one operation, a bilinear sample four, a group norm five a number, as fvcore has it. Elementwise
operations are not counted.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Sequence

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

# Multiply-adds of an operator, from the shape of each argument that is a tensor and the value of each that is not.
Flops = Callable[..., int]
REGISTERED: dict[str, Flops] = {}

# The title of what a model computes as it runs here.
AS_IT_RUNS = "as it runs"

BILINEAR_FLOPS = 4
GROUP_NORM_FLOPS = 5


def register(op: str, flops: Flops) -> None:
    """Let the counter know an operator, "<library>::<name>"."""
    REGISTERED[op] = flops


@dataclass(frozen=True)
class Counts:
    """Multiply-adds for one image.

    Attributes:
        columns: by title and component.
        bases: the column that a column is compared to, by their titles.
        uncounted: how often operators were called whose computation is not known.
    """

    columns: dict[str, dict[str, int]]
    bases: dict[str, str] = field(default_factory=dict)
    uncounted: Counter[str] = field(default_factory=Counter)

    def total(self, title: str) -> int:
        """The sum of a column."""
        return sum(self.columns[title].values())

    def overhead(self, title: str) -> float:
        """What a column is over its base, a share of the base."""
        return self.total(title) / self.total(self.bases[title]) - 1


@dataclass(frozen=True)
class Counted:
    """What a function returned, and the multiply-adds in it: all, and by the names of the module's parts."""

    result: Any
    total: int
    parts: Counter[str]
    uncounted: Counter[str]


def count(module: nn.Module, function: Callable[..., Any], *inputs: Tensor) -> Counted:
    """Run a function, without gradients, and count what it computes.

    Args:
        module: whose parts the function calls.
        function: of the tensors ``inputs``, one at least; it may return anything.
    """
    call = _Call(module, function)
    analysis = FlopCountAnalysis(call, inputs).set_op_handle(**{op: _handle(f) for op, f in REGISTERED.items()})
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad():
        parts = analysis.by_module()
    prefix = "module."
    return Counted(
        result=call.result,
        total=analysis.total(),
        parts=Counter({name.removeprefix(prefix): n for name, n in parts.items() if name.startswith(prefix)}),
        uncounted=analysis.unsupported_ops(),
    )


def count_inference(model: nn.Module, image: Tensor) -> Counts:
    """Count one inference by the model's modules; what depends on the image as it comes.

    Args:
        model: a meta-architecture in evaluation mode.
        image: [3, H, W], as the model takes it.
    """
    height, width = image.shape[1:]
    counted = count(model, lambda x: model([{"image": x, "height": height, "width": width}]), image)
    components = {name: counted.parts[name] for name, _ in model.named_children()}
    components["outside of them"] = counted.total - sum(components.values())
    return Counts({AS_IT_RUNS: components}, uncounted=counted.uncounted)


class _Call(nn.Module):
    """A function as the module that fvcore traces.

    A trace keeps only what its outputs depend on. So those are, beside the function's result, the outputs of all of the
    module's parts: what decides that there is nothing more to do, as where an image holds no object, counts too.
    """

    def __init__(self, module: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.module = module
        self.function = function
        self.result = None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        hooks = [
            part.register_forward_hook(lambda part, inputs, output: outputs.extend(_tensors(output)))
            for part in self.module.modules()
        ]
        self.result = self.function(*inputs)
        for hook in hooks:
            hook.remove()
        return tuple(outputs + _tensors(self.result))


def _tensors(x: Any) -> list[Tensor]:
    """The tensors in something nested: dicts, lists, and objects such as Instances by their attributes."""
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, dict):
        parts = x.values()
    else:
        parts = x if isinstance(x, (list, tuple)) else getattr(x, "__dict__", {}).values()
    return [tensor for part in parts for tensor in _tensors(part)]


def _handle(flops: Flops) -> Callable[[Sequence, Sequence], int]:
    """fvcore's kind of handle, of the trace's values."""
    return lambda inputs, outputs: flops(*(x.type().sizes() if x.isCompleteTensor() else x.toIValue() for x in inputs))


def _roi_align(features, rois, spatial_scale, height, width, sampling_ratio, *options) -> int:
    """Where the boxes' sizes decide the points for an output's number, one point."""
    points = max(sampling_ratio, 1) ** 2
    return BILINEAR_FLOPS * rois[0] * features[1] * height * width * points


def _deform_conv2d(features, weight, offsets, *options) -> int:
    """A convolution of the samples, and the samples."""
    outputs, inputs, *kernel = weight
    batch, _, height, width = offsets
    taps = batch * height * width * kernel[0] * kernel[1]
    return taps * (outputs * inputs + BILINEAR_FLOPS * features[1])


register("torchvision::roi_align", _roi_align)
register("torchvision::deform_conv2d", _deform_conv2d)
