"""The authors' checkpoints (https://github.com/davyneven/SpatialEmbeddings): their names and where they are.

Their network is one module with an ``encoder`` and ``decoders``, number 0 for offsets and sigma, number 1 for the seed
maps. A file has the weights under "model_state_dict". The encoder's own classifier is never used, and is left out.
"""

import re

from torch import Tensor

from projects.model_zoo import CATALOGUE, Layout, Published, register_layout

HEADS = ("embedding_head", "seed_head")
# The place of a decoder's last layer in ``ERFNetDecoder``.
LAST_LAYER = 6
UNUSED = "encoder.output_conv."
# Layers within a block of the encoder or of a decoder.
LAYERS = {
    "conv": "conv",
    "bn": "norm",
    "conv3x1_1": "first.0",
    "conv1x3_1": "first.2",
    "bn1": "first.3",
    "conv3x1_2": "second.0",
    "conv1x3_2": "second.2",
    "bn2": "second.3",
}
INITIAL_BLOCK = re.compile(r"encoder\.initial_block\.(\w+)\.(\w+)")
ENCODER_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(\w+)\.(\w+)")
DECODER_BLOCK = re.compile(r"decoders\.([01])\.layers\.(\d+)\.(\w+)\.(\w+)")
DECODER_OUTPUT = re.compile(r"decoders\.([01])\.output_conv\.(\w+)")


def convert_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' weights under the names of ``SpatialEmbeddings`` with ERFNet.

    Raises:
        ValueError: names that the authors' network does not have.
    """
    names = {name: our_name(name) for name in weights if not name.startswith(UNUSED)}
    unknown = [name for name, ours in names.items() if ours is None]
    if unknown:
        raise ValueError(f"The authors' network has no weights called {', '.join(unknown)}: these are of another one.")
    return {ours: weights[name] for name, ours in names.items()}


def our_name(name: str) -> str | None:
    """This project's name of one of the authors' weights, None for a name that they don't use."""
    if match := INITIAL_BLOCK.fullmatch(name):
        block, layer, parameter = "backbone.layers.0", *match.groups()
    elif match := ENCODER_BLOCK.fullmatch(name):
        number, layer, parameter = match.groups()
        block = f"backbone.layers.{int(number) + 1}"
    elif match := DECODER_BLOCK.fullmatch(name):
        head, number, layer, parameter = match.groups()
        block = f"{HEADS[int(head)]}.decoder.{number}"
    elif match := DECODER_OUTPUT.fullmatch(name):
        head, parameter = match.groups()
        return f"{HEADS[int(head)]}.decoder.{LAST_LAYER}.{parameter}"
    else:
        return None
    return f"{block}.{LAYERS[layer]}.{parameter}" if layer in LAYERS else None


register_layout(
    Layout(
        method="spatial_embeddings",
        publisher="the authors' code",
        signature=frozenset({"encoder.initial_block.conv.weight", "decoders.0.output_conv.weight"}),
        convert=convert_weights,
    )
)
# Cityscapes' cars; 56.4 AP on the validation set, by the authors' README.
CATALOGUE["spatial_embeddings/cityscapes_car"] = Published(
    url="https://drive.google.com/file/d/1BXxhYeg78mrkMNOReQWhBEcTu18_kFA0/view",
    config="spatial_embeddings/cityscapes_car.yaml",
    by_hand=True,
)
