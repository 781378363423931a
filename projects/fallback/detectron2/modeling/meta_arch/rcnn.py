"""Detectors that propose regions first: Ren et al., "Faster R-CNN", 2015; He et al., "Mask R-CNN", 2017."""

import numpy as np
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage

from ..backbone import Backbone
from ..postprocessing import detector_postprocess
from ..proposal_generator import build_proposal_generator
from ..roi_heads import build_roi_heads
from .build import META_ARCH_REGISTRY
from .image_model import ImageModel, output_sizes

__all__ = ["GeneralizedRCNN", "ProposalNetwork"]


class _RegionModel(ImageModel):
    """What the models below have in common."""

    def __init__(self, *, proposal_generator, **kwargs):
        super().__init__(**kwargs)
        self.proposal_generator = proposal_generator

    @classmethod
    def from_config(cls, cfg):
        parts = super().from_config(cfg)
        return parts | {"proposal_generator": build_proposal_generator(cfg, parts["backbone"].output_shape())}

    def _ground_truth(self, batched_inputs: list[dict]) -> list[Instances] | None:
        if "instances" not in batched_inputs[0]:
            return None
        return [x["instances"].to(self.device) for x in batched_inputs]


def to_output_size(
    results: list[Instances], batched_inputs: list[dict], image_sizes: list[tuple[int, int]]
) -> list[Instances]:
    """The results at the height and width that the inputs ask for."""
    sizes = output_sizes(batched_inputs, image_sizes)
    return [detector_postprocess(result, *size) for result, size in zip(results, sizes)]


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(_RegionModel):
    """Backbone, proposals, and what ROI heads predict of them: Faster R-CNN, Mask R-CNN."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module | None,
        roi_heads: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        input_format: str | None = None,
        vis_period: int = 0,
    ):
        """
        Args:
            backbone: images to feature maps.
            proposal_generator: feature maps to proposals; None if these come with the images.
            roi_heads: feature maps and proposals to instances.
            pixel_mean, pixel_std: of each channel; the images are normalized by them.
            input_format: the channels' order, "RGB" or "BGR"; needed for pictures only.
            vis_period: iterations between pictures of proposals in the event storage; 0: none.
        """
        super().__init__(
            backbone=backbone, proposal_generator=proposal_generator, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        assert vis_period == 0 or input_format is not None, "pictures (vis_period) need the input_format"
        self.roi_heads = roi_heads
        self.input_format = input_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg):
        parts = super().from_config(cfg)
        return parts | {
            "roi_heads": build_roi_heads(cfg, parts["backbone"].output_shape()),
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: a dict for each image with

                * image: [3, H, W], in the channel order and value range of ``INPUT.FORMAT``;
                * instances, in training: Instances with gt_boxes, gt_classes and, for a mask head, gt_masks;
                * proposals, without a proposal generator: Instances with proposal_boxes, objectness_logits;
                * height and width, in inference: those of the output; the image's own where absent.

        Returns:
            in training the losses by name; else for each image {"instances": Instances} with pred_boxes, scores,
            pred_classes and, with a mask head, pred_masks.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, losses = self._learn(batched_inputs, images, features)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return losses

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """See ``forward``.

        detected_instances: with pred_boxes and pred_classes, which are then not predicted.
        do_postprocess: False for the Instances at the network's input size, masks [Ri, 1, M, M] of their boxes.
        """
        assert not self.training, "inference needs the model in evaluation mode: model.eval()"
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self._propose(batched_inputs, images, features)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            given = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, given)
        return self._postprocess(results, batched_inputs, images.image_sizes) if do_postprocess else results

    def _learn(self, batched_inputs, images, features):
        """Proposals, and the losses of all that looks at regions."""
        ground_truth = self._ground_truth(batched_inputs)
        proposals, proposal_losses = self._propose(batched_inputs, images, features, ground_truth)
        _, losses = self.roi_heads(images, features, proposals, ground_truth)
        return proposals, losses | proposal_losses

    def _propose(self, batched_inputs, images, features, ground_truth=None):
        """Proposals, and in training their losses."""
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, ground_truth)
        assert "proposals" in batched_inputs[0], "without a proposal generator the inputs must have proposals"
        return [x["proposals"].to(self.device) for x in batched_inputs], {}

    @staticmethod
    def _postprocess(instances, batched_inputs, image_sizes) -> list[dict]:
        return [{"instances": result} for result in to_output_size(instances, batched_inputs, image_sizes)]

    def visualize_training(self, batched_inputs: list[dict], proposals: list[Instances]) -> None:
        """Put the first image with its ground truth, and with its 20 best proposals, into the event storage."""
        from detectron2.utils.visualizer import Visualizer  # slow to import

        image = convert_image_to_rgb(batched_inputs[0]["image"].permute(1, 2, 0), self.input_format)
        ground_truth = batched_inputs[0]["instances"].gt_boxes
        best = proposals[0].proposal_boxes[:20].to("cpu")
        pictures = [Visualizer(image).overlay_instances(boxes=boxes).get_image() for boxes in (ground_truth, best)]
        name = "Left: GT bounding boxes;  Right: Predicted proposals"
        get_event_storage().put_image(name, np.concatenate(pictures, axis=1).transpose(2, 0, 1))


@META_ARCH_REGISTRY.register()
class ProposalNetwork(_RegionModel):
    """Backbone and proposals alone."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ):
        """See GeneralizedRCNN."""
        super().__init__(
            backbone=backbone, proposal_generator=proposal_generator, pixel_mean=pixel_mean, pixel_std=pixel_std
        )

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """As GeneralizedRCNN's; results are {"proposals": Instances} with proposal_boxes and objectness_logits."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, self._ground_truth(batched_inputs))
        if self.training:
            return losses
        return [{"proposals": x} for x in to_output_size(proposals, batched_inputs, images.image_sizes)]
