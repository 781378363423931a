import re

import pytest

from projects.config import setup_cfg


def write(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "text, key, meant",
    [
        ("MODEL: {SPATIAL_EMBEDDINGS: {NUM_CLASES: 3}}", "MODEL.SPATIAL_EMBEDDINGS.NUM_CLASES", "NUM_CLASSES"),
        ("MODEL: {SPATIAL_EMBEDING: {NUM_CLASSES: 3}}", "MODEL.SPATIAL_EMBEDING", "MODEL.SPATIAL_EMBEDDINGS"),
        ("SOLVR: {MAX_ITER: 3}", "SOLVR", "SOLVER"),
    ],
)
def test_an_unknown_key_of_a_file_is_named_with_the_file_and_the_key_meant(tmp_path, text, key, meant):
    base = write(tmp_path / "base.yaml", text + "\nVERSION: 2")
    config = write(tmp_path / "config.yaml", "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 3}")
    for file in (base, config):
        with pytest.raises(KeyError) as error:
            setup_cfg(file)
        assert re.search(rf"key: {re.escape(key)} in {base}. Did you mean \S*{meant}\?", error.value.args[0])


def test_an_unknown_key_over_a_good_base_is_in_the_file_itself(tmp_path):
    write(tmp_path / "base.yaml", "SOLVER: {MAX_ITER: 3}")
    config = write(tmp_path / "config.yaml", "_BASE_: base.yaml\nSOLVER: {MAXITER: 3}")
    with pytest.raises(KeyError, match=rf"SOLVER.MAXITER in {config}. Did you mean SOLVER.MAX_ITER\?"):
        setup_cfg(config)


def test_an_unknown_key_of_the_command_line():
    with pytest.raises(KeyError, match=r"SOLVER.BASELR in the command line. Did you mean SOLVER.BASE_LR\?"):
        setup_cfg("", ["SOLVER.BASELR", 1])
    with pytest.raises(KeyError) as error:
        setup_cfg("", ["QUITE_ANOTHER_THING", 1])
    assert "Did you mean" not in error.value.args[0]


def test_a_value_of_the_wrong_type_is_named_with_its_source(tmp_path):
    config = write(tmp_path / "config.yaml", "SOLVER: {MAX_ITER: many}")
    with pytest.raises(ValueError, match=rf"{config}: Type mismatch .* many.* SOLVER.MAX_ITER"):
        setup_cfg(config)
    with pytest.raises(ValueError, match=r"the command line: Type mismatch .* many.* SOLVER.MAX_ITER"):
        setup_cfg("", ["SOLVER.MAX_ITER", "many"])


def test_other_errors_are_left_as_they_are(tmp_path):
    with pytest.raises(AssertionError, match="does not exist"):
        setup_cfg(str(tmp_path / "nothing.yaml"))
    with pytest.raises(AssertionError, match="odd length"):
        setup_cfg("", ["SOLVER.MAX_ITER"])
