"""The multiply-adds of SOLO, SOLOv2 and AggMask at inference, with the masks of a given number of cells.

How many masks there are depends on the image. So what is predicted densely is counted on one, and to it is added what
the model does for the masks of as many cells as are asked for.
"""

from collections import Counter
from itertools import accumulate
from typing import Sequence

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode as CN
from detectron2.modeling import build_model

from projects.flops import AS_IT_RUNS, Counts, count

from .cells import Cells
from .published_flops import published_components
from .solo import Predictions

AS_PUBLISHED = "as published"


def count_flops(cfg: CN, model: nn.Module, image: Tensor, num_cells: Sequence[int]) -> Counts:
    """Count the model of a config; with the aggregation beside the same model without, and both as they were published.

    The model without has the category grids for its masks, too.

    Args:
        model: of the config, in evaluation mode.
        image: [3, H, W], as the model takes it.
        num_cells: how many of each level's category cells have masks, or one number, of all levels' together.

    Raises:
        ValueError: there are not as many levels or cells.
    """
    num_cells = cells_by_level(model.category_grids, num_cells)
    ours, published, uncounted = count_components(model, image, num_cells)
    if model.aggregation is None:
        return Counts({AS_IT_RUNS: ours}, uncounted=uncounted)

    base_cfg = cfg.clone()
    base_cfg.MODEL.AGGMASK.AGGREGATION.ENABLED = False
    base_cfg.MODEL.AGGMASK.MASK_GRIDS = cfg.MODEL.AGGMASK.CATEGORY_GRIDS
    base, published_base, _ = count_components(build_model(base_cfg).eval(), image, num_cells)
    pairs = {AS_IT_RUNS: (ours, base), AS_PUBLISHED: (published, published_base)}
    columns = {f"{title}{end}": x for title, pair in pairs.items() for end, x in zip(("", ", base"), pair)}
    return Counts(columns, {title: f"{title}, base" for title in pairs}, uncounted)


def count_components(model: nn.Module, image: Tensor, num_cells: Sequence[int]) -> tuple[dict, dict, Counter]:
    """Multiply-adds by component as the model runs, the same as published, and the operators that are not counted.

    Args:
        num_cells: of each level.
    """
    dense = count(model, lambda x: model.predict(model.preprocess([{"image": x}])), image)
    predictions, context = dense.result
    cells = spread_cells(model, predictions, num_cells)
    # Last SOLOv2's branch from which nothing but the weights is predicted.
    names = ("backbone", "aggregation.context_fusion", "head.weight_tower")
    backbone, fusion, weight_tower = (dense.parts[name] for name in names)
    shared = {"backbone": backbone, "head": dense.total - backbone - fusion - weight_tower}
    masks, uncounted = count_masks(model, predictions, context, cells)
    ours, published = {**shared, **masks}, {**shared, **published_components(model, predictions, context, cells)}
    if context is not None:
        ours["context"] = fusion
        for components in (ours, published):
            components["weights"] += weight_tower
    return ours, published, dense.uncounted + uncounted


def count_masks(
    model: nn.Module, predictions: Predictions, context: Tensor | None, cells: Cells
) -> tuple[dict[str, int], Counter]:
    """Of what makes some cells' masks the multiply-adds by component, and the operators that are not counted."""
    masks = count(model, lambda: model.mask_logits(predictions, context, cells))
    if context is None:
        return {"maps": masks.total}, masks.uncounted
    map_cells, _ = model.neighbours(predictions, cells)
    maps = count(model, lambda: model.maps(predictions, map_cells)).total
    weights = count(model, lambda: model.aggregation.weights(predictions.weight_features, cells)).total
    return {"maps": maps, "weights": weights, "aggregation": masks.total - maps - weights}, masks.uncounted


def cells_by_level(grids: Sequence[int], num_cells: Sequence[int]) -> list[int]:
    """How many cells of each level's grid are meant by ``count_flops``'s argument; of one number each level has its
    share of all cells."""
    sizes, given = [side**2 for side in grids], list(num_cells)
    if len(num_cells) not in (1, len(grids)):
        raise ValueError(
            f"The number of cells is one of all, or one for each of the config's {len(grids)} levels; there are "
            f"{len(num_cells)} numbers."
        )
    if len(num_cells) == 1:
        ends = [num_cells[0] * end // sum(sizes) for end in accumulate(sizes)]
        num_cells = [end - start for start, end in zip([0, *ends], ends)]
    if sum(num_cells) < 1 or not all(0 <= n <= size for n, size in zip(num_cells, sizes)):
        raise ValueError(
            f"The config's levels have {sizes} category cells, {sum(sizes)} in all: {given} of them can't have masks. "
            "At least one must."
        )
    return list(num_cells)


def spread_cells(model: nn.Module, predictions: Predictions, num_cells: Sequence[int]) -> Cells:
    """So many category cells of each level, evenly spread, so that hardly any share a neighbour; of one image."""
    numbering = model.numbering(model.category_grids, predictions)
    counts = torch.tensor(num_cells, device=numbering.device)
    level = torch.arange(len(counts), device=numbering.device).repeat_interleave(counts)
    place = torch.arange(len(level), device=numbering.device) - (counts.cumsum(0) - counts)[level]
    cell = (2 * place + 1) * numbering.side[level] ** 2 // (2 * counts[level])
    return Cells.of(numbering.number(level, torch.zeros_like(level), cell), numbering)
