"""Images of different sizes as one batch."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch


class ImageList:
    """Images padded at right and bottom: `tensor` [N, ..., H, W]; `image_sizes`, height and width of each."""

    def __init__(self, tensor: torch.Tensor, image_sizes: List[Tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    @staticmethod
    def from_tensors(
        tensors: Sequence[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Optional[Dict[str, int]] = None,
    ) -> "ImageList":
        """Batch tensors [..., Hi, Wi], padded to the largest height and width.

        size_divisibility: the padded sides are multiples of it, if above 1.
        padding_constraints: "square_size", if above 0, replaces both sides; "size_divisibility" the argument.
        """
        assert isinstance(tensors, (tuple, list)) and len(tensors) > 0, "expected a list of tensors"
        leading = {tuple(image.shape[:-2]) for image in tensors}
        assert len(leading) == 1, f"images of different channels can't be batched: {sorted(leading)}"
        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        constraints = padding_constraints or {}
        divisor = max(constraints.get("size_divisibility", size_divisibility), 1)
        square = constraints.get("square_size", 0)
        sides = (square, square) if square > 0 else map(max, zip(*sizes))
        height, width = (-(-side // divisor) * divisor for side in sides)  # rounded up

        # one image at a time into the batch, rather than stacking padded copies
        batch = tensors[0].new_full((len(tensors), *leading.pop(), height, width), pad_value)
        for i, image in enumerate(tensors):
            batch[i, ..., : image.shape[-2], : image.shape[-1]] = image
        return ImageList(batch, sizes)

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> torch.Tensor:
        """An image without its padding."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """With `to` called on the tensor."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.tensor.device
