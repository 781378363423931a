import functools
import json
import math
import statistics
import time

import pytest
import torch

import benchmark
from benchmarks.case import Case, all_cases
from benchmarks.measure import peak_memory

ours_value = 3.0


def sleeping(device, small, ours_ms=2, theirs_ms=10, difference=0.0, time_bound=None, calls=None):
    """Both sides sleep, so that their ratio is known; ``calls`` takes down who was called."""

    def side(name, ms):
        def compute():
            time.sleep(ms / 1000)
            if calls is not None:
                calls.append(name)
            return ours_value

        return compute

    return Case(
        ours=side("ours", ours_ms),
        theirs=side("theirs", theirs_ms),
        differences=lambda ours, theirs: {"value": ours - theirs + difference},
        tolerances={"value": 0.5},
        time_bound=time_bound,
    )


def filling(device, small, mib=(40, 160)):
    """Each side needs so many MiB at its peak, twice in a row, after a setup that frees more."""
    torch.ones(400 * 2**18, device=device)

    def side(size):
        def compute():
            torch.ones(size * 2**18, device=device)
            return torch.ones(size * 2**18, device=device)

        return compute

    return Case(side(mib[0]), side(mib[1]), lambda ours, theirs: {}, {}, memory_bound=0.3)


@pytest.fixture
def run_main(monkeypatch, tmp_path):
    """run_main(cases, *arguments) -> exit status, the JSON file's content."""

    def run(cases, *arguments):
        monkeypatch.setattr(benchmark, "all_cases", lambda: cases)
        path = tmp_path / "results.json"
        status = benchmark.main([*arguments, "--json", str(path)])
        return status, json.loads(path.read_text())

    return run


def test_the_ratio_is_the_median_of_the_repeats_own(run_main):
    status, report = run_main({"a": sleeping}, "--repeats", "5")
    values = report["cases"]["a"]["time_ms"]
    assert status == 0
    assert len(values["ours"]) == len(values["theirs"]) == 5
    assert values["ratio"] == statistics.median(x / y for x, y in zip(values["ours"], values["theirs"]))
    assert min(values["ours"]) >= 2 and min(values["theirs"]) >= 10
    assert 0.1 < values["ratio"] < 0.7


def test_sides_take_turns_after_one_call_each(run_main):
    calls = []
    run_main({"a": functools.partial(sleeping, calls=calls)}, "--repeats", "3")
    assert calls == ["ours", "theirs"] * 4


@pytest.mark.parametrize("difference", [0.6, math.inf, math.nan])
def test_sides_that_disagree_fail_and_are_not_timed(run_main, capsys, difference):
    cases = {"bad": functools.partial(sleeping, difference=difference), "good": sleeping}
    status, report = run_main(cases, "--repeats", "1")
    assert status == 1
    assert not report["cases"]["bad"]["agrees"] and "time_ms" not in report["cases"]["bad"]
    assert report["cases"]["good"]["agrees"] and "time_ms" in report["cases"]["good"]
    assert "bad: DISAGREE" in capsys.readouterr().out


def test_a_difference_within_its_tolerance_agrees(run_main):
    status, report = run_main({"a": functools.partial(sleeping, difference=0.4)}, "--repeats", "1")
    assert status == 0 and report["cases"]["a"]["differences"] == {"value": pytest.approx(0.4)}


@pytest.mark.parametrize("bound, status, word", [(0.9, 0, "yes"), (0.05, 1, "NO")])
def test_a_missed_bound_fails(run_main, capsys, bound, status, word):
    cases = {"a": functools.partial(sleeping, time_bound=bound)}
    got, report = run_main(cases, "--repeats", "3")
    assert got == status
    assert report["cases"]["a"]["time_ms"]["held"] is (status == 0)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a  ")]
    assert f"<= {bound:.4f}" in row and row.endswith(word)


def test_the_report_names_machine_and_settings(run_main):
    _, report = run_main({"a": sleeping}, "--repeats", "1")
    machine = report["machine"]
    assert machine["cpu"] and machine["threads"] == torch.get_num_threads() and machine["torch"] == torch.__version__
    assert machine["gpu"] is None and "commit" in machine
    assert report["device"] == "cpu" and report["repeats"] == 1


def test_peak_memory_is_that_of_the_computation_alone():
    peaks = peak_memory(filling, "cpu")
    assert peaks["ours"] == pytest.approx(40, abs=3)
    assert peaks["theirs"] == pytest.approx(160, abs=3)


def test_a_bound_of_memory_is_measured_and_held(run_main, monkeypatch):
    monkeypatch.setattr(benchmark, "peak_memory", lambda setup, device: {"ours": 10.0, "theirs": 40.0})
    status, report = run_main({"a": functools.partial(filling, mib=(1, 1))}, "--repeats", "1")
    assert status == 0
    expected = {"ours": 10.0, "theirs": 40.0, "ratio": 0.25, "bound": 0.3, "held": True}
    assert report["cases"]["a"]["memory_mib"] == expected


def test_cases_are_chosen_by_pattern(run_main):
    cases = {"x_one": sleeping, "x_two": sleeping, "y": sleeping}
    _, report = run_main(cases, "x_*", "--repeats", "1")
    assert list(report["cases"]) == ["x_one", "x_two"]


def test_an_unknown_case_is_an_error_that_lists_them(run_main, capsys):
    with pytest.raises(SystemExit) as error:
        run_main({"one": sleeping}, "two")
    assert error.value.code == 2
    assert "No case is called 'two'. The cases are: one." in capsys.readouterr().err


@pytest.mark.parametrize("name", all_cases())
def test_every_case_agrees_at_a_small_size(name):
    case = all_cases()[name]("cpu", True)
    differences = case.differences(case.ours(), case.theirs())
    assert differences.keys() <= case.tolerances.keys()
    assert all(value <= case.tolerances[key] for key, value in differences.items()), differences


def test_the_script_lists_its_cases(run_script):
    assert run_script("tools/benchmark.py", "--list").stdout.split() == list(all_cases())
