"""Orders in which a dataset's images are visited."""

from detectron2._missing import missing_names

from .distributed_sampler import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler

__getattr__ = missing_names(__name__, "GroupedBatchSampler RandomSubsetTrainingSampler")
