"""A CLIP that a run of method=contrastive trains on the upstream part of the dataset, by a recipe of its own (ours)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdrun.config.derived import derived
from kdrun.config.run import RunConfig
from kdrun.config.schedule import ScheduleConfig
from kdrun.config.teacher import LabelsConfig, NetworkConfig
from kdrun.core.hashing import file_hash
from kdrun.core.registry import lookup, register
from kdrun.models.class_texts import class_words
from kdrun.models.factory import NetworkFactory
from kdrun.models.network import Network, load_network
from kdrun.models.open_clip import image_size, open_clip
from kdrun.teachers.zero_shot import ZeroShot, ZeroShotConfig, ZeroShotKind


class ClipConfig(NetworkConfig, ZeroShotConfig, LabelsConfig):
    pass


@register("teacher", "clip")
class ClipTeacher(ZeroShotKind[ClipConfig]):
    Config = ClipConfig

    def build(self, factory: NetworkFactory, runs: Mapping[str, Path], role: str, outputs: Path | None) -> nn.Module:
        path = runs[role] / "student.safetensors"
        network = load_network(path)
        net: Any = network.net.clip
        tokenizer = open_clip().SimpleTokenizer(context_length=net.context_length)
        identity = {"weights": file_hash(str(path), "teacher")}
        return _zero_shot(network, *self.texts(net, tokenizer, factory, identity, outputs))

    def outline(self, factory: NetworkFactory) -> nn.Module:
        class_words(factory)
        network = factory.network(self.spec.model, seed=0, role="teacher")
        embeddings: Any = network.net.class_embeddings
        return _zero_shot(network, embeddings, 1.0)

    def runs(self, config: RunConfig, role: str) -> dict[str, RunConfig]:
        """Its recipe is its own, so that students of any schedule share it."""
        spec, dataset = self.spec, config.dataset
        length: dict[str, Any] = {"epochs": spec.epochs} if spec.epochs is not None else {"steps": spec.steps or 600}
        run = derived(
            config,
            method=lookup("method", "contrastive", "teacher").Config(name="contrastive"),
            students=[spec.model],
            schedule=ScheduleConfig(
                **length, batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.1, weight_decay_on="kernels",
                decay=lookup("decay", "cosine", "teacher").Config(name="cosine"), warmup_steps=50, clip_norm=1.0,
            ),
            dataset=dataset.replace(
                num_labels=spec.num_labels,
                split_seed=None if spec.num_labels is None else config.split_seed,
                part="upstream" if dataset.upstream else "downstream",
            ),
            seed=spec.seed,
        )  # fmt: skip
        return {role: run}

    def contradictions(self, config: RunConfig) -> list[str]:
        name = self.spec.model.name
        if name == "clip":
            return []
        return [
            f"{self.key}.model.name: source=clip trains a network named clip, got {name}; choose teacher=digits_clip "
            "or its like"
        ]

    @property
    def draws_labels(self) -> bool:
        return self.spec.num_labels is not None


def _zero_shot(network: Network, embeddings: Tensor, scale: float) -> ZeroShot:
    net: Any = network.net.clip
    return ZeroShot(net, embeddings, scale, network.spec.mean, network.spec.std, image_size(net), network.name)
