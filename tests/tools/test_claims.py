import json
import re

import claims
import pytest

CLAIM = "spatial_embeddings_ablation"
# A run of a few seconds.
OPTS = [
    "DATASETS.TRAIN", "('small_train',)", "DATASETS.TEST", "('small_val',)",
    "MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES", 3, "MODEL.SPATIAL_EMBEDDINGS.FPN_HEAD_CHANNELS", 16,
    "MODEL.FPN.OUT_CHANNELS", 16, "INPUT.CROP.SIZE", "(48, 48)", "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 3,
]  # fmt: skip


@pytest.fixture
def run_here(small_root, monkeypatch, capsys):
    """Run the tool in this process: run_here(*arguments) -> (what it printed, the message it ended with or "")."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))

    def run(*arguments):
        message = ""
        try:
            claims.main([str(x) for x in arguments])
        except (SystemExit, KeyError, ValueError, AssertionError) as error:
            message = str(error)
        printed = capsys.readouterr()
        return printed.out, message + printed.err

    return run


def rows_of(text):
    """Row title to its cells, of the markdown table in a text."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines[2:]}


def result_of(folder):
    """The evaluation's results in a run's metrics.json."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return next(line for line in lines if "segm/AP" in line)


def test_the_ablation_trains_each_row_once_and_prints_its_table(run_script, run_here, tmp_path):
    names = ["fixed_centroid", "elliptical_learnt"]
    arguments = [CLAIM, "--output", tmp_path, "--seeds", 4, "--rows", *names, "--opts", *OPTS]
    printed = run_script("tools/claims.py", *arguments).stdout
    assert "\nsmall_val, 3 iterations; seeds [4]\n" in printed
    rows = rows_of(printed)
    assert list(rows) == ["fixed bandwidth, centroid centre", "elliptical bandwidth, learnt centre"]
    for cells, name, paper in zip(rows.values(), names, ("28.0", "40.5")):
        folder = tmp_path / f"{name}_seed4"
        result = result_of(folder)
        assert cells[:3] == [paper, f"{result['segm/AP']:.1f}", f"{result['segm/AP50']:.1f}"]
        assert re.fullmatch(r"\d+\.\d", cells[3])
        config = (folder / "config.yaml").read_text()
        bandwidth, center = name.split("_")
        assert f"BANDWIDTH: {bandwidth}\n" in config and f"CENTER: {center}\n" in config
        assert "SAMPLING: ground_truth\n" in config and "SEED: 4\n" in config

    # Finished runs are read, not run: the table shows what their files say now, and the files stay as they are.
    metrics = tmp_path / "fixed_centroid_seed4/metrics.json"
    with metrics.open("a") as file:
        file.write(json.dumps({**result_of(metrics.parent), "segm/AP": 61.26, "segm/AP50": 88.0}) + "\n")
    before = metrics.read_bytes()
    printed, _ = run_here(*arguments)
    again = rows_of(printed)
    assert again["fixed bandwidth, centroid centre"][1:3] == ["61.3", "88.0"]
    assert again["elliptical bandwidth, learnt centre"] == rows["elliptical bandwidth, learnt centre"]
    assert metrics.read_bytes() == before

    _, message = run_here(*arguments, "SOLVER.BASE_LR", 0.5)
    assert "fixed_centroid_seed4 holds a run of" in message and "another --output" in message


def test_a_failing_run_shows_the_end_of_its_log(run_here, tmp_path):
    printed, message = run_here(
        CLAIM, "--output", tmp_path, "--rows", "scalar_learnt", "--opts", *OPTS, "SOLVER.OPTIMIZER", "NEWTON"
    )
    assert "NEWTON" in message and "scalar_learnt_seed1 failed with exit status 1" in message
    assert not rows_of(printed)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--opts", *OPTS, "DATASETS.TEST", "('nothing_val',)"], "No dataset is called 'nothing_val'"),
        (["--opts", *OPTS, "MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES", 5], "NUM_CLASSES is 5, .* 'small_train' has 3"),
        (["--rows", "round_learnt"], "no row .* round_learnt; rows: fixed_centroid, scalar_centroid"),
        (["--opts", *OPTS, "MODEL.NO_SUCH_KEY", 1], "NO_SUCH_KEY"),
    ],
)
def test_mistakes_are_explained_before_anything_trains(run_here, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    printed, explained = run_here(CLAIM, *arguments)
    assert re.search(message, explained) and not printed and not list(tmp_path.iterdir())


def test_rows_under_different_conditions_are_told_apart():
    from projects.config import setup_cfg

    long, other = (setup_cfg(opts=["DATASETS.TEST", (name,), "SOLVER.MAX_ITER", 9]) for name in ("a_val", "b_val"))
    short = setup_cfg(opts=["DATASETS.TEST", ("a_val",), "SOLVER.MAX_ITER", 5])
    assert claims.conditions(["x", "y"], [long, long]) == "a_val, 9 iterations"
    assert claims.conditions(["x", "y"], [long, short]) == "x: a_val, 9 iterations; y: a_val, 5 iterations"
    assert claims.conditions(["x", "y"], [long, other]) == "x: a_val, 9 iterations; y: b_val, 9 iterations"


def test_seeds_are_summed_up_by_mean_and_sample_standard_deviation():
    row = claims.ABLATION_ROWS["scalar_learnt"]
    claim = claims.Claim({"a": row}, "paper", claims.MASK_COLUMNS)
    runs = [{"segm/AP": ap, "segm/AP50": 70.04, "minutes": 3.0} for ap in (41.0, 43.0, 45.0)]
    (cells,) = rows_of(claims.table(claim, {"a": runs})).values()
    assert cells == ["39.5", "43.0 ± 2.0", "70.0 ± 0.0", "3.0 ± 0.0"]


def test_one_training_is_evaluated_in_several_ways(run_script, run_here, tmp_path):
    opts = [
        "DATASETS.TRAIN", "('small_train_panoptic_separated',)", "DATASETS.TEST", "('small_val_panoptic_separated',)",
        "MODEL.SSAP.DECODER_CHANNELS", 8, "MODEL.SSAP.CONV_CHANNELS", 8, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2,
    ]  # fmt: skip
    arguments = ["ssap_cascade", "--output", tmp_path, "--seeds", 1, "--rows", "joint", "joint_finest", "--opts", *opts]
    printed = run_script("tools/claims.py", *arguments).stdout
    assert list(rows_of(printed)) == ["joint training, full cascade", "joint training, finest level alone"]
    assert (tmp_path / "joint_seed1/model_final.pth").is_file()
    assert not (tmp_path / "joint_finest_seed1/model_final.pth").exists()
    results = json.loads((tmp_path / "joint_finest_seed1/evaluation.json").read_text())
    cells = rows_of(printed)["joint training, finest level alone"]
    assert cells[1:4] == [f"{results[key]:.1f}" for key in ("segm/AP", "segm/AP50", "panoptic_seg/PQ")]
    config = (tmp_path / "joint_finest_seed1/config.yaml").read_text()
    assert "NUM_CASCADE_LEVELS: 1\n" in config and "joint_seed1/model_final.pth" in config

    _, message = run_here("ssap_cascade", "--output", tmp_path / "new", "--rows", "joint_finest", "--opts", *opts)
    assert "no finished training in" in message and "add joint to --rows" in message


def test_a_training_is_finished_when_it_has_what_the_claim_compares(tmp_path):
    def log(*lines):
        (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return claims.finished_training(tmp_path, ["panoptic_seg/PQ", "panoptic_seg/SQ"])

    first, last = ({"panoptic_seg/PQ": quality, "panoptic_seg/SQ": 80.0} for quality in (30.0, 31.0))
    assert log(first) is None  # there are no weights yet
    (tmp_path / "model_final.pth").touch()
    assert log(first, last, {"total_loss": 1.0}) == last
    assert log({"segm/AP": 20.0}) is None and log({"panoptic_seg/PQ": 30.0}) is None


def test_a_model_without_masks_has_a_table_too(run_here, tmp_path, monkeypatch):
    train, test = (f"('small_{split}_panoptic_separated',)" for split in ("train", "val"))
    opts = ["DATASETS.TRAIN", train, "DATASETS.TEST", test]
    folder = tmp_path / "panoptic_fpn_seed1"
    folder.mkdir()
    (folder / "model_final.pth").touch()
    row = claims.CLAIMS["panoptic_affinity"].rows["panoptic_fpn"]
    run = {"config": "shapes_small_panoptic_fpn.yaml", "opts": [*row.opts, *opts, "SEED", "1"], "minutes": 7.25}
    (folder / "run.json").write_text(json.dumps(run))
    found = {"PQ": 41.25, "SQ": 80.0, "RQ": 50.0, "PQ_th": 30.0, "PQ_st": 52.5, "SQ_th": 70.0}
    results = {f"panoptic_seg/{name}": quality for name, quality in found.items()}
    (folder / "metrics.json").write_text(json.dumps(results) + "\n")
    monkeypatch.setattr(claims, "_train_net", lambda *arguments: pytest.fail("it is finished"))
    arguments = ["--output", tmp_path, "--seeds", 1, "--rows", "panoptic_fpn", "--opts", *opts]
    printed, log = run_here("panoptic_affinity", *arguments)
    assert rows_of(printed) == {"Panoptic FPN": ["COCO 41.5 (3x)", "41.2", "80.0", "50.0", "30.0", "52.5", "7.2"]}
    assert "panoptic_fpn, seed 1: PQ 41.2, 7.2 min" in log


def test_both_sides_of_a_comparison_have_the_same_data_backbone_and_schedule():
    from projects.config import configs_dir, setup_cfg

    rows = claims.CLAIMS["blendmask_mask_rcnn"].rows.values()
    one, other = (setup_cfg(str(configs_dir() / row.config), row.opts) for row in rows)
    assert one.MODEL.META_ARCHITECTURE != other.MODEL.META_ARCHITECTURE
    assert one.SOLVER == other.SOLVER and one.DATASETS == other.DATASETS and one.MODEL.WEIGHTS == other.MODEL.WEIGHTS
    assert one.MODEL.PIXEL_MEAN == other.MODEL.PIXEL_MEAN and one.MODEL.PIXEL_STD == other.MODEL.PIXEL_STD
    assert one.INPUT == other.INPUT
    assert one.MODEL.RESNETS == other.MODEL.RESNETS and one.MODEL.FPN == other.MODEL.FPN


def test_panoptic_models_differ_in_what_the_claim_is_about_alone():
    from detectron2.data import MetadataCatalog

    from projects.config import configs_dir, setup_cfg

    rows = claims.CLAIMS["panoptic_affinity"].rows.values()
    baseline, *others = (setup_cfg(str(configs_dir() / row.config), row.opts) for row in rows)
    for cfg in others:
        assert cfg.MODEL.META_ARCHITECTURE != baseline.MODEL.META_ARCHITECTURE
        assert cfg.SOLVER == baseline.SOLVER and cfg.MODEL.WEIGHTS == baseline.MODEL.WEIGHTS
        for part in "PIXEL_MEAN PIXEL_STD BACKBONE RESNETS FPN ANCHOR_GENERATOR RPN ROI_BOX_HEAD".split():
            assert cfg.MODEL[part] == baseline.MODEL[part], part
        # Their numberings of the classes differ, not the truth.
        for names in (cfg.DATASETS.TRAIN + baseline.DATASETS.TRAIN, cfg.DATASETS.TEST + baseline.DATASETS.TEST):
            one, other = map(MetadataCatalog.get, names)
            assert one.panoptic_json == other.panoptic_json and one.image_root == other.image_root
