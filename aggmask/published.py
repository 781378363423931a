"""The authors' checkpoints and ImageNet weights of ResNets: their names and where they are.

Those of SOLO and SOLOv2 (https://github.com/WXinlong/SOLO) and of AggMask and AggMask*
(https://github.com/advdfacd/AggMask) have mmdetection 1.0's names, the ImageNet weights torchvision's, which
mmdetection keeps for its backbones. The variants with decoupled branches, deformable convolutions or light heads are
other networks.
"""

import re

from torch import Tensor

from projects.model_zoo import CATALOGUE, Layout, Published, register_layout

BOTTOM_UP = "backbone.bottom_up."
CLASSIFIER = "fc."
# A ResNet's layer: of a block, or of the stem where there is no stage.
RESNET_LAYER = re.compile(r"(?:layer(\d)\.(\d+)\.)?(conv|bn|downsample\.)(\d)\.(\w+)")

# This project's names of the layers above the backbone, by patterns of mmdetection's.
LAYERS = {
    r"bbox_head\.cate_convs\.(\d+)": r"head.category_tower.\1",
    r"bbox_head\.solo_cate": "head.category_output",
    r"bbox_head\.ins_convs\.(\d+)": r"head.mask_tower.\1",
    r"bbox_head\.solo_ins_list\.(\d+)": r"head.mask_outputs.\1",
    r"bbox_head\.kernel_convs\.(\d+)": r"head.kernel_tower.\1",
    r"bbox_head\.solo_kernel": "head.kernel_output",
    r"bbox_head\.solo_mask|mask_feat_head\.conv_pred\.0": "head.mask_feature.fuse",
    r"bbox_head\.kernel_convs_convcomb\.(\d+)": r"head.weight_tower.\1",
    r"bbox_head\.learned_weights": "aggregation.weight_output",
    r"bbox_head\.context_fusion_convs\.0": "aggregation.context_fusion.reduce",
    r"bbox_head\.context_fusion_convs\.1": "aggregation.context_fusion.norm",
    r"bbox_head\.context_fusion_convs\.3": "aggregation.context_fusion.project",
}
for level in range(4):
    LAYERS[rf"neck\.lateral_convs\.{level}"] = f"backbone.fpn_lateral{level + 2}"
    LAYERS[rf"neck\.fpn_convs\.{level}"] = f"backbone.fpn_output{level + 2}"
    # After each of the mask feature's convolutions comes an upsampling, but for the finest level's.
    for n in range(max(level, 1)):
        branches = r"(?:bbox_head\.feature_convs|mask_feat_head\.convs_all_levels)"
        LAYERS[rf"{branches}\.{level}\.conv{n}"] = f"head.mask_feature.refine.{level}.{2 * n}"


def convert_mmdetection(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmdetection's weights under the names of ``SOLO`` or ``SOLOv2``, with an aggregation or without.

    Raises:
        ValueError: names that the networks of these methods don't have.
    """
    return _renamed(weights, {name: _mmdetection_name(name) for name in weights})


def convert_torchvision(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a classifying ResNet under the names that they have in a detector, without the classifier's.

    Raises:
        ValueError: names that a ResNet doesn't have.
    """
    return _renamed(weights, {name: _resnet_name(name) for name in weights if not name.startswith(CLASSIFIER)})


def _renamed(weights: dict[str, Tensor], names: dict[str, str | None]) -> dict[str, Tensor]:
    unknown = [name for name, ours in names.items() if ours is None]
    if unknown:
        raise ValueError(
            f"There are no weights called {', '.join(unknown[:5])} in SOLO, SOLOv2, AggMask and their backbones: these "
            "are of another network."
        )
    return {ours: weights[name] for name, ours in names.items()}


def _mmdetection_name(name: str) -> str | None:
    """This project's name of a weight, None for one that these networks don't have."""
    if name.startswith("backbone."):
        return _resnet_name(name.removeprefix("backbone."))
    module, _, parameter = name.rpartition(".")
    # Of a convolution with its norm, in one module there as here.
    if module.endswith(".gn"):
        module, parameter = module.removesuffix(".gn"), f"norm.{parameter}"
    module = module.removesuffix(".conv")
    for pattern, layer in LAYERS.items():
        if match := re.fullmatch(pattern, module):
            return f"{match.expand(layer)}.{parameter}"
    return None


def _resnet_name(name: str) -> str | None:
    """This project's name of a weight of torchvision's ResNet, None for one that it doesn't have."""
    match = RESNET_LAYER.fullmatch(name)
    if match is None:
        return None
    stage, block, kind, number, parameter = match.groups()
    place = f"res{int(stage) + 1}.{block}" if stage else "stem"
    if kind == "downsample.":
        layer = "shortcut.norm" if number == "1" else "shortcut"
    else:
        layer = f"conv{number}.norm" if kind == "bn" else f"conv{number}"
    return f"{BOTTOM_UP}{place}.{layer}.{parameter}"


register_layout(
    Layout(
        method="aggmask",
        publisher="mmdetection 1.0",
        signature=frozenset(
            {"backbone.conv1.weight", "neck.lateral_convs.0.conv.weight", "bbox_head.solo_cate.weight"}
        ),
        convert=convert_mmdetection,
    )
)
register_layout(
    Layout(
        method="aggmask",
        publisher="torchvision's ResNet",
        signature=frozenset({"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer4.1.bn2.weight"}),
        convert=convert_torchvision,
    )
)

# Of configs/aggmask/coco_*.yaml. First SOLO's, whose files are called as the rows of the authors' table.
for config, row in {
    "solo_R_50_1x": "SOLO_R50_1x",
    "solo_R_50_3x": "SOLO_R50_3x",
    "solo_R_101_3x": "SOLO_R101_3x",
    "solov2_R_50_1x": "SOLOv2_R50_1x",
    "solov2_R_50_3x": "SOLOv2_R50_3x",
    "solov2_R_101_3x": "SOLOv2_R101_3x",
}.items():
    CATALOGUE[f"aggmask/{config}"] = Published(
        url=f"https://huggingface.co/xinlongwang/SOLO/resolve/main/{row}.pth", config=f"aggmask/coco_{config}.yaml"
    )
for config, file in {
    "R_50_3x": "1o0j_FhMUC6ZlJ9sw72aPGh8wHEBcIelQ",
    "R_101_3x": "1PKIva4Cpnk6kMrFoXaEQR_QNMo2SaDwk",
    "R_101_cls-grid_3x": "1dI1sGpIBGX-to35xU9HMTzEcU3Jda0S5",
    "R_101_mask-grid_3x": "1duVzj3oDVue9qfkCdnugaupSB3i5cUfb",
    "star_R_101_6x": "1MnvjhRqpRoWMCUgbPi6a50T1rBfdT6Op",
    "star_R_101_cls-grid_6x": "1K5ZS4YqbODSMvB1-3h3mvIt03SFmcd_a",
    "star_R_101_cls-grid-60_6x": "1HX9K5_iOJVFE_tcvStKI0cUM7ty9Z805",
    "star_R_101_mask-grid_6x": "15oPQdKL2PrwWkNkt4saopJDOObHs65cX",
}.items():
    CATALOGUE[f"aggmask/{config}"] = Published(
        url=f"https://drive.google.com/file/d/{file}/view", config=f"aggmask/coco_{config}.yaml", by_hand=True
    )
# The file's address in the authors' table is cut short: it leads nowhere.
CATALOGUE["aggmask/star_R_50_6x"] = Published(
    url="https://github.com/advdfacd/AggMask", config="aggmask/coco_star_R_50_6x.yaml", by_hand=True
)
