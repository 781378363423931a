import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from spatial_embeddings import add_spatial_embeddings_config
from spatial_embeddings.erfnet import Downsampler, ERFNetDecoder, ERFNetEncoder, NonBottleneck1d


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_encoder_and_decoder_have_erfnets_size():
    """Convolutions with bias and two numbers a normalised channel, counted by hand from the paper's Table I."""

    def block(c):
        return 4 * (3 * c * c + c) + 4 * c

    def down(i, o):
        return 9 * i * (o - i) + (o - i) + 2 * o

    def up(i, o):
        return 9 * i * o + o + 2 * o

    assert parameters(ERFNetEncoder()) == down(3, 16) + down(16, 64) + 5 * block(64) + down(64, 128) + 8 * block(128)
    assert parameters(ERFNetDecoder(3)) == up(128, 64) + 2 * block(64) + up(64, 16) + 2 * block(16) + 4 * 16 * 3 + 3


def test_shapes_and_strides():
    encoder, decoder = ERFNetEncoder().eval(), ERFNetDecoder(5).eval()
    image = torch.randn(2, 3, 64, 96)
    features = encoder(image)
    assert encoder.output_shape() == {"encoder": ShapeSpec(channels=128, stride=8)} and encoder.size_divisibility == 8
    assert features["encoder"].shape == (2, 128, 8, 12)
    assert decoder(features["encoder"]).shape == (2, 5, 64, 96)


def test_downsampler_keeps_the_pooled_input_beside_the_convolution():
    layer = Downsampler(3, 16).eval()
    nn.init.zeros_(layer.conv.weight), nn.init.zeros_(layer.conv.bias)
    image = torch.rand(1, 3, 8, 8)
    out = layer(image)
    assert not out[:, :13].any()
    torch.testing.assert_close(out[:, 13:], nn.functional.max_pool2d(image, 2) / (1 + 1e-3) ** 0.5)


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_a_block_sees_one_and_then_dilation_pixels_to_each_side(dilation):
    block = NonBottleneck1d(4, dilation).eval()
    for parameter in block.parameters():
        parameter.data.abs_()  # so that no ReLU hides a pixel
    image = torch.rand(1, 4, 21, 21, requires_grad=True)
    block(image)[0, :, 10, 10].sum().backward()
    rows, columns = (image.grad[0].abs().sum(0) > 0).nonzero().T
    reach = dilation + 1
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10 - reach, 10 + reach, 10 - reach, 10 + reach)


def test_a_block_without_weights_is_the_identity_of_positive_inputs():
    block = NonBottleneck1d(4).eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    image = torch.rand(1, 4, 6, 6)
    torch.testing.assert_close(block(image), image)


def test_the_config_builds_it_with_its_norm_and_dropout():
    cfg = get_cfg()
    add_spatial_embeddings_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_erfnet_backbone"
    cfg.MODEL.ERFNET.NORM, cfg.MODEL.ERFNET.DROPOUT = "FrozenBN", [0.0, 0.25]
    encoder = build_backbone(cfg)
    assert [m.p for m in encoder.modules() if isinstance(m, nn.Dropout2d)] == [0.25] * 8
    assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    assert all(m.eps == 1e-3 for m in encoder.modules() if hasattr(m, "running_mean"))


def test_without_a_norm_only_the_convolutions_are_left():
    with_norm, without = NonBottleneck1d(8), NonBottleneck1d(8, norm="")
    assert parameters(with_norm) - parameters(without) == 2 * 2 * 8
    without.load_state_dict(with_norm.state_dict(), strict=False)
    x = torch.randn(2, 8, 6, 6)
    # A norm that has seen nothing yet divides by sqrt(1 + 1e-3), twice.
    torch.testing.assert_close(without(x), with_norm.eval()(x), rtol=5e-3, atol=5e-3)
