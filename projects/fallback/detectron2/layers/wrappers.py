"""PyTorch's layers and functions under the names, and with the additions, that models use."""

from typing import Callable, Optional, Sequence, Tuple

import torch
from torch import nn
from torch.nn import functional as F

BatchNorm2d = nn.BatchNorm2d
ConvTranspose2d = nn.ConvTranspose2d
Linear = nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """A convolution followed by `norm` (a module) and `activation` (a callable), where given."""

    def __init__(
        self, *args, norm: Optional[nn.Module] = None, activation: Optional[Callable] = None, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """torch.cat, which returns a single tensor itself, not a copy."""
    assert isinstance(tensors, (list, tuple)), f"expected a list of tensors, got {type(tensors).__name__}"
    return torch.cat(tensors, dim) if len(tensors) != 1 else tensors[0]


def empty_input_loss_func_wrapper(loss_func: Callable) -> Callable:
    """`loss_func`, with 0 (connected to the input) instead of NaN as the mean over no targets."""

    def loss(input: torch.Tensor, target: torch.Tensor, *, reduction: str = "mean", **kwargs) -> torch.Tensor:
        no_mean = reduction == "mean" and target.numel() == 0
        return 0.0 * input.sum() if no_mean else loss_func(input, target, reduction=reduction, **kwargs)

    return loss


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


def nonzero_tuple(x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
    """The indices of nonzero elements, a tensor a dimension."""
    return x.nonzero(as_tuple=True)


def move_device_like(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """`src` on the device of `dst`."""
    return src.to(dst.device)
