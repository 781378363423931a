"""The dense instance affinity: which pixels a pixel belongs with, and potentials gathered from them.

Li, Qi, Torr: "Unifying Training and Inference for Panoptic Segmentation", CVPR 2020, arXiv 2001.04982: the dense
instance affinity head. How its embeddings are made is chosen here, see README.md.
"""

import math
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

from projects import flops

# Those that never hold the matrix of all pairs of pixels.
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
ALIGNMENT = 8  # channels, that GPUs' fused kernels ask for
POSITION_CHANNELS = 3
WIDEST = 2.0  # bound of the logarithm of the reach to the one at the start


def propagate(queries: Tensor, keys: Tensor, potentials: Tensor) -> Tensor:
    """A · potentials, where A = softmax over the keys' pixels of QᵀK / √D: each pixel's mean of the potentials of those
    it belongs with.

    A is never built: memory grows with the number of pixels, in the backward pass too.

    Args:
        queries, keys: float [B, D, H, W].
        potentials: float [B, N, H, W], any N.

    Returns:
        [B, N, H, W]. Rows of A sum to 1, so what is within bounds stays there.

    Raises:
        ValueError: the shapes don't fit.
    """
    _check_shapes(queries, keys, potentials)
    if not potentials.numel():
        return potentials
    channels, count = queries.shape[1], potentials.shape[1]
    width = -(-channels // ALIGNMENT) * ALIGNMENT
    # Fused kernels want the values as wide as the queries: more potentials than that are further heads.
    heads = -(-count // width)
    queries, keys = (_rows(x, width).expand(-1, heads, -1, -1) for x in (queries, keys))
    with torch.autocast(queries.device.type, enabled=False), sdpa_kernel(FUSED):
        gathered = F.scaled_dot_product_attention(queries, keys, _rows(potentials, width), scale=channels**-0.5)
    return gathered.transpose(2, 3).flatten(1, 2)[:, :count].unflatten(2, potentials.shape[2:])


def _rows(maps: Tensor, width: int) -> Tensor:
    """Maps [B, C, H, W] as rows of pixels [B, heads, H · W, width], the last head filled up with zeros."""
    padded = F.pad(maps, (0, 0, 0, 0, 0, -maps.shape[1] % width))
    return padded.flatten(2).unflatten(1, (-1, width)).transpose(2, 3).contiguous()


def _attention_flops(queries: Sequence[int], keys: Sequence[int], values: Sequence[int], *_) -> int:
    """Multiply-adds of the two products, from the shapes [..., pixels, width]."""
    return math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])


flops.register("aten::scaled_dot_product_attention", _attention_flops)


def propagate_reference(queries: Tensor, keys: Tensor, potentials: Tensor) -> Tensor:
    """The same by the matrix itself: of P pixels, P² numbers."""
    _check_shapes(queries, keys, potentials)
    scores = torch.einsum("bdp,bdq->bpq", queries.flatten(2), keys.flatten(2)) / queries.shape[1] ** 0.5
    gathered = torch.einsum("bpq,bnq->bnp", scores.softmax(dim=2), potentials.flatten(2))
    return gathered.unflatten(2, potentials.shape[2:])


def affinity_of(queries: Tensor, keys: Tensor, row: int, column: int) -> Tensor:
    """One pixel's row of A, probabilities [1, H, W], of queries and keys [D, H, W]."""
    scores = torch.einsum("d,dhw->hw", queries[:, row, column], keys) / len(queries) ** 0.5
    return scores.flatten().softmax(dim=0).view_as(scores)[None]


def _check_shapes(queries: Tensor, keys: Tensor, potentials: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (queries, keys, potentials)]
    others = [(shape[:1], shape[2:]) for shape in shapes]
    if {len(shape) for shape in shapes} != {4} or shapes[0] != shapes[1] or others[0] != others[2]:
        raise ValueError(
            "queries and keys must be [B, D, H, W] and potentials [B, N, H, W] of the same B, H and W; they are "
            f"{', '.join(map(str, map(list, shapes)))}."
        )


class InstanceAffinityHead(nn.Module):
    """The pyramid, fused at one stride, and coordinates to queries and keys.

    A pixel looks at a point, its own place at first, and with a Gaussian of some reach; both are predicted. That is an
    inner product too: where p is the point and q the place of a key, −|p − q|² / 2r² is (p·q − |q|² / 2) / r² but for
    what all keys have in common, which a softmax takes no notice of. To it adds the product of embeddings which are
    learnt freely. So a pixel gathers from around it before anything is learnt.
    """

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        stride: int,
        channels: int,
        embedding_dim: int,
        reach: float,
        norm: str,
    ):
        """
        Args:
            input_shape: of the features, each of at least ``stride``.
            stride: of queries and keys in pixels.
            channels: of the convolutions.
            embedding_dim: D, channels of queries and keys.
            reach: at the start, in pixels.
            norm: of the convolutions, as for ``get_norm``.
        """
        super().__init__()
        self.stride = stride
        self.reach = reach / stride
        self.fuse = SemSegFPNHead(
            input_shape, num_classes=channels, conv_dims=channels, common_stride=stride, norm=norm
        )
        self.conv = Conv2d(
            channels + 2, channels, 3, padding=1, bias=not norm, norm=get_norm(norm, channels), activation=F.relu
        )
        free = embedding_dim - POSITION_CHANNELS
        self.embeddings = Conv2d(channels, 2 * free, 1)
        self.gaze = Conv2d(channels, 3, 1)  # x and y of the point, and the reach
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.xavier_normal_(self.embeddings.weight)
        for parameter in (self.embeddings.bias, self.gaze.weight, self.gaze.bias):
            nn.init.zeros_(parameter)

    def forward(self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: the pyramid's, [B, C, h, w] by name.
            image_sizes: (height, width) of each image, without the padding.

        Returns:
            queries and keys, float32 [B, D, H / stride, W / stride].
        """
        fused = F.relu(self.fuse.layers(features))
        height, width = fused.shape[-2:]
        y, x = (torch.arange(n, device=fused.device) + 0.5 - n / 2 for n in (height, width))
        places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
        coordinates = self._relative(places, image_sizes)
        hidden = self.conv(torch.cat([fused, coordinates.to(fused)], dim=1))
        embeddings = self.embeddings(hidden).float().chunk(2, dim=1)
        where = self._where(self.gaze(hidden).float(), places)
        which = torch.cat([places, -places.square().sum(dim=0, keepdim=True) / 2]).expand_as(where)
        return torch.cat([embeddings[0], where], dim=1), torch.cat([embeddings[1], which], dim=1)

    def _relative(self, places: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Places in the padded batch, cells from its centre [2, h, w], as places in each image from −1 to 1,
        [B, 2, h, w]."""
        sizes = places.new_tensor([(width, height) for height, width in image_sizes])[:, :, None, None]
        corner = places[:, :1, :1] - 0.5
        return (places - corner) * 2 * self.stride / sizes - 1

    def _where(self, gaze: Tensor, places: Tensor) -> Tensor:
        """The positions' part of the queries, [B, 3, h, w], of the predicted points and reaches."""
        points = places + self.reach * gaze[:, :2]
        reach = self.reach * torch.exp(WIDEST * torch.tanh(gaze[:, 2:]))
        # Times √D, which the sum of all channels is divided by.
        scale = (self.embeddings.out_channels // 2 + POSITION_CHANNELS) ** 0.5
        return torch.cat([points, torch.ones_like(reach)], dim=1) * scale / reach.square()
