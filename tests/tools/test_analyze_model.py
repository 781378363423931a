import re

import pytest

import analyze_model
from analyze_model import flops_table
from projects.flops import Counts
from tests.conftest import ROOT

SOLO = str(ROOT / "configs/aggmask/shapes_small_solo.yaml")
AGGMASK = str(ROOT / "configs/aggmask/shapes_small_aggmask.yaml")
SSAP = str(ROOT / "configs/ssap/shapes_small.yaml")
BLENDMASK = str(ROOT / "configs/blendmask/shapes_small.yaml")


def rows_of(output):
    """The cells of each line of the table, by its first."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in output.splitlines()]
    return {first: rest for first, *rest in lines}


def test_the_table_has_sums_and_overheads():
    columns = {"a": {"x": 3_000_000, "y": 2_000_000}, "a, base": {"x": 4_000_000}}
    rows = rows_of(flops_table(Counts(columns, {"a": "a, base"})))
    assert rows["x"] == ["0.003", "0.004"]
    assert rows["y"] == ["0.002"]
    assert rows["total"] == ["0.005", "0.004"]
    assert rows["over the base"] == ["+25.00%"]


def test_without_bases_there_are_no_overheads():
    assert "over the base" not in flops_table(Counts({"a": {"x": 1}}))


def test_aggmask_from_the_command_line(run_script):
    arguments = ["--config-file", AGGMASK, "--size", 64, 60, "--cells", "6,3,1", "--structure"]
    options = ["MODEL.FPN.OUT_CHANNELS", 32, "MODEL.AGGMASK.NUM_CONVS", 1]
    output = run_script("tools/analyze_model.py", *arguments, *options).stdout
    rows = rows_of(output)
    assert "an image of 64×60 pixels" in output
    assert {"backbone", "head", "maps", "context", "weights", "aggregation"} <= rows.keys()
    assert len(rows["total"]) == 4 and len(rows["over the base"]) == 2
    # Maps of 32 × 32 pixels at the first level, of 16 × 16 at the others.
    assert float(rows["aggregation"][0]) == pytest.approx((6 * 1024 + 4 * 256) * 936e-9, abs=6e-4)
    assert "| aggregation.weight_output " in output and "Aggregation(" in output


@pytest.mark.parametrize("config", [SSAP, BLENDMASK])
def test_other_methods_are_counted_as_they_come(config, capsys):
    analyze_model.main(["--config-file", config, "--size", "64", "70", "MODEL.WEIGHTS", ""])
    output = capsys.readouterr().out
    rows = rows_of(output)
    components = list(rows)[list(rows).index("backbone") : list(rows).index("total")]
    assert components[-1] == "outside of them" and float(rows["backbone"][0]) > 0
    total = sum(float(rows[name][0]) for name in components)
    assert float(rows["total"][0]) == pytest.approx(total, abs=1e-3 * len(components))
    assert "Not counted, with the number of calls: " in output and "| model " in output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config-file", "configs/absent.yaml"], "there is no config file configs/absent.yaml"),
        (["--config-file", SOLO, "--size", "0", "64"], "width of 1 pixel at least, not 0 and 64"),
        (["--config-file", SOLO, "--cells", "1,two"], "one for each level with commas between, not '1,two'"),
        (["--config-file", SOLO, "--size", "32", "32", "--cells", "100000"], "1344 in all: [100000] of them can't have"),
        (["--config-file", SSAP, "--cells", "5"], "--cells is for SOLO and SOLOv2, but the config's model is SSAP"),
        (["--config-file", SOLO, "MODEL.AGGMASK.MASK_GRID", "3"], "Did you mean MODEL.AGGMASK.MASK_GRIDS?"),
        (["--config-file", SOLO, "--weights", "absent.pth"], "absent.pth"),
        (["--config-file", SOLO, "MODEL.AGGMASK.MASK_GRIDS", "[8,8,8]"], "they must be the same"),
    ],
)
def test_what_cannot_be_counted_is_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        analyze_model.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
