"""SOLO, SOLOv2, AggMask and AggMask* as their authors published them: the weights' names and shapes, which are those of
mmdetection 1.0, and the algorithm and the losses, stated plainly, cell by cell."""

import math

import torch
import torch.nn.functional as F

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES = (8, 8, 16, 32, 32)
SCORE_THRESHOLD = 0.1
UPDATE_THRESHOLD = 0.05
INTERMEDIATE = 4  # channels of an aggregation's layers
CONTEXT = 16


def layer_shapes(neighbours):
    """Of an aggregation's three convolutions."""
    channels = (neighbours + CONTEXT, INTERMEDIATE, INTERMEDIATE, 1)
    return [(out, given, 3, 3) for given, out in zip(channels, channels[1:])]


class Layout:
    """Collects names and shapes."""

    def __init__(self):
        self.shapes = {}

    def conv(self, name, out, given, kernel=3, bias=True):
        self.shapes[f"{name}.weight"] = (out, given, kernel, kernel)
        if bias:
            self.shapes[f"{name}.bias"] = (out,)

    def norm(self, name, channels, batch=False):
        for parameter in ("weight", "bias", *(("running_mean", "running_var") if batch else ())):
            self.shapes[f"{name}.{parameter}"] = (channels,)
        if batch:
            self.shapes[f"{name}.num_batches_tracked"] = ()

    def conv_norm(self, name, out, given, kernel=3):
        self.conv(f"{name}.conv", out, given, kernel, bias=False)
        self.norm(f"{name}.gn", out)

    def resnet_fpn(self, depth, channels, width):
        self.conv("backbone.conv1", width, 3, 7, bias=False)
        self.norm("backbone.bn1", width, batch=True)
        given = width
        for level, blocks in enumerate(BLOCKS[depth]):
            inner, outer = width * 2**level, 4 * width * 2**level
            for block in range(blocks):
                name = f"backbone.layer{level + 1}.{block}"
                sides = (inner, given, 1), (inner, inner, 3), (outer, inner, 1)
                for n, (out, ins, kernel) in enumerate(sides, 1):
                    self.conv(f"{name}.conv{n}", out, ins, kernel, bias=False)
                    self.norm(f"{name}.bn{n}", out, batch=True)
                if block == 0:
                    self.conv(f"{name}.downsample.0", outer, given, 1, bias=False)
                    self.norm(f"{name}.downsample.1", outer, batch=True)
                given = outer
            self.conv(f"neck.lateral_convs.{level}.conv", channels, given, 1)
            self.conv(f"neck.fpn_convs.{level}.conv", channels, channels)

    def tower(self, name, convs, given, channels):
        for n in range(convs):
            self.conv_norm(f"bbox_head.{name}.{n}", channels, given if n == 0 else channels)

    def categories(self, convs, given, channels, classes):
        self.tower("cate_convs", convs, given, channels)
        self.conv("bbox_head.solo_cate", classes, channels)

    def aggregation(self, neighbours, given, channels, kernel):
        if neighbours:
            numbers = sum(out * ins * 9 + out for out, ins, _, _ in layer_shapes(neighbours))
            self.conv("bbox_head.learned_weights", numbers, given, kernel)
            self.conv("bbox_head.context_fusion_convs.0", channels, 5 * channels, 1)
            self.norm("bbox_head.context_fusion_convs.1", channels)
            self.conv("bbox_head.context_fusion_convs.3", CONTEXT, channels, 1)


def solo(mask_grids, neighbours=0, depth=50, width=64, channels=256, head_channels=256, convs=7, classes=80):
    """Shapes by name of SOLO or, with 5 or 4 ``neighbours``, AggMask."""
    layout = Layout()
    layout.resnet_fpn(depth, channels, width)
    layout.categories(convs, channels, head_channels, classes)
    layout.tower("ins_convs", convs, channels + 2, head_channels)
    for level, grid in enumerate(mask_grids):
        layout.conv(f"bbox_head.solo_ins_list.{level}", grid**2, head_channels, 1)
    layout.aggregation(neighbours, head_channels, channels, 3)
    return layout.shapes


def solov2(
    depth=50, width=64, channels=256, head_channels=512, convs=4, classes=80, feature_channels=128, masks=256
):
    """Shapes by name of the official SOLOv2."""
    layout = Layout()
    layout.resnet_fpn(depth, channels, width)
    layout.categories(convs, channels, head_channels, classes)
    layout.tower("kernel_convs", convs, channels + 2, head_channels)
    layout.conv("bbox_head.solo_kernel", masks, head_channels)
    for level in range(4):
        for n in range(max(level, 1)):
            given = feature_channels if n else channels + 2 * (level == 3)
            layout.conv_norm(f"mask_feat_head.convs_all_levels.{level}.conv{n}", feature_channels, given)
    layout.conv_norm("mask_feat_head.conv_pred.0", masks, feature_channels, 1)
    return layout.shapes


def aggmask_star(neighbours, depth=50, width=64, channels=256, convs=4, classes=80):
    """Shapes by name of AggMask*, or of its SOLOv2 where there are no ``neighbours``."""
    layout = Layout()
    layout.resnet_fpn(depth, channels, width)
    layout.categories(convs, channels, channels, classes)
    layout.tower("kernel_convs", convs, channels + 2, channels)
    layout.conv("bbox_head.solo_kernel", channels, channels, 1)
    for level in range(4):
        for n in range(max(level, 1)):
            given = channels + 2 * (level == 3 and n == 0)
            layout.conv(f"bbox_head.feature_convs.{level}.conv{n}.conv", channels, given, bias=False)
    layout.conv_norm("bbox_head.solo_mask", channels, channels, 1)
    if neighbours:
        layout.tower("kernel_convs_convcomb", convs, channels + 2, channels)
        layout.aggregation(neighbours, channels, channels, 1)
    return layout.shapes


# What would otherwise grow from block to block, or be a sum of many: by how much it is less at random.
DAMPED = {"bn3.weight": 0.3, "solo_kernel.weight": 0.1, "learned_weights.weight": 0.2}


def random_weights(shapes, seed=0):
    """float64 weights through which features keep about their size; a few of the cells get high scores."""
    g = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=g, dtype=torch.float64)
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(1000)
            continue
        if len(shape) == 4:
            weights[name] = noise * (1.5 / noise[0].numel()) ** 0.5
        elif name.endswith(("weight", "running_var")):
            weights[name] = 0.5 + 0.5 * noise.abs()
        else:
            weights[name] = 0.1 * noise
        weights[name] *= next((factor for end, factor in DAMPED.items() if name.endswith(end)), 1.0)
    weights["bbox_head.solo_cate.bias"] -= 3
    return weights


class Network:
    """The published algorithm for one image, by the weights' names."""

    def __init__(self, weights, category_grids, mask_grids):
        self.weights = weights
        self.category_grids, self.mask_grids = category_grids, mask_grids
        self.is_solo = "bbox_head.solo_ins_list.0.weight" in weights
        self.aggregates = "bbox_head.learned_weights.weight" in weights
        # The other neighbourhood is taken where the mask grid is smaller at every level.
        self.five = any(c == m for c, m in zip(category_grids, mask_grids))

    def conv(self, x, name, **options):
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), **options)

    def group_norm(self, x, name):
        return F.group_norm(x, 32, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def block(self, x, name, padding=1):
        """Convolution, norm where there is one, ReLU."""
        x = self.conv(x, f"{name}.conv", padding=padding)
        return F.relu(self.group_norm(x, f"{name}.gn") if f"{name}.gn.weight" in self.weights else x)

    def tower(self, x, name):
        n = 0
        while f"bbox_head.{name}.{n}.conv.weight" in self.weights:
            x = self.block(x, f"bbox_head.{name}.{n}")
            n += 1
        return x

    def resnet(self, x):
        def norm(x, name):
            mean, variance, weight, bias = (
                self.weights[f"{name}.{parameter}"] for parameter in ("running_mean", "running_var", "weight", "bias")
            )
            return F.batch_norm(x, mean, variance, weight, bias)

        x = F.relu(norm(self.conv(x, "backbone.conv1", stride=2, padding=3), "backbone.bn1"))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        levels = []
        for level in range(1, 5):
            block = 0
            while f"backbone.layer{level}.{block}.conv1.weight" in self.weights:
                name = f"backbone.layer{level}.{block}"
                stride = 2 if block == 0 and level > 1 else 1
                y = F.relu(norm(self.conv(x, f"{name}.conv1"), f"{name}.bn1"))
                y = F.relu(norm(self.conv(y, f"{name}.conv2", stride=stride, padding=1), f"{name}.bn2"))
                y = norm(self.conv(y, f"{name}.conv3"), f"{name}.bn3")
                if block == 0:
                    x = norm(self.conv(x, f"{name}.downsample.0", stride=stride), f"{name}.downsample.1")
                x = F.relu(x + y)
                block += 1
            levels.append(x)
        return levels

    def pyramid(self, image):
        """p2 to p6."""
        laterals = [self.conv(x, f"neck.lateral_convs.{n}.conv") for n, x in enumerate(self.resnet(image))]
        for n in (2, 1, 0):
            laterals[n] = laterals[n] + F.interpolate(laterals[n + 1], scale_factor=2, mode="nearest")
        features = [self.conv(x, f"neck.fpn_convs.{n}.conv", padding=1) for n, x in enumerate(laterals)]
        return [*features, features[-1][:, :, ::2, ::2]]

    def at_strides(self, features):
        """The levels of strides 8, 8, 16, 32 and 32."""
        p2, *middle, p6 = features
        return [resize(p2, [n // 2 for n in p2.shape[2:]]), *middle, resize(p6, middle[-1].shape[2:])]

    def category_features(self, x, level):
        return self.tower(resize(x, (self.category_grids[level],) * 2), "cate_convs")

    def category_logits(self, features):
        """[classes, S, S] for each level."""
        return [
            self.conv(self.category_features(x, level), "bbox_head.solo_cate", padding=1)[0]
            for level, x in enumerate(self.at_strides(features))
        ]

    def category_scores(self, features):
        """[classes, S, S] for each level."""
        return [points_nms(x.sigmoid()) for x in self.category_logits(features)]

    def representations(self, features):
        """[S², h, w] for each level: the maps that are masks' logits in SOLO."""
        levels = self.at_strides(features)
        if self.is_solo:
            maps = [self.tower(with_coordinates(x), "ins_convs") for x in levels]
            maps = [resize(x, [2 * n for n in x.shape[2:]]) for x in maps]
            return [self.conv(x, f"bbox_head.solo_ins_list.{level}")[0] for level, x in enumerate(maps)]
        shared = self.mask_feature(features)[0]
        maps = []
        for level, x in enumerate(levels):
            kernels = self.tower(resize(with_coordinates(x), (self.mask_grids[level],) * 2), "kernel_convs")
            official = "mask_feat_head.conv_pred.0.conv.weight" in self.weights
            kernels = self.conv(kernels, "bbox_head.solo_kernel", padding=1 if official else 0)
            maps.append(torch.einsum("cij,chw->ijhw", kernels[0], shared).flatten(0, 1))
        return maps

    def mask_feature(self, features):
        """SOLOv2's, of p2 to p5."""
        official = "mask_feat_head.conv_pred.0.conv.weight" in self.weights
        branches = "mask_feat_head.convs_all_levels" if official else "bbox_head.feature_convs"
        total = 0
        for level, x in enumerate(features[:4]):
            x = with_coordinates(x) if level == 3 else x
            for n in range(max(level, 1)):
                x = self.block(x, f"{branches}.{level}.conv{n}")
                x = resize(x, [2 * n for n in x.shape[2:]]) if level else x
            total = total + x
        return self.block(total, "mask_feat_head.conv_pred.0" if official else "bbox_head.solo_mask", padding=0)

    def aggregation_weights(self, features):
        """[945 or 909, S, S] for each level."""
        result = []
        for level, x in enumerate(self.at_strides(features)):
            if self.is_solo:
                x = self.category_features(x, level)
                result.append(self.conv(x, "bbox_head.learned_weights", padding=1).tanh()[0])
            else:
                x = resize(with_coordinates(x), (self.category_grids[level],) * 2)
                result.append(self.conv(self.tower(x, "kernel_convs_convcomb"), "bbox_head.learned_weights")[0])
        return result

    def context(self, features):
        """[1, 16, h, w] at p2's size."""
        size = features[0].shape[2:]
        x = torch.cat([resize(x, size, align_corners=True) for x in features], dim=1)
        x = self.conv(x, "bbox_head.context_fusion_convs.0")
        x = F.relu(self.group_norm(x, "bbox_head.context_fusion_convs.1"))
        return F.relu(self.conv(x, "bbox_head.context_fusion_convs.3"))

    def neighbours(self, i, j, level):
        """The mask grid's cells that category cell (i, j) takes its maps from."""
        category_grid, mask_grid = self.category_grids[level], self.mask_grids[level]
        scale = (mask_grid - 1) / (category_grid - 1)
        y, x = torch.tensor([i, j], dtype=torch.float32) * scale
        if self.five:
            y, x = int(y.round()), int(x.round())
            cells = [(y - 1, x), (y, x - 1), (y, x), (y, x + 1), (y + 1, x)]
            return [tuple(min(max(n, 0), mask_grid - 1) for n in cell) for cell in cells]
        top, left, bottom, right = (int(n) for n in (y.floor(), x.floor(), y.ceil(), x.ceil()))
        return [(top, right), (bottom, right), (bottom, left), (top, left)]

    def aggregate(self, maps, context, weights, i, j, level):
        """The mask logits [h, w] of one category cell from its level's maps [S², h, w]."""
        cells = [y * self.mask_grids[level] + x for y, x in self.neighbours(i, j, level)]
        context = resize(context, maps.shape[1:], align_corners=True)[0]
        x = torch.cat([maps[cells], context])[None]
        start = 0
        for n, shape in enumerate(layer_shapes(len(cells))):
            numbers, biases = torch.Size(shape).numel(), shape[0]
            kernel, bias = weights[start:].split([numbers, biases, len(weights) - start - numbers - biases])[:2]
            x = F.conv2d(F.relu(x) if n else x, kernel.view(shape), bias, padding=1)
            start += numbers + biases
        return x[0, 0]

    def masks(self, features):
        """The mask logits [h, w] of a category cell, as a function of its level, row and column."""
        maps = self.representations(features)
        if not self.aggregates:
            return lambda level, i, j: maps[level][i * self.mask_grids[level] + j]
        weights, context = self.aggregation_weights(features), self.context(features)
        return lambda level, i, j: self.aggregate(maps[level], context, weights[level][:, i, j], i, j, level)

    def predict(self, image):
        """Of every cell and class above the score threshold whose mask is large enough: score, class and mask
        probabilities at stride 4; level by level, in raster order."""
        features = self.pyramid(image)
        size = features[0].shape[2:]
        mask_logits = self.masks(features)
        found = []
        for level, scores in enumerate(self.category_scores(features)):
            for i, j, category in (scores.permute(1, 2, 0) > SCORE_THRESHOLD).nonzero().tolist():
                mask = resize(mask_logits(level, i, j).sigmoid()[None, None], size)[0, 0]
                if (mask > 0.5).sum() > STRIDES[level]:
                    found.append((scores[category, i, j], category, mask))
        return found

    def detect(self, image, image_size, size, kept):
        """Scores, classes and masks [H, W] in an image of the given size, the best first; ``image`` is padded, and
        holds ``image_size``."""
        scores, classes, masks = zip(*self.predict(image))
        masks = torch.stack(masks)
        binary = masks > 0.5
        scores = torch.stack(scores) * (masks * binary).sum((1, 2)) / binary.sum((1, 2))
        order = scores.argsort(descending=True)[:500]
        masks, scores, classes = masks[order], scores[order], torch.tensor(classes)[order]
        scores = matrix_nms(binary[order], classes, scores)
        order = scores.argsort(descending=True)
        order = order[scores[order] >= UPDATE_THRESHOLD][:kept]
        whole = resize(masks[order][None], image.shape[2:])[:, :, : image_size[0], : image_size[1]]
        return scores[order], classes[order], resize(whole, size)[0] > 0.5

    def losses(self, images, objects, scale_ranges, *, center_size, min_pixels, alpha, gamma):
        """The mask and the class loss of padded images [N, 3, H, W], without weights; of each image's objects the masks
        bool [K, H, W], the boxes (x0, y0, x1, y1) and the classes."""
        dice, focal = [], 0
        for image, (masks, boxes, classes) in zip(images, objects):
            features = self.pyramid(image[None])
            mask_logits = self.masks(features)
            for level, probabilities in enumerate(x.sigmoid() for x in self.category_logits(features)):
                cells = owners(masks, boxes, self.category_grids[level], scale_ranges[level], center_size, min_pixels)
                for i, row in enumerate(cells):
                    for j, k in enumerate(row):
                        for category, p in enumerate(probabilities[:, i, j]):
                            if k >= 0 and classes[k] == category:
                                focal += -alpha * (1 - p) ** gamma * p.log()
                            else:
                                focal += -(1 - alpha) * p**gamma * (1 - p).log()
                        if k >= 0:
                            dice.append(dice_loss(mask_logits(level, i, j).sigmoid(), masks[k]))
        return sum(dice) / max(len(dice), 1), focal / (len(dice) + 1)


def owners(masks, boxes, side, scales, center_size, min_pixels):
    """Which of an image's objects every cell of a level's side × side learns, rows of −1 for none: object by object.
    Masks are bool [K, H, W], boxes (x0, y0, x1, y1), scales the level's least and largest."""
    height, width = masks.shape[1:]
    cells = [[-1] * side for _ in range(side)]
    for k, (mask, (x0, y0, x1, y1)) in enumerate(zip(masks, boxes)):
        if mask.sum() < min_pixels or not scales[0] <= math.sqrt((x1 - x0) * (y1 - y0)) <= scales[1]:
            continue
        center_y, center_x = mask.nonzero().double().mean(dim=0).tolist()
        for row in cells_around(center_y, (y1 - y0) * center_size / 2, height, side):
            for column in cells_around(center_x, (x1 - x0) * center_size / 2, width, side):
                cells[row][column] = k
    return cells


def cells_around(center, half, length, side):
    """Of the cells along an axis those that what lies so near to the centre is in; of them the centre's and the next."""
    first, middle, last = (math.floor(position * side / length) for position in (center - half, center, center + half))
    return range(max(first, middle - 1, 0), min(last, middle + 1, side - 1) + 1)


def dice_loss(probabilities, mask):
    """Of a mask's probabilities [h, w] and an object's mask bool [H, W], resized to them."""
    q = (resize(mask[None, None].to(probabilities), probabilities.shape)[0, 0] >= 0.5).to(probabilities)
    squares = (probabilities**2).sum() + 0.001, (q**2).sum() + 0.001
    return 1 - 2 * (probabilities * q).sum() / sum(squares)


def resize(x, size, align_corners=False):
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def with_coordinates(x):
    """x and y, from −1 at the first to 1 at the last pixel, after the channels."""
    height, width = x.shape[2:]
    xs = torch.linspace(-1, 1, width).to(x).expand(1, 1, height, width)
    ys = torch.linspace(-1, 1, height).to(x)[:, None].expand(1, 1, height, width)
    return torch.cat([x, xs, ys], dim=1)


def points_nms(scores):
    """0 where one of the cells above and to the left, which together are a square of four, has a higher score."""
    padded = F.pad(scores, (1, 0, 1, 0), value=-1)
    highest = torch.stack([padded[..., :-1, :-1], padded[..., :-1, 1:], padded[..., 1:, :-1], scores]).amax(dim=0)
    return torch.where(highest == scores, scores, 0)


def matrix_nms(masks, classes, scores):
    """The gaussian kernel's, sigma 2, of masks in the order of their scores."""
    flat = masks.flatten(1).to(scores)
    shared = flat @ flat.T
    areas = flat.sum(dim=1)
    ious = shared / (areas[:, None] + areas - shared) * (classes[:, None] == classes)
    ious = ious.triu(diagonal=1)
    highest = ious.amax(dim=0)
    decay = torch.exp(-2 * ious**2) / torch.exp(-2 * highest[:, None] ** 2)
    return scores * decay.amin(dim=0)
