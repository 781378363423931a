import pytest
import torch

import convert_checkpoint

# Two weights of the authors' network, and our names of them.
PUBLISHED = {
    "module.encoder.initial_block.conv.weight": torch.rand(13, 3, 3, 3),
    "module.decoders.0.output_conv.weight": torch.rand(16, 3, 2, 2),
}
OURS = ["backbone.layers.0.conv.weight", "embedding_head.decoder.6.weight"]


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "published.pth"
    torch.save({"epoch": 1, "model_state_dict": PUBLISHED}, path)
    return str(path)


def test_the_file_has_detectron2s_format_and_our_names(run_script, published, tmp_path):
    output = tmp_path / "converted.pth"
    result = run_script("tools/convert_checkpoint.py", published, output, "--method", "spatial_embeddings")
    assert f"2 weights are in {output}" in result.stdout
    content = torch.load(output, weights_only=True)
    assert list(content) == ["model"] and list(content["model"]) == OURS
    assert all(torch.equal(x, y) for x, y in zip(content["model"].values(), PUBLISHED.values()))


@pytest.mark.parametrize("output", ["published.pth", "folder/../published.pth", "link.pth"])
def test_the_input_is_never_overwritten(published, tmp_path, capsys, output):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.pth").symlink_to(published)
    with pytest.raises(SystemExit):
        convert_checkpoint.main([published, str(tmp_path / output), "--method", "spatial_embeddings"])
    assert "is the input, which is not overwritten" in capsys.readouterr().err
    assert "epoch" in torch.load(published, weights_only=True)


@pytest.mark.parametrize(
    "name, method, message",
    [
        ("nothing.pth", "spatial_embeddings", "There is no file"),
        ("published.pth", "other", "No published checkpoints of 'other' are known"),
    ],
)
def test_mistakes_are_explained_and_nothing_is_written(published, tmp_path, capsys, name, method, message):
    with pytest.raises(SystemExit):
        convert_checkpoint.main([str(tmp_path / name), str(tmp_path / "out.pth"), "--method", method])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()
