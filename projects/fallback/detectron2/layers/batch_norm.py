"""Normalization layers."""

from typing import Callable, Optional, Union

import torch
from fvcore.nn.distributed import differentiable_all_reduce
from torch import nn
from torch.nn import functional as F

from detectron2.utils import comm

from .wrappers import BatchNorm2d


def _per_channel(x: torch.Tensor) -> torch.Tensor:
    """[C] to [1, C, 1, 1]."""
    return x.reshape(1, -1, 1, 1)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization whose statistics and affine parameters are buffers: they never change.

    State dicts before version 2 may lack the statistics; the identity stands in for them.
    """

    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        ones, zeros = torch.ones(num_features), torch.zeros(num_features)
        self.register_buffer("weight", ones)
        self.register_buffer("bias", zeros)
        self.register_buffer("running_mean", zeros.clone())
        self.register_buffer("running_var", ones - eps)  # so that a new layer is the identity
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.requires_grad:
            statistics = self.running_mean, self.running_var
            return F.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)
        # F.batch_norm would keep what it needs for the gradients of weight and bias
        scale = (self.running_var + self.eps).rsqrt() * self.weight
        shift = self.bias - self.running_mean * scale
        return x * _per_channel(scale).to(x.dtype) + _per_channel(shift).to(x.dtype)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if (local_metadata.get("version") or 1) < 2:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Freeze the BatchNorm2d and SyncBatchNorm layers in `module`; returns it, or a new layer for one."""
        if not isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            for name, child in module.named_children():
                module.add_module(name, cls.convert_frozen_batchnorm(child))
            return module
        frozen = cls(module.num_features, module.eps)
        if module.affine:
            frozen.weight, frozen.bias = module.weight.detach().clone(), module.bias.detach().clone()
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(frozen, name, getattr(module, name))
        return frozen


class NaiveSyncBatchNorm(BatchNorm2d):
    """Batch normalization over all processes, by averaging their means and mean squares.

    stats_mode "": every process counts the same, and none may have an empty batch.
    stats_mode "N": a process counts by its batch size, which may be 0.
    Only over inputs of the same height and width are these the statistics of all pixels.
    """

    def __init__(self, *args, stats_mode: str = "", **kwargs):
        super().__init__(*args, **kwargs)
        assert stats_mode in ("", "N"), f"stats_mode must be '' or 'N', got '{stats_mode}'"
        self._stats_mode = stats_mode

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or comm.get_world_size() == 1:
            return super().forward(input)
        x = input.float() if input.dtype == torch.float16 else input
        mean, mean_square, momentum = self._statistics(x)
        var = mean_square - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var, momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return (x * _per_channel(scale) + _per_channel(self.bias - mean * scale)).to(input.dtype)

    def _statistics(self, x: torch.Tensor):
        """Mean and mean square over the processes, each [C], and the momentum to learn them with."""
        size = len(x)
        assert size or self._stats_mode, "an empty batch needs NaiveSyncBatchNorm(stats_mode='N')"
        if size:
            sums = torch.cat([x.mean((0, 2, 3)), x.square().mean((0, 2, 3)), x.new_ones(1)])
            sums = sums * (size if self._stats_mode else 1)
        else:
            sums = x.new_zeros(2 * x.shape[1] + 1) + x.sum()  # zero, with a gradient
        sums = differentiable_all_reduce(sums)
        count = sums[-1].detach()  # of images, or of processes
        mean, mean_square = (sums[:-1] / count.clamp(min=1)).chunk(2)
        return mean, mean_square, self.momentum * count.clamp(max=1)  # learn nothing from no images


class LayerNorm(nn.Module):
    """Layer normalization over the channels of each pixel of [N, C, H, W]."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6):
        super().__init__()
        self.normalized_shape = (normalized_shape,)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # not F.layer_norm, which needs the channels last in memory and leaves them there
        var, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) * (var + self.eps).rsqrt() * _per_channel(self.weight) + _per_channel(self.bias)


_NORMS = {
    "BN": BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": LayerNorm,
}


def get_norm(norm: Union[str, Callable[[int], nn.Module], None], out_channels: int) -> Optional[nn.Module]:
    """The normalization layer of a name (or made by a callable) for so many channels; None for "" and None.

    Names: BN, SyncBN, nnSyncBN, naiveSyncBN, naiveSyncBN_N, FrozenBN, GN (32 groups), LN; else KeyError.
    """
    if norm is None or norm == "":
        return None
    return (_NORMS[norm] if isinstance(norm, str) else norm)(out_channels)
