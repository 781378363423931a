"""The authors' checkpoints: their network, stated here by its weights' names, against ours with converted weights."""

import pytest
import torch
import torch.nn.functional as F

from detectron2.modeling import build_model

from projects.checkpoint import Checkpointer
from projects.config import configs_dir, setup_cfg
from projects.model_zoo import CATALOGUE, convert, convert_if_published, load_published

ENCODER_DILATIONS = [None, 1, 1, 1, 1, 1, None, 2, 4, 8, 16, 2, 4, 8, 16]  # None: a downsampler
ENCODER_CHANNELS = [64] * 6 + [128] * 9
DECODER_CHANNELS = [64, 64, 64, 16, 16, 16]  # the first of each three is an upsampler


def authors_weights(decoder_channels, seed=0, prefix="module."):
    """Random weights and BN statistics under the authors' names; decoder_channels as in (3, 1)."""
    g = torch.Generator().manual_seed(seed)
    weights = {}

    def convolution(name, out_channels, in_channels, *kernel, transposed=False):
        shape = (in_channels, out_channels) if transposed else (out_channels, in_channels)
        scale = (0.5 / (in_channels * kernel[0] * kernel[1])) ** 0.5
        weights[f"{name}.weight"] = scale * torch.randn(*shape, *kernel, generator=g)
        weights[f"{name}.bias"] = 0.1 * torch.randn(out_channels, generator=g)

    def norm(name, channels):
        weights[f"{name}.weight"] = 0.5 + torch.rand(channels, generator=g)
        weights[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=g)
        weights[f"{name}.running_mean"] = 0.3 * torch.randn(channels, generator=g)
        weights[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=g)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(1000)

    def downsampler(name, in_channels, out_channels):
        convolution(f"{name}.conv", out_channels - in_channels, in_channels, 3, 3)
        norm(f"{name}.bn", out_channels)

    def upsampler(name, in_channels, out_channels):
        convolution(f"{name}.conv", out_channels, in_channels, 3, 3, transposed=True)
        norm(f"{name}.bn", out_channels)

    def block(name, channels):
        for k in (1, 2):
            convolution(f"{name}.conv3x1_{k}", channels, channels, 3, 1)
            convolution(f"{name}.conv1x3_{k}", channels, channels, 1, 3)
            norm(f"{name}.bn{k}", channels)

    downsampler("encoder.initial_block", 3, 16)
    for n, (dilation, channels) in enumerate(zip(ENCODER_DILATIONS, ENCODER_CHANNELS)):
        name = f"encoder.layers.{n}"
        downsampler(name, 16 if n == 0 else 64, channels) if dilation is None else block(name, channels)
    convolution("encoder.output_conv", sum(decoder_channels), 128, 1, 1)
    for d, out_channels in enumerate(decoder_channels):
        for n, channels in enumerate(DECODER_CHANNELS):
            name = f"decoders.{d}.layers.{n}"
            upsampler(name, 128 if n == 0 else 64, channels) if n % 3 == 0 else block(name, channels)
        convolution(f"decoders.{d}.output_conv", out_channels, 16, 2, 2, transposed=True)
    return {prefix + name: value for name, value in weights.items()}


def authors_forward(weights, image):
    """image [N, 3, H, W] from 0 to 1 to the decoders' outputs, one after the other in channels."""
    w = {name.removeprefix("module."): value for name, value in weights.items()}

    def convolution(x, name, **options):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def transposed(x, name, **options):
        return F.conv_transpose2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, **options)

    def norm(x, name):
        statistics = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, *statistics, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-3)

    def downsampler(x, name):
        both = torch.cat([convolution(x, f"{name}.conv", stride=2, padding=1), F.max_pool2d(x, 2)], 1)
        return F.relu(norm(both, f"{name}.bn"))

    def block(x, name, dilation):
        y = x
        for k, d in ((1, 1), (2, dilation)):
            y = F.relu(convolution(y, f"{name}.conv3x1_{k}", padding=(d, 0), dilation=(d, 1)))
            y = norm(convolution(y, f"{name}.conv1x3_{k}", padding=(0, d), dilation=(1, d)), f"{name}.bn{k}")
            y = F.relu(y) if k == 1 else F.relu(x + y)
        return y

    x = downsampler(image, "encoder.initial_block")
    for n, dilation in enumerate(ENCODER_DILATIONS):
        name = f"encoder.layers.{n}"
        x = downsampler(x, name) if dilation is None else block(x, name, dilation)
    outputs = []
    for d in range(2):
        y = x
        for n in range(6):
            name = f"decoders.{d}.layers.{n}"
            if n % 3 == 0:
                y = F.relu(norm(transposed(y, f"{name}.conv", padding=1, output_padding=1), f"{name}.bn"))
            else:
                y = block(y, name, 1)
        outputs.append(transposed(y, f"decoders.{d}.output_conv"))
    return torch.cat(outputs, 1)


def our_model(bandwidth="scalar", num_classes=1):
    opts = ["MODEL.SPATIAL_EMBEDDINGS.BANDWIDTH", bandwidth, "MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES", num_classes]
    return build_model(setup_cfg(car_config(), ["MODEL.DEVICE", "cpu", *opts])).eval()


def car_config():
    return str(configs_dir() / CATALOGUE["spatial_embeddings/cityscapes_car"].config)


def save(path, weights, **more):
    torch.save({"epoch": 3, "best_iou": 0.5, "model_state_dict": weights, "logger_data": {"iou": [0.5]}, **more}, path)
    return str(path)


@pytest.mark.parametrize(
    "bandwidth, channels, num_classes", [("scalar", (3, 1), 1), ("elliptical", (4, 1), 1), ("scalar", (3, 8), 8)]
)
def test_our_network_computes_what_the_authors_do(tmp_path, bandwidth, channels, num_classes):
    weights = authors_weights(channels)
    model = our_model(bandwidth, num_classes)
    load_published(model, save(tmp_path / "authors.pth", weights))
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = authors_forward(weights, image)
        offsets, bandwidth, seeds = model.predict(image)
    assert expected.std() > 0.1  # nothing has died out on the way
    assert torch.allclose(offsets, expected[:, :2].tanh(), atol=1e-5)
    assert torch.allclose(bandwidth, expected[:, 2 : channels[0]], atol=1e-5)
    assert torch.allclose(seeds, expected[:, channels[0] :], atol=1e-5)


def test_images_reach_the_network_as_the_authors_do():
    image = torch.arange(3 * 16 * 16, dtype=torch.uint8).reshape(3, 16, 16)
    model = our_model()
    assert model.input_format == "RGB"
    assert torch.equal(model.preprocess([{"image": image}]).tensor[0], image / 255)


@pytest.mark.parametrize("old_format", [False, True])
def test_names_are_found_with_and_without_dataparallels_prefix(tmp_path, old_format):
    weights = authors_weights((3, 1), prefix="")
    torch.save(weights, tmp_path / "bare.pth", _use_new_zipfile_serialization=not old_format)
    model = our_model()
    load_published(model, str(tmp_path / "bare.pth"))
    assert torch.equal(model.seed_head.decoder[6].bias, weights["decoders.1.output_conv.bias"])


def test_conversion_keeps_every_weight_but_the_encoders_classifier():
    weights = authors_weights((3, 1))
    converted = convert({"model_state_dict": weights}, "spatial_embeddings")
    assert converted.keys() == our_model().state_dict().keys()
    assert len(converted) == len(weights) - 2
    block = "module.decoders.1.layers.4.conv1x3_2.weight"
    assert converted["seed_head.decoder.4.second.2.weight"] is weights[block]


def test_a_checkpointers_content_is_converted_if_it_is_the_authors():
    weights = authors_weights((3, 1))
    expected = convert(weights, "spatial_embeddings")
    file = {"epoch": 3, "model_state_dict": weights}
    for loaded in (file, {"model": file}, {"model": weights}):
        converted = convert_if_published(loaded)
        assert converted.keys() == {"model"} and converted["model"].keys() == expected.keys()
    ours = {"model": our_model().state_dict(), "iteration": 7}
    assert convert_if_published(ours) is ours


def test_missing_and_unexpected_weights_are_named_and_nothing_is_loaded(tmp_path):
    weights = authors_weights((3, 1))
    weights.pop("module.encoder.layers.3.bn2.running_var")
    weights["module.decoders.0.layers.6.conv.weight"] = torch.zeros(1)
    model = our_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_published(model, save(tmp_path / "changed.pth", weights))
    assert "1 missing: backbone.layers.4.second.3.running_var;" in str(error.value)
    assert "1 unexpected: embedding_head.decoder.6.conv.weight." in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_of_another_variant_are_named_with_their_shapes(tmp_path):
    path = save(tmp_path / "elliptical.pth", authors_weights((4, 1)))
    shapes = r"embedding_head.decoder.6.weight \[16, 4, 2, 2\] where the model's is \[16, 3, 2, 2\]"
    with pytest.raises(ValueError, match=f"2 of another shape: {shapes}.*Build the model with the config"):
        load_published(our_model(), path)


def test_a_third_decoder_is_no_network_of_theirs():
    weights = {**authors_weights((3, 1), prefix=""), "decoders.2.output_conv.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="no weights called decoders.2.output_conv.weight"):
        convert(weights, "spatial_embeddings")


def test_the_authors_link_is_to_be_followed_by_hand():
    with pytest.raises(ValueError, match="Download it from https://drive.google.com/.*with a browser"):
        load_published(our_model(), "spatial_embeddings/cityscapes_car")


def test_model_weights_may_name_the_authors_file(tmp_path):
    weights = authors_weights((3, 1))
    path = save(tmp_path / "authors.pth", weights)
    expected = our_model()
    load_published(expected, path)
    model = our_model()
    Checkpointer(model, complete=True).load(path)
    assert all(value.equal(expected.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="authors.pth lacks .* in the file, .* in the model"):
        Checkpointer(our_model("elliptical"), complete=True).load(path)
