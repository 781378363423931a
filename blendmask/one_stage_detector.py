"""A proposal generator as a detector: FCOS alone."""

from torch import Tensor

from detectron2.modeling import META_ARCH_REGISTRY, ProposalNetwork


@META_ARCH_REGISTRY.register()
class OneStageDetector(ProposalNetwork):
    """Detectron2's ``ProposalNetwork`` whose proposals are the detections: a backbone and FCOS, say."""

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """In training the losses by name, else {"instances": Instances} for each image, as Detectron2's detectors do."""
        outputs = super().forward(batched_inputs)
        if self.training:
            return outputs
        return [{"instances": output["proposals"]} for output in outputs]
