"""The weights in the authors' checkpoints: names and shapes, by plain rules, for every row of their tables.

A norm's counter of batches, ``num_batches_tracked``, is left out: files have it or not, by the age of their PyTorch.
"""

from dataclasses import dataclass

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
DLA_CHANNELS = (16, 32, 64, 128, 256, 512)
PYRAMID = 256  # channels of every level
BASES = 128  # channels of the bases' convolutions


@dataclass(frozen=True)
class Row:
    """What distinguishes the networks of the authors' tables."""

    depth: int | None = 50  # of a ResNet; None: DLA-34
    groups: int = 1  # of the ResNet's convolutions, and their width
    width: int = 64
    deformable_stages: tuple[int, ...] = ()  # among 2 to 5
    interval: int = 1  # every n-th block of those is deformable
    levels: tuple[int, ...] = (3, 4, 5, 6, 7)  # that the head detects on
    share: int = 0  # convolutions of the shared tower; without one each branch has four
    batch_norm: bool = False  # in the towers, one a level
    deformable_head: bool = False
    masks: bool = True  # BlendMask, not FCOS alone
    bases_convs: int = 3
    panoptic: bool = False


REAL_TIME = dict(levels=(3, 4, 5))
DCNI3 = dict(depth=101, deformable_stages=(3, 4, 5), interval=3)
X_32X8D = dict(depth=101, groups=32, width=8, masks=False)
X_DCN = dict(**X_32X8D, deformable_stages=(4, 5), deformable_head=True)
FCOS_DLA = dict(depth=None, masks=False, **REAL_TIME)
FCOS_R_50 = dict(masks=False, **REAL_TIME)
# By the names in projects.model_zoo.CATALOGUE.
ROWS = {
    "blendmask/R_50_1x": Row(),
    "blendmask/R_50_3x": Row(),
    "blendmask/R_101_3x": Row(depth=101),
    "blendmask/R_101_dcni3_5x": Row(**DCNI3),
    "blendmask/550_R_50_3x": Row(levels=(3, 4, 5, 6), share=3, bases_convs=2),
    "blendmask/RT_R_50_4x_syncbn_shtw": Row(share=3, bases_convs=2, **REAL_TIME),
    "blendmask/RT_R_50_4x_bn-head_syncbn_shtw": Row(share=3, bases_convs=2, batch_norm=True, **REAL_TIME),
    "blendmask/DLA_34_syncbn_4x": Row(depth=None, **REAL_TIME),
    "blendmask/panoptic_R_50_3x": Row(panoptic=True),
    "blendmask/panoptic_R_101_3x": Row(depth=101, panoptic=True),
    "blendmask/panoptic_R_101_dcni3_5x": Row(panoptic=True, **DCNI3),
    "fcos/R_50_1x": Row(masks=False),
    "fcos/R_50_1x_iou": Row(masks=False),
    "fcos/MS_R_50_2x": Row(masks=False),
    "fcos/MS_R_50_2x_iou": Row(masks=False),
    "fcos/MS_R_101_2x": Row(depth=101, masks=False),
    "fcos/MS_R_101_2x_iou": Row(depth=101, masks=False),
    "fcos/MS_X_101_32x8d_2x": Row(**X_32X8D),
    "fcos/MS_X_101_32x8d_2x_iou": Row(**X_32X8D),
    "fcos/MS_X_101_64x4d_2x": Row(depth=101, groups=64, width=4, masks=False),
    "fcos/MS_X_101_32x8d_2x_dcnv2": Row(**X_DCN),
    "fcos/MS_X_101_32x8d_2x_dcnv2_iou": Row(**X_DCN),
    "fcos/RT_MS_DLA_34_4x_syncbn": Row(**FCOS_DLA),
    "fcos/RT_MS_DLA_34_4x_syncbn_bn_head": Row(**FCOS_DLA, batch_norm=True),
    "fcos/RT_MS_DLA_34_4x_syncbn_shared_towers": Row(**FCOS_DLA, share=4),
    "fcos/RT_MS_DLA_34_4x_syncbn_shared_towers_bn_head": Row(**FCOS_DLA, share=4, batch_norm=True),
    "fcos/RT_MS_R_50_4x_syncbn": Row(**FCOS_R_50),
    "fcos/RT_MS_R_50_4x_syncbn_bn_head": Row(**FCOS_R_50, batch_norm=True),
}

Shapes = dict[str, tuple[int, ...]]


def checkpoint(row: Row) -> Shapes:
    """All of a checkpoint's weights."""
    finest = 2 if row.panoptic else 3
    if row.depth is None:
        shapes, channels = dla("backbone.bottom_up."), DLA_CHANNELS
    else:
        shapes, channels = resnet("backbone.bottom_up", row), [None, None, 256, 512, 1024, 2048]
    for level in range(finest, 6):
        shapes |= conv(f"backbone.fpn_lateral{level}", PYRAMID, channels[level], 1, bias=True)
        shapes |= conv(f"backbone.fpn_output{level}", PYRAMID, PYRAMID, 3, bias=True)
    for level in (6, 7):
        if level in row.levels:
            shapes |= conv(f"backbone.top_block.p{level}", PYRAMID, PYRAMID, 3, bias=True)
    shapes |= head("proposal_generator.fcos_head", row)
    if row.masks:
        shapes |= bases("basis_module", row.bases_convs)
        shapes |= conv("top_layer", 4 * 14 * 14, PYRAMID, 3, bias=True)
    if row.panoptic:
        shapes |= semantic_head("panoptic_module")
    return shapes


def conv(name: str, out_channels: int, in_channels: int, kernel_size: int, bias: bool = False) -> Shapes:
    weight = {f"{name}.weight": (out_channels, in_channels, kernel_size, kernel_size)}
    return weight | ({f"{name}.bias": (out_channels,)} if bias else {})


def group_norm(name: str, channels: int) -> Shapes:
    return {f"{name}.{kind}": (channels,) for kind in ("weight", "bias")}


def batch_norm(name: str, channels: int) -> Shapes:
    return {f"{name}.{kind}": (channels,) for kind in ("weight", "bias", "running_mean", "running_var")}


def resnet(name: str, row: Row) -> Shapes:
    shapes = conv(f"{name}.stem.conv1", 64, 3, 7) | batch_norm(f"{name}.stem.conv1.norm", 64)
    before = 64
    for stage, num_blocks in enumerate(BLOCKS[row.depth], start=2):
        middle, after = row.groups * row.width * 2 ** (stage - 2), 256 * 2 ** (stage - 2)
        for block in range(num_blocks):
            block_name = f"{name}.res{stage}.{block}"
            layers = {
                "conv1": (middle, before, 1),
                "conv2": (middle, middle // row.groups, 3),
                "conv3": (after, middle, 1),
            }
            if block == 0:
                layers["shortcut"] = (after, before, 1)
            for layer, shape in layers.items():
                shapes |= conv(f"{block_name}.{layer}", *shape) | batch_norm(f"{block_name}.{layer}.norm", shape[0])
            if stage in row.deformable_stages and block % row.interval == 0:
                shapes |= conv(f"{block_name}.conv2_offset", 27, middle, 3, bias=True)
            before = after
    return shapes


def dla(prefix: str, classifier: bool = False) -> Shapes:
    """DLA-34, ``classifier`` as in the file of its ImageNet weights."""
    shapes = {}

    def conv_norm(conv_name, norm_name, *shape):
        shapes.update(conv(prefix + conv_name, *shape) | batch_norm(prefix + norm_name, shape[0]))

    def pair(name, channels, before, merged):
        """Two blocks and the root that merges them with ``merged`` channels of others."""
        for block, in_channels in (("tree1", before), ("tree2", channels)):
            conv_norm(f"{name}.{block}.conv1", f"{name}.{block}.bn1", channels, in_channels, 3)
            conv_norm(f"{name}.{block}.conv2", f"{name}.{block}.bn2", channels, channels, 3)
        conv_norm(f"{name}.root.conv", f"{name}.root.bn", channels, 2 * channels + merged, 1)
        if before != channels:
            conv_norm(f"{name}.project.0", f"{name}.project.1", channels, before, 1)

    conv_norm("base_layer.0", "base_layer.1", 16, 3, 7)
    conv_norm("level0.0", "level0.1", 16, 16, 3)
    conv_norm("level1.0", "level1.1", 32, 16, 3)
    pair("level2", 64, 32, 0)
    for level, channels, before in ((3, 128, 64), (4, 256, 128)):
        pair(f"level{level}.tree1", channels, before, 0)
        pair(f"level{level}.tree2", channels, channels, before + channels)  # the input, and what tree1 gives
        conv_norm(f"level{level}.project.0", f"level{level}.project.1", channels, before, 1)
    pair("level5", 512, 256, 256)
    if classifier:
        shapes |= conv(prefix + "fc", 1000, 512, 1, bias=True)
    return shapes


def head(name: str, row: Row) -> Shapes:
    towers = {"share_tower": row.share} if row.share else {"cls_tower": 4, "bbox_tower": 4}
    shapes = {}
    for tower, num_convs in towers.items():
        for index in range(num_convs):
            convolution, norm = f"{name}.{tower}.{3 * index}", f"{name}.{tower}.{3 * index + 1}"
            if row.deformable_head and index == num_convs - 1:
                shapes |= conv(f"{convolution}.offset", 27, PYRAMID, 3, bias=True)
                convolution += ".conv"
            shapes |= conv(convolution, PYRAMID, PYRAMID, 3, bias=True)
            if row.batch_norm:
                for level in range(len(row.levels)):
                    shapes |= batch_norm(f"{norm}.{level}", PYRAMID)
            else:
                shapes |= group_norm(norm, PYRAMID)
    for output, channels in (("cls_logits", 80), ("bbox_pred", 4), ("ctrness", 1)):
        shapes |= conv(f"{name}.{output}", channels, PYRAMID, 3, bias=True)
    if not row.masks:  # the BlendMask models have no scales
        shapes |= {f"{name}.scales.{level}.scale": (1,) for level in range(len(row.levels))}
    return shapes


def bases(name: str, num_convs: int) -> Shapes:
    shapes = {}
    for level in range(3):
        shapes |= conv(f"{name}.refine.{level}.0", BASES, PYRAMID, 3) | batch_norm(f"{name}.refine.{level}.1", BASES)
    # The upsampling before the last of these has a number, too.
    for index in (*range(num_convs), num_convs + 1):
        shapes |= conv(f"{name}.tower.{index}.0", BASES, BASES, 3) | batch_norm(f"{name}.tower.{index}.1", BASES)
    shapes |= conv(f"{name}.tower.{num_convs + 2}", 4, BASES, 1, bias=True)
    for index, in_channels in ((0, PYRAMID), (3, BASES)):
        shapes |= conv(f"{name}.seg_head.{index}", BASES, in_channels, 3)
        shapes |= batch_norm(f"{name}.seg_head.{index + 1}", BASES)
    return shapes | conv(f"{name}.seg_head.6", 81, BASES, 1, bias=True)


def semantic_head(name: str) -> Shapes:
    shapes = conv(f"{name}.predictor", 54, 128, 1, bias=True)
    for level in range(2, 6):
        for index in range(max(1, level - 2)):  # each but the last doubles the resolution, from p3 on the last as well
            layer = f"{name}.p{level}.{2 * index}"
            shapes |= conv(layer, 128, PYRAMID if index == 0 else 128, 3) | group_norm(f"{layer}.norm", 128)
    return shapes
