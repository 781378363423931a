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


def test_both_sides_of_a_comparison_have_the_same_data_backbone_and_schedule():
    from projects.config import configs_dir, setup_cfg

    rows = claims.CLAIMS["blendmask_mask_rcnn"].rows.values()
    one, other = (setup_cfg(str(configs_dir() / row.config), row.opts) for row in rows)
    assert one.MODEL.META_ARCHITECTURE != other.MODEL.META_ARCHITECTURE
    assert one.SOLVER == other.SOLVER and one.DATASETS == other.DATASETS and one.MODEL.WEIGHTS == other.MODEL.WEIGHTS
    assert one.MODEL.PIXEL_MEAN == other.MODEL.PIXEL_MEAN and one.MODEL.PIXEL_STD == other.MODEL.PIXEL_STD
    assert one.INPUT == other.INPUT
    assert one.MODEL.RESNETS == other.MODEL.RESNETS and one.MODEL.FPN == other.MODEL.FPN
