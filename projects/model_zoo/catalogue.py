"""The catalogue of published checkpoints. Methods fill it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A checkpoint as its authors publish it.

    Attributes:
        url: of the file or, with ``by_hand``, of a page on which a browser downloads it.
        config: the file under configs/ that builds its model.
        by_hand: the url doesn't answer with the file itself.
    """

    url: str
    config: str
    by_hand: bool = False


# By name, "<method>/<config>".
CATALOGUE: dict[str, Published] = {}
