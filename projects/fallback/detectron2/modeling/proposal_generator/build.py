from detectron2.utils.registry import Registry

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = (
    "Modules from features to proposals (or detections): called with the config and the input shapes."
)


def build_proposal_generator(cfg, input_shape):
    """Build ``cfg.MODEL.PROPOSAL_GENERATOR.NAME`` on features of the given shapes (name -> ShapeSpec).

    None for ``"PrecomputedProposals"``, which come with the data.
    """
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    return None if name == "PrecomputedProposals" else PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
