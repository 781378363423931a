"""The authors' checkpoints (https://github.com/aim-uofa/AdelaiDet) and DLA-34's ImageNet weights: names and places.

AdelaiDet's weights have this project's names. Older files also hold the image normalisation, which is part of the
config. The weights of https://github.com/ucbdrive/dla are those of what is below an FPN, with a classifier.
"""

from torch import Tensor

from projects.model_zoo import CATALOGUE, Layout, Published, register_layout

HEAD = "proposal_generator.fcos_head"
NORMALISATION = {"pixel_mean", "pixel_std"}
BOTTOM_UP = "backbone.bottom_up."
CLASSIFIER = "fc."


def convert_adelaidet(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """AdelaiDet's weights under the names of ``BlendMask`` or ``OneStageDetector``."""
    return {name: weight for name, weight in weights.items() if name not in NORMALISATION}


def convert_dla(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a classifying DLA under the names that they have in a detector, without the classifier's."""
    return {BOTTOM_UP + name: weight for name, weight in weights.items() if not name.startswith(CLASSIFIER)}


register_layout(
    Layout(
        method="blendmask",
        publisher="AdelaiDet",
        signature=frozenset({f"{HEAD}.cls_logits.weight", f"{HEAD}.bbox_pred.weight", f"{HEAD}.ctrness.weight"}),
        convert=convert_adelaidet,
    )
)
register_layout(
    Layout(
        method="blendmask",
        publisher="DLA's code",
        signature=frozenset({"base_layer.0.weight", "level2.tree1.conv1.weight", "level5.root.conv.weight"}),
        convert=convert_dla,
    )
)

# Of configs/blendmask/coco_*.yaml; the files have the same names.
for row in (
    "R_50_1x",
    "R_50_3x",
    "R_101_3x",
    "R_101_dcni3_5x",
    "550_R_50_3x",
    "RT_R_50_4x_syncbn_shtw",
    "RT_R_50_4x_bn-head_syncbn_shtw",
    "DLA_34_syncbn_4x",
):
    CATALOGUE[f"blendmask/{row}"] = Published(
        url=f"https://huggingface.co/ZjuCv/AdelaiDet/resolve/main/{row}.pth", config=f"blendmask/coco_{row}.yaml"
    )
# The authors' table gives these rows the instance models' addresses. Loading tells which of the two a file is.
for row in ("R_50_3x", "R_101_3x", "R_101_dcni3_5x"):
    CATALOGUE[f"blendmask/panoptic_{row}"] = Published(
        url="https://huggingface.co/ZjuCv/AdelaiDet/tree/main",
        config=f"blendmask/coco_panoptic_{row}.yaml",
        by_hand=True,
    )
# Of configs/fcos/coco_*.yaml; the files are called FCOS_*, most of them by the config.
for row in (
    "R_50_1x",
    "MS_R_50_2x",
    "MS_R_101_2x",
    "MS_X_101_32x8d_2x",
    "MS_X_101_64x4d_2x",
    "MS_X_101_32x8d_2x_dcnv2",
    "R_50_1x_iou",
    "MS_R_50_2x_iou",
    "MS_R_101_2x_iou",
    "MS_X_101_32x8d_2x_iou",
    "MS_X_101_32x8d_2x_dcnv2_iou",
    "RT_MS_DLA_34_4x_syncbn",
    "RT_MS_DLA_34_4x_syncbn_bn_head",
    "RT_MS_DLA_34_4x_syncbn_shared_towers",
    "RT_MS_DLA_34_4x_syncbn_shared_towers_bn_head",
    "RT_MS_R_50_4x_syncbn",
    "RT_MS_R_50_4x_syncbn_bn_head",
):
    file = {"MS_X_101_32x8d_2x_dcnv2": "MS_X_101_32x8d_dcnv2_2x"}.get(row, row)
    CATALOGUE[f"fcos/{row}"] = Published(
        url=f"https://huggingface.co/tianzhi/AdelaiDet-FCOS/resolve/main/FCOS_{file}.pth",
        config=f"fcos/coco_{row}.yaml",
    )
