"""What is known of a feature map before there is one."""

from dataclasses import dataclass
from typing import Optional


@dataclass
class ShapeSpec:
    """Channels, height and width in pixels, and stride in input pixels; None if unknown."""

    channels: Optional[int] = None
    height: Optional[int] = None
    width: Optional[int] = None
    stride: Optional[int] = None
