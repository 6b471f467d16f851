"""Networks: sizes of the literature, features, seeds, input adapter, weight files."""

import copy
import json
import pickle
import weakref

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError, DataError, KdrunError
from kdrun.data.views.view import View
from kdrun.models.flops import flops_of, flops_of_record
from kdrun.models.network import build_network, load_network

PAPER_COUNTS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
}


def network(name="resnet8", num_classes=10, in_chans=3, seed=0, role="", size=None, **args):
    mean, std = (0.5, 0.4, 0.3)[:in_chans], (0.2, 0.25, 0.3)[:in_chans]
    model = ModelConfig(name=name, args=args, size=size)
    return build_network(
        model, num_classes=num_classes, in_chans=in_chans, mean=mean, std=std, seed=seed, role=role
    ).eval()


def batch(n=4, channels=3, side=32, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, channels, side, side), dtype=np.uint8))


def settled(net, channels=3):
    """Batch statistics away from their initial values, so that buffers matter."""
    net.train()
    with torch.no_grad():
        net(batch(16, channels, seed=1))
    return net.eval()


@pytest.mark.parametrize("name", PAPER_COUNTS)
def test_parameter_count_is_the_literature_s(name):
    assert network(name, num_classes=100).num_params == PAPER_COUNTS[name]


def test_operations_by_hand(caplog):
    """ResNet-20, 100 classes, 32 px: the first convolution; 6, 5 and 5 of 3x3 at 16, 32 and 64 channels; what widens."""
    convs = 9 * (3 * 16 * 32**2 + 6 * 16**2 * 32**2 + 5 * 32**2 * 16**2 + 5 * 64**2 * 8**2)
    wider = (9 + 1) * (16 * 32 * 16**2 + 32 * 64 * 8**2)  # with the shortcuts, 1x1
    assert flops_of(network("resnet20", num_classes=100), (32, 32)) == 2 * (convs + wider + 64 * 100)
    record = {"headline": "student_2", "dataset": "cifar100", "split": {"labeled_per_class": [5] * 100}}
    models = [{"name": "resnet8", "args": {}}, {"name": "resnet20", "args": {}}]
    record |= {"nets": {"student_2": {"model": "resnet20"}}, "config": {"students": models}}
    assert flops_of_record(record) == 2 * (convs + wider + 64 * 100)
    for dataset in ("npz", "eurosat", "of a plug-in that is gone"):
        assert flops_of_record({**record, "dataset": dataset}) is None
    assert "dataset=npz: its facts give no channels of images" in caplog.text
    assert "dataset=eurosat: its facts give no size of images" in caplog.text
    before = torch.get_rng_state()
    assert flops_of(network("resnet8", width=4), (16, 16)) is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_parameter_count_with_option_a_shortcuts():
    assert network("resnet56", shortcut="A").num_params == 853_018


def test_option_a_shortcut_has_no_parameters_and_pads_with_zeros():
    net = network(shortcut="A")
    shortcut = net.net.layer2[0].shortcut
    assert not list(shortcut.parameters())
    x = torch.randn(2, 16, 8, 8)
    out = shortcut(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out.shape == (2, 32, 4, 4)
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


NETWORKS = [
    ("resnet8", 3, {}),
    ("resnet14", 1, {"shortcut": "A"}),
    ("resnet10t", 1, {}),
    ("mobilenetv3_small_050", 3, {}),
]


@pytest.mark.parametrize(("name", "channels", "args"), NETWORKS)
def test_features_leave_the_logits_unchanged(name, channels, args):
    net = settled(network(name, in_chans=channels, **args), channels)
    x = batch(channels=channels)
    with torch.no_grad():
        plain = net(x)
        for features in (tuple(net.dims), ("prelogits",), ("stage2",), ("stage3", "stage1")):
            out = net(x, features)
            assert torch.equal(out.logits, plain.logits)
            assert set(out.features) == set(features)
    assert plain.features == {}
    assert plain.logits.shape == (4, 10)
    assert plain.logits.dtype == torch.float32


@pytest.mark.parametrize(("name", "channels", "args"), NETWORKS)
def test_features_have_the_dims_that_are_announced(name, channels, args):
    net = network(name, in_chans=channels, **args)
    out = net(batch(channels=channels), tuple(net.dims))
    stages = [feature for feature in net.dims if feature.startswith("stage")]
    assert list(net.dims)[: len(stages) + 1] == [*(f"stage{i + 1}" for i in range(len(stages))), "prelogits"]
    assert len(stages) >= 3
    for stage in net.dims.keys() - {"prelogits"}:
        assert out.features[stage].ndim == 4
        assert out.features[stage].shape[:2] == (4, net.dims[stage])
    assert out.features["prelogits"].shape == (4, net.dims["prelogits"])


@pytest.mark.parametrize(("name", "channels", "args"), NETWORKS)
def test_prelogits_are_the_input_of_the_classifier(name, channels, args):
    net = settled(network(name, in_chans=channels, **args), channels)
    seen = []
    classifier = net.net.get_classifier()
    handle = classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        out = net(batch(channels=channels), ("prelogits",))
        handle.remove()
        assert torch.equal(out.features["prelogits"], seen[0])
        assert torch.equal(F.linear(seen[0], classifier.weight, classifier.bias), out.logits)


def test_stages_of_a_cifar_network():
    out = network()(batch(), ("stage1", "stage2", "stage3", "prelogits"))
    shapes = {name: tuple(value.shape[1:]) for name, value in out.features.items()}
    assert shapes == {"stage1": (16, 32, 32), "stage2": (32, 16, 16), "stage3": (64, 8, 8), "prelogits": (64,)}
    assert torch.allclose(out.features["stage3"].mean((2, 3)), out.features["prelogits"], atol=1e-6)


def test_gradients_reach_a_feature_and_what_is_below_it():
    net = network()
    net(batch(), ("prelogits",)).features["prelogits"].sum().backward()
    assert net.net.conv1.weight.grad.abs().sum() > 0
    assert net.net.fc.weight.grad is None


def test_prelogits_are_not_kept_beyond_their_call():
    net = network()
    out = net(batch(), ("prelogits",))
    seen = weakref.ref(out.features["prelogits"])
    del out
    assert seen() is None
    with torch.no_grad():
        assert net(batch()).features == {}
    assert net._seen is None


def test_a_copy_keeps_its_own_prelogits():
    net = network()
    twin = copy.deepcopy(net)
    assert set(twin(batch(), ("prelogits",)).features) == {"prelogits"}


def test_unknown_feature_is_refused():
    with pytest.raises(ConfigError, match=r"stage4.*stage1"):
        network()(batch(), ("stage4",))


def test_unknown_network_and_arguments_are_refused():
    with pytest.raises(ConfigError, match="resnet9"):
        network("resnet9")
    with pytest.raises(ConfigError, match="depth_of"):
        network(depth_of=3)
    with pytest.raises(ConfigError, match="shortcut"):
        network(shortcut="C")


def same_weights(first, second):
    a, b = first.net.state_dict(), second.net.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_initialization_depends_on_seed_and_role_only():
    first = network(seed=1)
    torch.manual_seed(99)
    network("resnet14")
    assert same_weights(first, network(seed=1))
    assert not same_weights(first, network(seed=2))
    assert not same_weights(first, network(seed=1, role="inner"))


def test_initialization_depends_on_the_network_s_name():
    first, second = (network(name) for name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224"))
    assert not torch.equal(first.net.patch_embed.proj.weight, second.net.patch_embed.proj.weight)


def test_building_and_loading_leave_the_global_generator_alone(tmp_path):
    network().save(tmp_path / "a.safetensors")
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    network()
    load_network(tmp_path / "a.safetensors")
    assert torch.equal(torch.rand(4), expected)


def test_adapter_normalizes_each_channel():
    pixels = batch().numpy().astype(np.float64)
    mean, std = (np.array(v)[:, None, None] for v in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    np.testing.assert_allclose(network().adapt(batch()).numpy(), (pixels / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_adapter_takes_bytes_fractions_and_views():
    net = settled(network())
    with torch.no_grad():
        expected = net(batch()).logits
        assert torch.equal(net(batch().float() / 255).logits, expected)
        assert torch.allclose(net(batch().double() / 255).logits, expected, atol=1e-5)
        assert torch.equal(net(View(batch(), torch.arange(4))).logits, expected)
        channels_last = batch().to(memory_format=torch.channels_last)
        assert torch.allclose(net(channels_last).logits, expected, atol=1e-5)


@pytest.mark.parametrize(("side", "size"), [(8, 32), (32, 20), (16, 16)])
def test_adapter_resizes_as_pillow_does(side, size):
    net = network(size=size)
    pixels = batch(2, side=side).float() / 255
    got = net.adapt(pixels) * net.std + net.mean
    for image, resized in zip(pixels, got, strict=True):
        for channel, found in zip(image.numpy(), resized.numpy(), strict=True):
            expected = np.asarray(Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR))
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert net(pixels).logits.shape == (2, 10)


@pytest.mark.parametrize(("name", "channels", "args"), NETWORKS)
def test_weight_file_round_trip_is_exact(tmp_path, name, channels, args):
    net, path = settled(network(name, in_chans=channels, size=32, **args), channels), tmp_path / "net.safetensors"
    net.save(path)
    again = load_network(path)
    assert same_weights(net, again)
    assert again.spec == net.spec
    assert again.dims == net.dims
    assert not again.training
    x = batch(channels=channels, side=24)
    with torch.no_grad():
        assert torch.equal(again(x).logits, net(x).logits)


@pytest.mark.parametrize(("name", "channels", "args"), NETWORKS)
def test_weight_file_loads_into_plain_timm(tmp_path, name, channels, args):
    net, path = settled(network(name, in_chans=channels, **args), channels), tmp_path / "net.safetensors"
    net.save(path)
    plain = timm.create_model(name, num_classes=10, in_chans=channels, checkpoint_path=str(path), **args).eval()
    assert plain.state_dict().keys() == load_file(path).keys()
    with torch.no_grad():
        assert torch.equal(plain(net.adapt(batch(channels=channels))), net(batch(channels=channels)).logits)


def test_channels_last_weights_are_saved_as_they_are(tmp_path):
    net = network().to(memory_format=torch.channels_last)
    net.save(tmp_path / "a.safetensors")
    assert same_weights(net, load_network(tmp_path / "a.safetensors"))


def write_truncated(path):
    network().save(path)
    path.write_bytes(path.read_bytes()[:5000])


def write_without_header(path):
    save_file({"weight": torch.zeros(2)}, path)


def write_from_a_later_version(path):
    network().save(path)
    spec = {
        "model": {"name": "resnet8", "args": {}, "pretrained": False, "size": None, "lr_scale": 1.0, "novelty": 1},
        "num_classes": 10, "in_chans": 3, "mean": [0.5] * 3, "std": [0.2] * 3,
    }  # fmt: skip
    save_file(load_file(path), path, metadata={"kdrun": json.dumps(spec)})


FOREIGN = {
    "pickle": lambda path: path.write_bytes(pickle.dumps({"weight": [1.0]})),
    "torch": lambda path: torch.save({"weight": torch.zeros(2)}, path),
    "truncated": write_truncated,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights"),
    "other safetensors": write_without_header,
    "later version": write_from_a_later_version,
    "missing": lambda path: None,
}


@pytest.mark.parametrize("case", FOREIGN)
def test_file_that_is_not_kdrun_s_is_refused(tmp_path, case):
    FOREIGN[case](tmp_path / "net.safetensors")
    with pytest.raises(DataError, match=r"net\.safetensors"):
        load_network(tmp_path / "net.safetensors")


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    network("resnet14").save(path)
    state = load_file(path)
    network("resnet8").save(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file(state, path, metadata=header)
    with pytest.raises(KdrunError, match="does not fit resnet8"):
        load_network(path)


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    network(seed=1).save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        network(seed=2).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize(
    ("overrides", "mean", "std"),
    [
        (["views=standard"], None, None),
        (["views=official"], [0.5], [0.5]),
        (["views=usb"], [(0.485 + 0.456 + 0.406) / 3], [(0.229 + 0.224 + 0.225) / 3]),
        (["views=official", "dataset.mean=[0.3]"], [0.3], [0.5]),
        (["views=official", "student.mean=[0.1]", "student.std=[0.2]"], [0.1], [0.2]),
    ],
)
def test_what_pixels_are_normalised_with(overrides, mean, std):
    from kdrun.config.compose import Composer
    from kdrun.training.assembly import Assembly

    with Composer() as composer:
        config = composer.typed(["method=supervised", "student=resnet8", *overrides])
    assembly = Assembly.of(config, torch.device("cpu"))
    arrays = assembly.arrays
    net = assembly.factory.network(config.students[0], 0)
    assert net.mean.flatten().tolist() == pytest.approx(list(mean or arrays.mean))
    assert net.std.flatten().tolist() == pytest.approx(list(std or arrays.std))
