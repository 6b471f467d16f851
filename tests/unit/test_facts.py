"""What is known of a dataset stands on its class."""

import re
from pathlib import Path

import pytest

from kdrun.config.dataset import PHOTO, DatasetConfig, Facts, FilesConfig, facts_of
from kdrun.config.prompts import templates
from kdrun.core.errors import ConfigError
from kdrun.core.paths import CONF_DIR
from kdrun.core.registry import _REGISTRY, lookup, register, registered

OWN_FILES = {"npz", "imagefolder", "listed", "hf"}  # what the user has: nothing is known of it
SHIPPED = sorted(path.stem for path in (CONF_DIR / "dataset").glob("*.yaml") if not path.stem.startswith("base"))


def part_of(name: str):
    return lookup("dataset", name, "dataset.name")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_dataset_of_kdrun_states_its_facts(name):
    facts = facts_of(name)
    files = issubclass(part_of(name).Config, FilesConfig)
    if name in OWN_FILES:
        assert facts == Facts()
        return
    assert facts.channels in (1, 3)
    assert facts.size is not None or files
    assert None not in (facts.classes, facts.test if name in ("imagenet100", "digits") else facts.train)
    assert facts.prompts
    assert facts.download is not None or "download" not in part_of(name).Config.model_fields
    for counted in (facts.train, facts.val, facts.test):  # the YAML, whose first line a reader sees, says the same
        first = (CONF_DIR / "dataset" / f"{name}.yaml").read_text().splitlines()[0]
        if name not in ("imagenet100", "ucf101") and counted is not None:
            assert f"{counted:,}" in first


def test_images_are_as_the_facts_say():
    arrays = part_of("digits").load(part_of("digits").Config(name="digits"))
    facts = facts_of("digits")
    assert arrays.train_images.shape == (facts.train, facts.size, facts.size, facts.channels)
    assert len(arrays.test_images) == facts.test
    assert arrays.num_classes == facts.classes == len(facts.captions.words)


def test_the_literature_s_statistics():
    assert facts_of("cifar10").statistics == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert facts_of("cifar100").statistics == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    assert facts_of("svhn").statistics == ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
    with pytest.raises(ConfigError, match=r"Facts\.mean, Facts\.std: not stated"):
        facts_of("digits").statistics  # noqa: B018


def test_templates_of_the_literature():
    """Each stands in the run keys of its dataset: CoOp's and Tip-Adapter's, of imagenet seven."""
    assert len(templates(None, "imagenet")) == 7
    assert templates(None, "dtd") == templates("dtd", "cifar10") == ["{} texture."]
    assert templates(None, "npz") == list(PHOTO) == ["a photo of a {}."]
    own = {name for name in SHIPPED if facts_of(name).prompts not in ((), PHOTO)}
    assert own >= {
        "imagenet", "dtd", "eurosat", "fgvc_aircraft", "food101", "oxford_pets", "flowers102", "ucf101", "digits",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"teacher\.prompts: no set of templates 'dtt'; nearest: dtd"):
        templates("dtt", "dtd")


def test_a_dataset_without_facts_has_the_defaults_and_odd_facts_are_refused(monkeypatch):
    class Config(DatasetConfig):
        pass

    monkeypatch.setitem(_REGISTRY, "dataset", registered("dataset"))
    register("dataset", "bare")(type("Bare", (), {"Config": Config, "load": print}))
    assert facts_of("bare") == Facts()
    assert "bare" in registered("dataset")
    register("dataset", "odd")(type("Odd", (), {"Config": Config, "load": print, "facts": {"size": 8}}))
    with pytest.raises(ConfigError, match=r"Odd\.facts: expected Facts\(.*got a dict"):
        facts_of("odd")
    for prompts in ("a photo of a {}.", ("a photo",), ("a {} {}",)):
        with pytest.raises(ConfigError, match=r"Facts\.prompts: .* must hold \{\} once"):
            Facts(prompts=prompts)


def test_facts_stand_in_one_place():
    """No table of names of datasets elsewhere: they are quoted in data/ alone."""
    quoted = re.compile("|".join(f'"{name}"' for name in sorted(set(SHIPPED) - OWN_FILES - {"imagenet"})))
    root = Path(part_of("digits").load.__code__.co_filename).parents[2]
    found = [str(path.relative_to(root)) for path in root.rglob("*.py") if quoted.search(path.read_text())]
    assert [path for path in found if not path.startswith("data/")] == []
