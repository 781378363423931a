"""Ground-truth sampling: objects gathered around centres known from the annotation (Section 4.3, Table 1).

It tells how well the embeddings group pixels, apart from how well the seed maps find the centres and the classes.
"""

import torch
from torch import Tensor

from .clustering import HALF
from .loss import group_mean

# Distances between pixels and centres that are held at once; a float32 for x and one for y each.
CHUNK = 2**23


def gather_objects(
    offsets: Tensor, grid: Tensor, bandwidth: Tensor, instances: Tensor, classes: Tensor, *, center: str
) -> tuple[Tensor, Tensor]:
    """Gather the pixels of every annotated object around its own centre, with its own bandwidth.

    Centre and bandwidth are those that the loss trains: the mean over the object's pixels of their coordinates
    ("centroid") or embeddings ("learnt"), and exp(10 · mean raw bandwidth). The authors' code takes the mean embedding
    whatever the training's centre was.

    Args:
        offsets: float [2, H, W], (x, y), in units of the grid.
        grid: float [2, H, W], the pixels' coordinates.
        bandwidth: float [S, H, W], raw s, with S = 1 (circular) or 2 (for x, for y).
        instances: int64 [H, W], an object's number or 0 where there is none.
        classes: int64 [H, W], the class of each object's pixels.
        center: the centre of attraction, "centroid" or "learnt".

    Returns:
        masks bool [K, H, W]: all pixels of the image with phi > 0.5, so masks may overlap; classes int64 [K]. In the
        order of the objects' numbers, without objects that attract no pixel.
    """
    pixels = instances.flatten().nonzero().squeeze(1)  # [P], those of all objects
    numbers, owner = instances.flatten()[pixels].unique(return_inverse=True)  # [K], [P]
    embeddings = (grid + offsets).flatten(1)  # [2, HW]
    attracted = grid.flatten(1) if center == "centroid" else embeddings
    centers = group_mean(attracted[:, pixels], owner, len(numbers))  # [2, K]
    precision = torch.exp(10 * group_mean(bandwidth.flatten(1)[:, pixels], owner, len(numbers)))  # [S, K]
    object_classes = torch.zeros_like(numbers).scatter_(0, owner, classes.flatten()[pixels])

    chunks = embeddings.split(max(1, CHUNK // max(1, len(numbers))), dim=1)
    masks = torch.cat([_members(chunk, centers, precision) for chunk in chunks], dim=1).view(-1, *instances.shape)
    found = masks.flatten(1).any(dim=1)
    return masks[found], object_classes[found]


def _members(embeddings: Tensor, centers: Tensor, precision: Tensor) -> Tensor:
    """Which of the embeddings [2, P] belong to the objects with centres [2, K] and precision [S, K], bool [K, P]."""
    distance = ((embeddings[:, None] - centers[..., None]) ** 2 * precision[..., None]).sum(dim=0)
    return torch.exp(-distance) > HALF


def check_ground_truth(batched_inputs: list[dict]) -> None:
    """Raise KeyError where an input of inference has neither label maps nor annotated instances."""
    for image_input in batched_inputs:
        if "instance_map" not in image_input and "instances" not in image_input:
            raise KeyError(
                "MODEL.SPATIAL_EMBEDDINGS.SAMPLING is 'ground_truth', which takes the objects from the annotation: "
                "every input needs 'instance_map' and 'class_map' (INPUT.DATASET_MAPPER_NAME label_map, on an "
                f"annotated dataset), but one has only {sorted(image_input)}. Images without annotations need "
                "SAMPLING 'seeds'."
            )
