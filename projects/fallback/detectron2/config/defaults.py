"""Every key of the config and its default. Keys in _TRAIN or _TEST hold for training or testing only."""

from .config import CfgNode as CN

# How the backbone, the proposals and the heads are put together.
_MODEL = {
    "META_ARCHITECTURE": "GeneralizedRCNN",
    "DEVICE": "cuda",
    "WEIGHTS": "",  # checkpoint: path, https:// or detectron2://
    "PIXEL_MEAN": [103.530, 116.280, 123.675],  # by channel, in the order of INPUT.FORMAT; ImageNet's
    "PIXEL_STD": [1.0, 1.0, 1.0],  # 1 where the pretrained weights have absorbed it
    "MASK_ON": False, "KEYPOINT_ON": False, "LOAD_PROPOSALS": False,
    "BACKBONE": {
        "NAME": "build_resnet_backbone",
        "FREEZE_AT": 2,  # first stages kept as they were loaded; 0 none, 1 stem, 2 stem and res2, ...
    },
    "RESNETS": {
        "DEPTH": 50,  # 18, 34, 50, 101 or 152
        "OUT_FEATURES": ["res4"],  # of stem, res2 ... res5, linear
        "NORM": "FrozenBN",  # as for layers.get_norm
        "STEM_OUT_CHANNELS": 64,
        "RES2_OUT_CHANNELS": 256,  # doubled from stage to stage
        "NUM_GROUPS": 1,  # more than 1: ResNeXt
        "WIDTH_PER_GROUP": 64,  # channels
        "STRIDE_IN_1X1": True,  # True for the weights of MSRA, False for those of torchvision and ResNeXt
        "RES5_DILATION": 1,  # 2 keeps res5 at stride 16
        "DEFORM_ON_PER_STAGE": [False] * 4,  # deformable 3x3 convolutions in res2 ... res5
        "DEFORM_MODULATED": False,  # the samples are weighted too
        "DEFORM_NUM_GROUPS": 1,  # of channels with offsets of their own
    },
    "FPN": {
        "IN_FEATURES": [],  # of the backbone, finest first
        "OUT_CHANNELS": 256,
        "NORM": "",
        "FUSE_TYPE": "sum",  # or avg
    },
    # Anchors, proposals and their heads. Sizes are in pixels, thresholds IoUs, weights of dx, dy, dw, dh.
    "ANCHOR_GENERATOR": {
        "NAME": "DefaultAnchorGenerator",
        "SIZES": [[32, 64, 128, 256, 512]],  # square roots of areas, by feature map
        "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],  # height / width, by feature map
        "ANGLES": [[-90, 0, 90]],  # degrees counterclockwise, of rotated anchors
        "OFFSET": 0.0,  # of the first anchor's centre, in strides, [0, 1)
    },
    "PROPOSAL_GENERATOR": {"NAME": "RPN", "MIN_SIZE": 0},
    "RPN": {
        "HEAD_NAME": "StandardRPNHead", "IN_FEATURES": ["res4"], "CONV_DIMS": [-1], "BOUNDARY_THRESH": -1,
        "IOU_THRESHOLDS": [0.3, 0.7], "IOU_LABELS": [0, -1, 1],
        "BATCH_SIZE_PER_IMAGE": 256, "POSITIVE_FRACTION": 0.5, "LOSS_WEIGHT": 1.0,
        "BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_LOSS_WEIGHT": 1.0, "SMOOTH_L1_BETA": 0.0,
        "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
        "PRE_NMS_TOPK_TRAIN": 12000, "PRE_NMS_TOPK_TEST": 6000,  # by feature map
        "POST_NMS_TOPK_TRAIN": 2000, "POST_NMS_TOPK_TEST": 1000, "NMS_THRESH": 0.7,
    },
    "ROI_HEADS": {
        "NAME": "Res5ROIHeads", "NUM_CLASSES": 80, "IN_FEATURES": ["res4"],
        "IOU_THRESHOLDS": [0.5], "IOU_LABELS": [0, 1], "PROPOSAL_APPEND_GT": True,
        "BATCH_SIZE_PER_IMAGE": 512, "POSITIVE_FRACTION": 0.25,
        "SCORE_THRESH_TEST": 0.05, "NMS_THRESH_TEST": 0.5,
    },
    "ROI_BOX_HEAD": {
        "NAME": "", "NORM": "", "NUM_CONV": 0, "CONV_DIM": 256, "NUM_FC": 0, "FC_DIM": 1024,
        "POOLER_TYPE": "ROIAlignV2", "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0,
        "BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_LOSS_WEIGHT": 1.0, "SMOOTH_L1_BETA": 0.0,
        "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0), "CLS_AGNOSTIC_BBOX_REG": False,
        "TRAIN_ON_PRED_BOXES": False, "USE_SIGMOID_CE": False, "USE_FED_LOSS": False,
        "FED_LOSS_NUM_CLASSES": 50, "FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
    },
    "ROI_BOX_CASCADE_HEAD": {
        "IOUS": (0.5, 0.6, 0.7),  # by stage
        "BBOX_REG_WEIGHTS": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
    },
    "ROI_MASK_HEAD": {
        "NAME": "MaskRCNNConvUpsampleHead", "NORM": "", "NUM_CONV": 0, "CONV_DIM": 256,
        "CLS_AGNOSTIC_MASK": False,
        "POOLER_TYPE": "ROIAlignV2", "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0,
    },
    "ROI_KEYPOINT_HEAD": {
        "NAME": "KRCNNConvDeconvUpsampleHead", "NUM_KEYPOINTS": 17, "CONV_DIMS": (512,) * 8,
        "POOLER_TYPE": "ROIAlignV2", "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0,
        "MIN_KEYPOINTS_PER_IMAGE": 1, "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True, "LOSS_WEIGHT": 1.0,
    },
    "RETINANET": {
        "NUM_CLASSES": 80, "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"], "NUM_CONVS": 4, "NORM": "",
        "IOU_THRESHOLDS": [0.4, 0.5], "IOU_LABELS": [0, -1, 1], "PRIOR_PROB": 0.01,
        "FOCAL_LOSS_ALPHA": 0.25, "FOCAL_LOSS_GAMMA": 2.0, "SMOOTH_L1_LOSS_BETA": 0.1,
        "BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
        "SCORE_THRESH_TEST": 0.05, "TOPK_CANDIDATES_TEST": 1000, "NMS_THRESH_TEST": 0.5,
    },
    "SEM_SEG_HEAD": {
        "NAME": "SemSegFPNHead",
        "IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "IGNORE_VALUE": 255,  # label without a loss
        "NUM_CLASSES": 54,
        "CONVS_DIM": 128,
        "COMMON_STRIDE": 4,  # of the features that are added up
        "NORM": "GN",
        "LOSS_WEIGHT": 1.0,
    },
    "PANOPTIC_FPN": {
        "INSTANCE_LOSS_WEIGHT": 1.0,
        "COMBINE": {
            "ENABLED": True,  # False: no panoptic segmentation, only instances and semantics
            "OVERLAP_THRESH": 0.5,  # instances hidden by more than this part are dropped
            "STUFF_AREA_LIMIT": 4096,  # smaller stuff is dropped, pixels
            "INSTANCES_CONFIDENCE_THRESH": 0.5,
        },
    },
}

_INPUT = {
    "FORMAT": "BGR",  # or a mode of Pillow: RGB, L, ...
    "MASK_FORMAT": "polygon",  # or bitmask
    "MIN_SIZE_TRAIN": (800,),  # shorter side after resizing, pixels
    "MIN_SIZE_TRAIN_SAMPLING": "choice",  # one of these sizes; or range: between two
    "MAX_SIZE_TRAIN": 1333,  # longer side, pixels; has precedence
    "MIN_SIZE_TEST": 800,  # 0: no resizing
    "MAX_SIZE_TEST": 1333,
    "RANDOM_FLIP": "horizontal",  # or vertical, none
    "CROP": {
        "ENABLED": False,
        "TYPE": "relative_range",  # or relative, absolute_range, absolute
        "SIZE": [0.9, 0.9],  # height, width: parts (0, 1], or pixels if absolute
    },
}

_DATASETS = {
    "TRAIN": (),  # registered names; several are joined
    "TEST": (),
    "PROPOSAL_FILES_TRAIN": (),  # one a dataset, if MODEL.LOAD_PROPOSALS
    "PROPOSAL_FILES_TEST": (),
    "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000, "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
}

_DATALOADER = {
    "NUM_WORKERS": 4,  # processes for each training process
    "ASPECT_RATIO_GROUPING": True,  # wide images and tall ones in separate batches
    "FILTER_EMPTY_ANNOTATIONS": True,  # train on images with objects only
    "SAMPLER_TRAIN": "TrainingSampler",  # or RepeatFactorTrainingSampler
    "REPEAT_THRESHOLD": 0.0,  # images of classes in a smaller part of the images are repeated
    "REPEAT_SQRT": True,
}

_SOLVER = {
    "IMS_PER_BATCH": 16,  # images an iteration, over all processes
    "REFERENCE_WORLD_SIZE": 0,  # processes the solver was set for, to rescale it to others; 0: never
    "MAX_ITER": 40000,
    "BASE_LR": 0.001,
    "BASE_LR_END": 0.0,
    "LR_SCHEDULER_NAME": "WarmupMultiStepLR",  # or WarmupCosineLR, WarmupStepWithFixedGammaLR
    "STEPS": (30000,),  # iterations at which the rate is multiplied by GAMMA
    "GAMMA": 0.1,
    "NUM_DECAYS": 3,
    "RESCALE_INTERVAL": False,
    "WARMUP_METHOD": "linear",  # or constant
    "WARMUP_ITERS": 1000,
    "WARMUP_FACTOR": 0.001,  # the first rate, as a part of BASE_LR
    "MOMENTUM": 0.9,
    "NESTEROV": False,
    "WEIGHT_DECAY": 0.0001,
    "WEIGHT_DECAY_NORM": 0.0,  # of normalization layers
    "WEIGHT_DECAY_BIAS": None,  # None: WEIGHT_DECAY
    "BIAS_LR_FACTOR": 1.0,
    "CLIP_GRADIENTS": {
        "ENABLED": False, "CLIP_VALUE": 1.0,
        "CLIP_TYPE": "value",  # or norm
        "NORM_TYPE": 2.0,  # inf: the largest
    },
    "AMP": {"ENABLED": False},  # mixed precision
    "CHECKPOINT_PERIOD": 5000,  # iterations
}

_TEST = {
    "EVAL_PERIOD": 0,  # iterations; 0: only at the end
    "DETECTIONS_PER_IMAGE": 100,
    "EXPECTED_RESULTS": [],  # [task, metric, value, tolerance], checked at the end
    "KEYPOINT_OKS_SIGMAS": [],  # [] for COCO's
    "AUG": {
        "ENABLED": False, "FLIP": True,
        "MIN_SIZES": tuple(range(400, 1201, 100)), "MAX_SIZE": 4000,  # pixels
    },
    "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
}

_C = CN(
    {
        "VERSION": 2,
        "MODEL": _MODEL,
        "INPUT": _INPUT,
        "DATASETS": _DATASETS,
        "DATALOADER": _DATALOADER,
        "SOLVER": _SOLVER,
        "TEST": _TEST,
        "OUTPUT_DIR": "./output",
        "SEED": -1,  # negative: from the system's entropy
        "CUDNN_BENCHMARK": False,
        "FLOAT32_PRECISION": "",  # or highest, high, medium: torch.set_float32_matmul_precision
        "VIS_PERIOD": 0,  # iterations between pictures of training in TensorBoard; 0: none
        "GLOBAL": {"HACK": 1.0},
    }
)
