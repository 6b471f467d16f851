"""What a network must have, and the line in which one that lacks it is refused."""

import pytest
import timm
import torch
from torch import nn

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError
from kdrun.models.network import build_network, load_network


class Small(nn.Module):
    """What docs/extend/network.md asks for, and nothing else."""

    def __init__(self, num_classes: int, in_chans: int, **_):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_chans, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.body(x))

    def get_classifier(self):
        return self.head


class Staged(Small):
    feature_info = ({"num_chs": 4},)

    def forward_intermediates(self, x, indices):
        found = self.body[0](x)
        return found, [found]

    def forward_head(self, x):
        return self.head(self.body[1:](x))


@pytest.fixture
def built(monkeypatch):
    """Build a network from a function, registered for this test alone."""

    def make(function, **changes):
        from timm.models import _registry

        entries = dict(_registry._model_entrypoints)
        monkeypatch.setattr(_registry, "_model_entrypoints", {**entries, "small_net": function})
        model = ModelConfig(name="small_net", **changes)
        return build_network(model, num_classes=5, in_chans=1, mean=(0.5,), std=(0.5,), seed=0)

    return make


def lacking(member: str, base: type[Small] = Staged) -> type[Small]:
    return type("Lacking", (base,), {member: None})


def test_what_the_page_asks_for_is_enough(built, tmp_path):
    net = built(Small)
    x = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert net.dims == {"prelogits": 4}
    assert net(x, ("prelogits",)).features["prelogits"].shape == (2, 4)
    net.save(tmp_path / "small.safetensors")
    again = load_network(tmp_path / "small.safetensors")
    assert torch.equal(again(x).logits, net.eval()(x).logits)
    for changes in ({"head": "mlp"}, {"head": "hidden"}, {"trainable": "head"}):
        assert built(Small, **changes)(x).logits.shape == (2, 5)


def test_stages_are_offered_where_the_network_can_give_them(built):
    x = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert built(Staged).dims == {"stage1": 4, "prelogits": 4}
    assert built(Staged)(x, ("stage1",)).features["stage1"].shape == (2, 4, 6, 6)
    for member in ("feature_info", "forward_intermediates", "forward_head"):
        net = built(lacking(member))
        assert net.dims == {"prelogits": 4}
        with pytest.raises(ConfigError, match="small_net has no feature 'stage1'; it has prelogits"):
            net(x, ("stage1",))


REFUSED = {
    "no keyword arguments": (
        lambda num_classes, in_chans: Small(num_classes, in_chans),
        r"small_net\(\) does not take pretrained, pretrained_cfg, pretrained_cfg_overlay, cache_dir; end its arguments with \*\*_",
    ),
    "no channels": (
        lambda num_classes, pretrained, pretrained_cfg, pretrained_cfg_overlay, cache_dir: Small(num_classes, 1),
        r"small_net\(\) does not take in_chans;",
    ),
    "nothing returned": (lambda **_: None, r"small_net\(\) does not return a torch.nn.Module"),
    "no module": (lambda **_: type("Thing", (), {})(), r"small_net\(\) does not return a torch.nn.Module"),
    "no get_classifier": (lacking("get_classifier"), r"small_net lacks get_classifier\(\)"),
    "features without channels": (
        type("Odd", (Staged,), {"feature_info": ({"num_chs": 4}, {"module": "body"})}),
        r"small_net: feature_info\[1\] lacks num_chs",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_network_lacks_is_named(built, case):
    function, message = REFUSED[case]
    with pytest.raises(
        ConfigError, match=rf"^student\.name or teacher\.model\.name: {message}.*; see docs/extend/network\.md$"
    ):
        built(function)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: (self.head(self.body(x)),), r"gives a tuple, expected logits \(B, classes\)"),
        (lambda self, x: self.body(x), r"gives \(2, 4\), expected \(B, 5\)"),
        (lambda self, x: self.head(self.body(x)).sum(1), r"gives \(2,\), expected \(B, 5\)"),
    ],
)
def test_what_is_no_logits_is_refused(built, forward, message):
    net = built(type("Odd", (Small,), {"forward": forward}))
    with pytest.raises(ConfigError, match=message):
        net(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_an_error_of_its_own_is_one_line(built):
    def broken(**_):
        return {}["nothing"]

    with pytest.raises(
        ConfigError, match=r"^small_net: the network cannot be built with args \{\}: KeyError: 'nothing'; see"
    ):
        built(broken)


def test_heads_need_one_linear_layer(built):
    odd = type("Odd", (Small,), {"get_classifier": lambda self: nn.Identity()})
    assert built(odd).dims == {}
    with pytest.raises(ConfigError, match="its classifier is not one linear layer"):
        built(odd, head="mlp")


@pytest.mark.parametrize(
    "name",
    ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050", "deit_tiny_distilled_patch16_224"],
)
def test_timm_s_networks_have_it_all(name):
    with torch.device("meta"):
        net = build_network(ModelConfig(name=name), num_classes=5, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3, seed=0)
        assert {"stage1"} <= set(net.dims)
        assert timm.is_model(name)
