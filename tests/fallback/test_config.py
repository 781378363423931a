"""The config tree, its files, and classes and functions built from it."""

import pytest
import yaml

import detectron2.config
from detectron2.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_defaults_are_detectron2s():
    cfg = get_cfg()
    assert cfg.VERSION == 2
    assert cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    assert cfg.MODEL.PIXEL_MEAN == [103.530, 116.280, 123.675] and cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]
    assert cfg.MODEL.RESNETS.NORM == "FrozenBN" and cfg.MODEL.BACKBONE.FREEZE_AT == 2
    assert cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS[2] == (30.0, 30.0, 15.0, 15.0)
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS == (512,) * 8
    assert cfg.INPUT.MIN_SIZE_TRAIN == (800,) and cfg.INPUT.CROP.SIZE == [0.9, 0.9]
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS is None and cfg.SOLVER.STEPS == (30000,)
    assert cfg.SOLVER.WARMUP_FACTOR == 1e-3 and not cfg.SOLVER.AMP.ENABLED
    assert cfg.TEST.AUG.MIN_SIZES == (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
    assert cfg.DATASETS.TRAIN == () and cfg.DATALOADER.NUM_WORKERS == 4
    assert cfg.SEED == -1 and cfg.VIS_PERIOD == 0 and cfg.OUTPUT_DIR == "./output"


def test_get_cfg_returns_a_copy():
    get_cfg().SOLVER.MAX_ITER = 3
    assert get_cfg().SOLVER.MAX_ITER == 40000


def test_files_override_their_base(tmp_path):
    base = "VERSION: 2\nSOLVER: {MAX_ITER: 7, BASE_LR: 0.5}\nDATASETS:\n  TRAIN: ('a',)\n"
    write(tmp_path, "base.yaml", base)
    path = write(tmp_path, "child.yaml", "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 9}\n")
    cfg = get_cfg()
    cfg.merge_from_file(path)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.DATASETS.TRAIN) == (9, 0.5, ("a",))
    cfg.merge_from_list(["SOLVER.MAX_ITER", "11", "DATASETS.TEST", "('b', 'c')"])
    assert cfg.SOLVER.MAX_ITER == 11 and cfg.DATASETS.TEST == ("b", "c")


def test_dump_is_read_back(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS = "detectron2://x.pkl"
    other = get_cfg()
    other.merge_from_file(write(tmp_path, "dump.yaml", cfg.dump()))
    assert yaml.safe_load(other.dump()) == yaml.safe_load(cfg.dump())
    assert other.MODEL.WEIGHTS == "detectron2://x.pkl" and other.SOLVER == cfg.SOLVER


@pytest.mark.parametrize(
    "text, error",
    [
        ("VERSION: 3\n", AssertionError),
        ("VERSION: 2\nMODEL: {NO_SUCH_KEY: 1}\n", KeyError),
        ("VERSION: 2\nSOLVER: {MAX_ITER: many}\n", ValueError),
    ],
)
def test_bad_files_are_refused(tmp_path, text, error):
    with pytest.raises(error):
        get_cfg().merge_from_file(write(tmp_path, "bad.yaml", text))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(AssertionError, match="absent.yaml"):
        get_cfg().merge_from_file(str(tmp_path / "absent.yaml"))


def test_frozen_config_is_immutable():
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SEED = 1


def test_global_config():
    set_global_cfg(CfgNode({"A": 3}))
    assert global_cfg.A == 3 and detectron2.config.global_cfg is global_cfg
    set_global_cfg(CfgNode({"B": 4}))
    assert "A" not in global_cfg and global_cfg.B == 4


class Sum:
    @configurable
    def __init__(self, a, b=2, *, c=3):
        self.values = a, b, c

    @classmethod
    def from_config(cls, cfg, scale=1):
        return {"a": cfg.A * scale, "c": cfg.C}


class Child(Sum):
    @configurable
    def __init__(self, *, d, **kwargs):
        super().__init__(**kwargs)
        self.d = d

    @classmethod
    def from_config(cls, cfg):
        return {"d": 4, **super().from_config(cfg)}


CFG = CfgNode({"A": 10, "C": 30})


def test_configurable_class():
    assert Sum(1).values == (1, 2, 3)
    assert Sum(1, b=5, c=6).values == (1, 5, 6)
    assert Sum(CFG).values == (10, 2, 30)
    assert Sum(cfg=CFG).values == (10, 2, 30)
    assert Sum(CFG, b=7, c=8).values == (10, 7, 8)
    assert Sum(CFG, scale=2).values == (20, 2, 30)
    assert Sum(CFG, 3).values == (30, 2, 30)
    child = Child(CFG, b=9)
    assert child.d == 4 and child.values == (10, 9, 30)
    assert Child(a=1, d=2).values == (1, 2, 3)


def test_configurable_function():
    @configurable(from_config=lambda cfg, extra=0: {"a": cfg.A + extra})
    def pair(a, b=2):
        return a, b

    assert pair(1) == (1, 2) and pair(CFG) == (10, 2)
    assert pair(CFG, b=3) == (10, 3) and pair(CFG, extra=5) == (15, 2)
    assert pair.__name__ == "pair" and pair.from_config(CFG) == {"a": 10}


def test_from_config_with_variadic_arguments_gets_all():
    @configurable(from_config=lambda cfg, **kwargs: {"seen": sorted(kwargs)})
    def names(seen):
        return seen

    assert names(CFG, x=1, y=2) == ["x", "y"]


def test_configurable_errors():
    class Without:
        @configurable
        def __init__(self, a):
            pass

    class NotClassmethod(Without):
        def from_config(self, cfg):
            return {}

    class WrongName(Without):
        @classmethod
        def from_config(cls, config):
            return {}

    with pytest.raises(AttributeError, match="from_config"):
        Without(a=1)
    with pytest.raises(TypeError, match="classmethod"):
        NotClassmethod(a=1)
    with pytest.raises(TypeError, match="cfg"):
        WrongName(CFG)
    with pytest.raises(AssertionError):
        configurable(lambda a: a)
    with pytest.raises(AssertionError):
        configurable(from_config={"a": 1})
