"""CIFAR networks of the distillation literature: sizes, features, timm's interface, FixMatch's wide ResNet."""

from copy import deepcopy
from functools import cache

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from kdrun.config.compose import Composer
from kdrun.config.model import ModelConfig
from kdrun.config.networks import own_networks
from kdrun.core.paths import CONF_DIR
from kdrun.models.cifar.base import CifarNetwork
from kdrun.models.network import build_network
from tests.each import each

# Parameters at 100 classes and 3 channels, channels of the stages, their sides at 32 px.
NETWORKS = {
    "resnet8": (83_892, (16, 32, 64), (32, 16, 8)),
    "resnet8x4": (1_233_540, (64, 128, 256), (32, 16, 8)),
    "resnet32x4": (7_433_860, (64, 128, 256), (32, 16, 8)),
    "resnet50_cifar": (23_705_252, (256, 512, 1024, 2048), (32, 16, 8, 4)),
    "wrn_16_1": (180_916, (16, 32, 64), (32, 16, 8)),
    "wrn_16_2": (703_284, (32, 64, 128), (32, 16, 8)),
    "wrn_40_1": (569_780, (16, 32, 64), (32, 16, 8)),
    "wrn_40_2": (2_255_156, (32, 64, 128), (32, 16, 8)),
    "wrn_28_2": (1_479_220, (32, 64, 128), (32, 16, 8)),
    "wrn_28_8": (23_401_012, (128, 256, 512), (32, 16, 8)),
    "wrn_37_2": (5_952_564, (32, 64, 128, 256), (32, 16, 8, 4)),
    "vgg8_cifar": (3_965_028, (64, 128, 256, 512, 512), (32, 16, 8, 4, 4)),
    "vgg11_cifar": (9_277_284, (64, 128, 256, 512, 512), (32, 16, 8, 4, 4)),
    "vgg13_cifar": (9_462_180, (64, 128, 256, 512, 512), (32, 16, 8, 4, 4)),
    "vgg16_cifar": (14_774_436, (64, 128, 256, 512, 512), (32, 16, 8, 4, 4)),
    "vgg19_cifar": (20_086_692, (64, 128, 256, 512, 512), (32, 16, 8, 4, 4)),
    "mobilenetv2_half": (812_836, (12, 16, 48, 160), (16, 8, 4, 2)),
    "shufflenetv1": (949_258, (240, 480, 960), (16, 8, 4)),
    "shufflenetv2": (1_355_528, (116, 232, 464), (16, 8, 4)),
}
SMALL = ("resnet8x4", "wrn_16_1", "wrn_28_2", "vgg8_cifar", "mobilenetv2_half", "shufflenetv1", "shufflenetv2")
STEMS = {"resnet8x4": 32, "resnet32x4": 32, "resnet50_cifar": 64, "shufflenetv1": 24, "shufflenetv2": 24}
PRELOGITS = {"mobilenetv2_half": 1280, "shufflenetv2": 1024}
FIXMATCH = ("wrn_28_2", "wrn_28_8", "wrn_37_2")
each_network = each("name", NETWORKS)


def batch(n=2, channels=3, side=32):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0))


@cache
def built(name):
    """One network for all tests that leave it as it is; its running statistics are those of a batch."""
    model = ModelConfig(name=name)
    net = build_network(model, num_classes=100, in_chans=3, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(batch(8, side=8))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net.eval()


def bare(name, num_classes=10, **args):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=num_classes, **args).eval()


@each_network
def test_parameter_count_is_the_literature_s(name):
    assert built(name).num_params == NETWORKS[name][0]


def test_parameter_count_of_fixmatch_at_10_classes():
    """16 fewer than USB's 1,467,626 and 5,929,450: its first convolution has a bias."""
    assert sum(p.numel() for p in bare("wrn_28_2").parameters()) == 1_467_610
    assert sum(p.numel() for p in bare("wrn_37_2").parameters()) == 5_929_434
    assert sum(isinstance(module, nn.Conv2d) for module in bare("wrn_37_2").modules()) == 37


@each_network
def test_all_share_one_interface(name):
    assert isinstance(built(name).net, CifarNetwork)
    shared = (
        "get_classifier",
        "reset_classifier",
        "forward_intermediates",
        "forward_features",
        "forward_head",
        "forward",
    )
    assert all(getattr(type(built(name).net), method) is getattr(CifarNetwork, method) for method in shared)


@each_network
def test_features_have_the_shapes_that_are_announced(name):
    _, widths, sides = NETWORKS[name]
    net = built(name)
    stages = [f"stage{i + 1}" for i in range(len(widths))]
    last = PRELOGITS.get(name, widths[-1])
    before = {} if name == "mobilenetv2_half" else {f"pre{i + 1}": width for i, width in enumerate(widths)}
    stem = {} if name.startswith("vgg") else {"stem": STEMS.get(name, 16)}
    announced = {**dict(zip(stages, widths, strict=True)), "prelogits": last, "map": last, **before, **stem}
    assert list(net.dims.items()) == list(announced.items())
    with torch.no_grad():
        features = net(batch(), tuple(net.dims)).features
    assert [tuple(features[stage].shape) for stage in stages] == [
        (2, w, s, s) for w, s in zip(widths, sides, strict=True)
    ]
    assert all(features[name.replace("stage", "pre")].shape == features[name].shape for name in stages if before)
    assert features["map"].shape == (2, last, sides[-1], sides[-1])
    assert "stem" not in features or features["stem"].shape[1] == net.dims["stem"]
    assert features["prelogits"].shape == (2, net.dims["prelogits"])
    assert [32 // info["reduction"] for info in net.net.feature_info] == list(sides)


@each_network
def test_features_leave_the_logits_unchanged(name):
    net = built(name)
    x = batch(side=8)
    with torch.no_grad():
        plain = net(x)
        for features in (tuple(net.dims), ("prelogits",), ("stage2",), ("stage3", "stage1")):
            out = net(x, features)
            assert torch.equal(out.logits, plain.logits)
            assert set(out.features) == set(features)
    assert plain.logits.shape == (2, 100)


@each_network
def test_eval_mode_is_deterministic_and_takes_each_image_alone(name):
    # In float64: batch normalization over few values amplifies the rounding of float32.
    net, x = deepcopy(built(name).net).double(), batch(side=8).double()
    with torch.no_grad():
        first, second, alone = net(x), net(x), net(x[:1])
    assert torch.equal(first, second)
    assert torch.allclose(first[:1], alone, atol=1e-9)
    assert first.isfinite().all()
    assert not torch.allclose(first[0], first[1], atol=1e-3)


@each_network
def test_features_are_the_outputs_of_the_modules_that_are_named(name):
    net, x = built(name).net, batch(side=8)
    seen = {}
    modules = [info["module"] for info in net.feature_info]
    handles = [
        net.get_submodule(module).register_forward_hook(lambda _, args, out, key=module: seen.update({key: out}))
        for module in modules
    ]
    with torch.no_grad():
        final, maps = net.forward_intermediates(x)
        assert all(torch.equal(seen[module], found) for module, found in zip(modules, maps, strict=True))
        assert torch.equal(final, net.forward_features(x))
        assert torch.equal(net.forward_head(final), net(x))
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8_cifar", "shufflenetv2"])
def test_indices_choose_stages(name):
    net, x = built(name).net, batch(side=16)
    count = len(NETWORKS[name][1])
    with torch.no_grad():
        everything = net.forward_intermediates(x, intermediates_only=True)
        for indices, expected in (
            (None, range(count)), (1, [count - 1]), (2, [count - 2, count - 1]), (count, range(count)), (0, []),
            ([-1], [count - 1]), ([-count, 1], [0, 1]), ([1, 0], [0, 1]), ([], []),
        ):  # fmt: skip
            for stop_early in (False, True):
                maps = net.forward_intermediates(x, indices, stop_early=stop_early, intermediates_only=True)
                assert len(maps) == len(list(expected))
                assert all(torch.equal(found, everything[i]) for found, i in zip(maps, expected, strict=True))
        final, maps = net.forward_intermediates(x, [0], stop_early=True)
        assert torch.equal(net.forward_head(final), net(x))
    for wrong in ([count], [-count - 1], count + 1):
        with pytest.raises(ValueError, match="indices"):
            net.forward_intermediates(x, wrong)


def test_stop_early_skips_the_stages_after_the_last_chosen_one():
    net = bare("wrn_16_1")
    net.layer3 = None
    assert len(net.forward_intermediates(batch(), [0, 1], stop_early=True, intermediates_only=True)) == 2


def test_other_output_formats_are_refused():
    with pytest.raises(ValueError, match="NHWC"):
        built("resnet8").net.forward_intermediates(batch(), output_fmt="NHWC")


@each_network
def test_classifier_is_one_linear_layer_and_can_be_replaced(name):
    net = built(name).net
    assert type(net.get_classifier()) is nn.Linear
    with torch.no_grad():
        prelogits = net.forward_head(net.forward_features(batch(side=8)), pre_logits=True)
        assert torch.equal(F.linear(prelogits, net.fc.weight, net.fc.bias), net(batch(side=8)))
    assert net.num_features == net.head_hidden_size == net.fc.in_features == prelogits.shape[1]
    old = net.fc
    net.reset_classifier(7)
    assert net.num_classes == net.fc.out_features == 7
    net.fc, net.num_classes = old, 100


@each_network
def test_gradient_reaches_every_parameter(name):
    net = built(name)
    net.train()(batch(4, side=8)).logits.square().sum().backward()
    for key, parameter in net.net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # A bias before batch normalization has a gradient of zero.
        assert parameter.ndim == 1 or parameter.grad.any(), key
    net.zero_grad()
    net.eval()


@each_network
@pytest.mark.parametrize("channels", [1, 3])
def test_small_and_large_images_of_one_and_three_channels(name, channels):
    with torch.device("meta"):
        net = timm.create_model(name, in_chans=channels, num_classes=10)
        for side in (8, 20, 32, 64):
            assert net(torch.empty(4, channels, side, side)).shape == (4, 10)


@each("name", SMALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_give_numbers(name, channels):
    net = bare(name, in_chans=channels)
    with torch.no_grad():
        assert net(batch(1, channels, side=8)).isfinite().all()
        assert net.train()(batch(2, channels, side=8)).isfinite().all()


@each("name", [n for n in SMALL if not n.startswith("shuffle")] + ["resnet50_cifar"])
def test_convolutions_have_he_initialization_by_fan_out(name):
    net = bare(name)
    for key, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            error = 5 / (2 * module.weight.numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=error), key
            assert module.bias is None or not module.bias.any(), key


@pytest.mark.parametrize("name", ["vgg8_cifar", "mobilenetv2_half"])
def test_classifier_starts_small(name):
    fc = bare(name, num_classes=100).fc
    assert fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not fc.bias.any()


def test_block_of_the_wide_resnet_as_written_out():
    block = bare("wrn_16_2").layer1[0]
    x = torch.randn(2, 16, 8, 8)
    active = F.relu(block.bn1(x))
    branch = block.conv2(F.relu(block.bn2(block.conv1(active))))
    assert torch.allclose(block(x), branch + block.shortcut(active), atol=1e-6)


def test_block_of_fixmatch_as_written_out():
    net = bare("wrn_28_2")
    for block, channels, activated in (
        (net.layer1[0], 16, True),
        (net.layer2[0], 32, False),
        (net.layer3[1], 128, False),
    ):
        x = torch.randn(2, channels, 8, 8)
        active = F.leaky_relu(block.bn1(x), 0.1)
        branch = block.conv2(F.leaky_relu(block.bn2(block.conv1(active)), 0.1))
        assert torch.allclose(block(x), branch + block.shortcut(active if activated else x), atol=1e-5)


@pytest.mark.parametrize("name", FIXMATCH)
def test_only_the_first_block_of_fixmatch_activates_before_the_shortcut(name):
    net = built(name).net
    flags = [block.activate_first for stage in (net.layer1, net.layer2, net.layer3) for block in stage]
    assert flags == [True] + [False] * 11


@pytest.mark.parametrize("name", ["wrn_16_2", "wrn_40_2"])
def test_wide_resnet_activates_before_the_shortcuts_that_are_convolutions(name):
    net = built(name).net
    for stage in (net.layer1, net.layer2, net.layer3):
        assert [isinstance(block.shortcut, nn.Conv2d) for block in stage] == [block.activate_first for block in stage]
        assert stage[0].activate_first


def test_first_stage_of_width_1_has_no_convolution_in_its_shortcuts():
    assert not any(block.activate_first for block in built("wrn_16_1").net.layer1)


@each_network
def test_batch_normalization(name):
    expected = {(0.001, 1e-3)} if name in FIXMATCH else {(0.1, 1e-5)}
    found = {(m.momentum, m.eps) for m in built(name).modules() if isinstance(m, nn.BatchNorm2d)}
    assert found == expected


def test_classifier_of_fixmatch_has_glorot_initialization():
    fc = bare("wrn_28_8", num_classes=100).fc
    assert fc.weight.std().item() == pytest.approx((2 / (512 + 100)) ** 0.5, rel=0.02)
    assert not fc.bias.any()


def test_biases_of_fixmatch_s_convolutions_would_change_nothing():
    torch.manual_seed(0)
    plain = timm.create_model("wrn_28_2").train().double()
    x = batch(4, side=8).double()
    expected = plain(x)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.randn(module.out_channels, dtype=torch.double))
    assert torch.allclose(plain(x), expected, atol=1e-8)


def test_dropout_of_wide_resnets_acts_in_training_only():
    for name in ("wrn_16_1", "wrn_28_2"):
        plain, dropping = bare(name), bare(name, drop_rate=0.5)
        x = batch(4, side=8)
        with torch.no_grad():
            assert torch.equal(plain(x), dropping(x))
            assert torch.equal(plain.train()(x), plain(x))
            assert not torch.equal(dropping.train()(x), dropping(x))


def test_shuffle_net_mixes_the_groups():
    block = bare("shufflenetv2").layer1[1]
    x = torch.randn(2, 116, 4, 4)
    out = block(x)
    assert torch.equal(out[:, ::2], x[:, :58])
    assert torch.equal(out[:, 1::2], block.branch(x[:, 58:]).relu())


def test_first_block_of_shuffle_net_1_passes_the_pooled_input_on():
    net = bare("shufflenetv1")
    block = net.layer1[0]
    x = torch.rand(2, 24, 8, 8)
    assert torch.equal(block(x)[:, 216:], F.avg_pool2d(x, 3, 2, 1))
    groups = [[block.reduce[0].groups for block in stage] for stage in (net.layer1, net.layer2, net.layer3)]
    assert groups == [[1, 3, 3, 3], [3] * 8, [3] * 4]


def test_width_of_the_wider_resnets():
    net = bare("resnet8x4", width=8)
    assert [info["num_chs"] for info in net.feature_info] == [16, 32, 64]
    assert net.conv1.out_channels == 8


def test_what_stands_in_the_name_cannot_be_changed():
    for name, args in (("wrn_16_1", {"widen": 2}), ("resnet8", {"depth": 14}), ("vgg8_cifar", {"depths": (1,) * 5})):
        with pytest.raises(TypeError):
            bare(name, **args)


def test_published_weights_are_refused():
    with pytest.raises(ValueError, match="no published weights"):
        bare("wrn_16_1", pretrained=True)


@pytest.fixture(scope="module")
def composer():
    with Composer() as made:
        yield made


@each_network
def test_student_and_teacher_compose_and_build(composer, name):
    config = composer.typed([f"student={name}", f"teacher={name}"])
    for model in (config.students[0], config.teacher.model):
        assert model.name == name
        with torch.device("meta"):
            net = timm.create_model(name, num_classes=100, **model.args)
        assert sum(p.numel() for p in net.parameters()) == NETWORKS[name][0]


def test_conf_lists_exactly_the_registered_networks_each_below_its_citation():
    modules = {name: timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    assert own_networks().keys() == {name for name, of in modules.items() if of.startswith("kdrun.models.cifar")}
    for block in (CONF_DIR / "networks.yaml").read_text().split("\n\n")[1:]:
        assert "arXiv" in block.splitlines()[0] + block.splitlines()[1]
