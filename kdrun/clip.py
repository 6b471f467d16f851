"""CLIP (Radford et al. 2021, arXiv 2103.00020), through open_clip: a teacher that tells classes by their names.

And its image encoder as a student, whose heads may start from the class names: `image_encoder`, `student_texts`.

p = softmax(cos(f_X(x), f_T(t_c)) / zeta), where f_T(t_c) is the mean over templates of the text features of class c,
each of length 1, brought to length 1 again (DHO, arXiv 2505.07675, section 3).
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.artifacts import ensure_readable
from kdrun.config import ModelConfig, TeacherConfig, file_hash
from kdrun.data.views import View
from kdrun.errors import ConfigError, DataError, KdrunError, allowed
from kdrun.files import write_bytes, write_json
from kdrun.method import Setup
from kdrun.models.network import Network, Output, load_network, offline_where_there_is_no_network
from kdrun.teachers import check_state, read_state

VERSION = 1  # raise it when the text features of the same words change: it is part of the artifact's name
Tokenizer = Callable[[list[str]], Tensor]
FORCE = ("force_image_size", "force_quick_gelu", "force_custom_text", "force_patch_dropout", "force_context_length")
STUDENT = ("model", "tag", "embed_dim", "vision_cfg", "quick_gelu")  # args of a student that are not open_clip's
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


class ZeroShot(nn.Module):
    """A CLIP and the text features of the classes, as a network of kdrun.

    Its one feature is `prelogits`, (B, D): the image features, of length 1.

    Args:
        class_embeddings: (C, D), rows of length 1.
        scale: 1 / zeta.
        resize: bicubic or bilinear, how images come to `size`.
        mean, std: per channel, of pixels in [0, 1].
    """

    class_embeddings: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self, clip: nn.Module, class_embeddings: Tensor, scale: float, mean: Sequence[float], std: Sequence[float],
        size: tuple[int, int], name: str, resize: str = "bicubic",
    ) -> None:  # fmt: skip
        super().__init__()
        self.clip: Any = clip
        self.scale = scale
        self.size = size
        self.resize = resize
        self.name = name
        self.dims = {"prelogits": class_embeddings.shape[1]}
        self.register_buffer("class_embeddings", class_embeddings)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def adapt(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 or float in [0, 1] -> normalised float32 of the CLIP's size, gray as color."""
        x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        if x.shape[1] not in (1, 3):
            raise KdrunError(f"{self.name} takes images of 1 or 3 channels, got pixels {tuple(pixels.shape)}")
        x = x.expand(-1, 3, -1, -1)
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode=self.resize, antialias=True).clamp(0, 1)
        return (x - self.mean) / self.std

    def forward(self, view: View | Tensor, features: Sequence[str] = ()) -> Output:
        if unknown := [name for name in features if name != "prelogits"]:
            raise ConfigError(f"{self.name} has no feature {unknown[0]!r}; it has prelogits")
        x = self.adapt(view.pixels if isinstance(view, View) else view)
        image = self.clip.encode_image(x)
        kind = "cpu" if image.is_meta else image.device.type
        with torch.autocast(kind, enabled=False):  # in bfloat16 a cosine times 100 is off by 0.4
            image = F.normalize(image.float(), dim=1)
            logits = self.scale * image @ self.class_embeddings.T
        return Output(logits, {"prelogits": image} if features else {})


def teacher(
    spec: TeacherConfig, setup: Setup, key: str = "teacher", weights: bool = True, outputs: Path | None = None
) -> ZeroShot:
    """The teacher of source open_clip.

    Args:
        key: where `spec` stands in the configuration, for messages.
        weights: False: the network and its files are checked against each other, and nothing is filled or computed.
        outputs: folder whose `artifacts/text_features` keeps the text features; None: they are not kept.

    Raises:
        ConfigError, DataError: no open_clip; weights that cannot be had or do not fit; classes without names.
    """
    words = class_words(setup)
    found = _find(_Asked.by_teacher(spec, key))
    net = found.filled(weights)
    size = _size(net)
    asked = None if spec.model is None else spec.model.size
    if asked is not None and size != (asked, asked):
        raise ConfigError(
            f"{key}.model.size: {asked}, but {found.name} takes images of {size[0]} (its positional embedding has no "
            f"other); leave it out, or stretch the embedding with {key}.model.args.force_image_size={asked}"
        )
    own = {**net.visual.preprocess_cfg, **found.preprocess}
    mean, std = (
        _three(getattr(spec.model, name, None) or own[name], f"{key}.model.{name}") for name in ("mean", "std")
    )
    resize = "bilinear" if own.get("interpolation") == "bilinear" else "bicubic"
    if not weights:
        return ZeroShot(net, torch.zeros(setup.num_classes, found.width), 1.0, mean, std, size, found.name, resize)
    net.eval()
    prompts = spec.prompts if isinstance(spec.prompts, list) else []
    embeddings = text_features(lambda: net, found.tokenizer(), words, prompts, found.identity, outputs)
    scale = 1 / spec.zeta if spec.zeta is not None else net.logit_scale.exp().item()
    return ZeroShot(net, embeddings, scale, mean, std, size, found.name, resize)


def student(model: ModelConfig) -> ModelConfig:
    """The network `open_clip` with all that its weights and architecture decide: input, and what builds it anew.

    What it was trained from may be gone when it is opened again.
    """
    found = _find(_Asked.by_student(model))
    with torch.device("meta"):
        net = found.build(torch.get_default_device())
    own = {**net.visual.preprocess_cfg, **found.preprocess}
    image = {
        "embed_dim": found.model_cfg["embed_dim"],
        "vision_cfg": dict(found.model_cfg["vision_cfg"]),
        "quick_gelu": bool(found.args.get("force_quick_gelu", found.model_cfg.get("quick_gelu", False))),
    }
    for name in ("image_size", "patch_dropout"):
        if (forced := found.args.get(f"force_{name}")) is not None:
            image["vision_cfg"][name] = forced
    side = _size(net)[0]
    if model.size not in (None, side):
        raise ConfigError(
            f"student.size: {model.size}, but {found.name} takes images of {side}; leave it out, or stretch its "
            f"embedding of positions with student.args.force_image_size={model.size}"
        )
    return model.replace(
        args={**model.args, **image}, size=side, mean=model.mean or list(own["mean"]), std=model.std or list(own["std"])
    )


def image_encoder(model: ModelConfig) -> nn.Module:
    """The image encoder of the network `open_clip` with its published weights; the text encoder is gone."""
    visual: nn.Module = _find(_Asked.by_student(model)).filled(True).visual
    return visual


def student_texts(model: ModelConfig, words: list[str], prompts: list[str], outputs: Path | None) -> Tensor:
    """The text features of the classes (C, D), from the text encoder beside a student's image encoder."""
    found = _find(_Asked.by_student(model))
    return text_features(lambda: found.filled(True).eval(), found.tokenizer(), words, prompts, found.identity, outputs)


def trained_teacher(spec: TeacherConfig, setup: Setup, run: Path, outputs: Path | None = None) -> ZeroShot:
    """The teacher of source clip, from the run of method=contrastive that trained it."""
    path = run / "student.safetensors"
    return _of_kdrun(load_network(path), spec, setup, {"weights": file_hash(str(path), "teacher")}, outputs)


def untrained_teacher(spec: TeacherConfig, setup: Setup) -> ZeroShot:
    """The network of source clip without anything that it learned."""
    if spec.model is None:
        raise ConfigError("teacher.model: missing; a value is required")
    class_words(setup)
    return _of_kdrun(setup.network(spec.model, seed=0, role="teacher"), spec, setup)


def _of_kdrun(
    network: Network, spec: TeacherConfig, setup: Setup, identity: dict[str, Any] | None = None,
    outputs: Path | None = None,
) -> ZeroShot:  # fmt: skip
    net: Any = network.net.clip
    embeddings, scale = network.net.class_embeddings, 1.0
    if identity is not None:
        tokenizer = open_clip().SimpleTokenizer(context_length=net.context_length)
        prompts = spec.prompts if isinstance(spec.prompts, list) else []
        embeddings = text_features(lambda: net, tokenizer, class_words(setup), prompts, identity, outputs)
        scale = 1 / spec.zeta if spec.zeta is not None else net.logit_scale.exp().item()
    return ZeroShot(net, embeddings, scale, network.spec.mean, network.spec.std, _size(net), network.name)


def _size(net: Any) -> tuple[int, int]:
    """Height and width of the images of a CLIP."""
    side = net.visual.image_size
    return (side, side) if isinstance(side, int) else tuple(side)


def class_words(setup: Setup) -> list[str]:
    """The names of the classes. Raises ConfigError where one is missing or no word."""
    if len(setup.class_names) != setup.num_classes or not all(name.strip() for name in setup.class_names):
        absent = [str(k) for k, name in enumerate(setup.class_names) if not name.strip()]
        raise ConfigError(
            f"dataset.class_names: no name for class {', '.join(absent) or f'0 to {setup.num_classes - 1}'}, and a "
            "teacher that reads names needs all; give a list, or a text file with one a line"
        )
    if all(re.fullmatch(r"n\d{8}", name) for name in setup.class_names):  # folders of ImageNet and its parts
        return _words_of_imagenet(setup.class_names)
    return list(setup.class_names)


def _words_of_imagenet(wnids: Sequence[str]) -> list[str]:
    """OpenAI's names for classes of ImageNet-1k."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    place = {info.index_to_label_name(k): k for k in range(info.num_classes())}
    if strange := [wnid for wnid in wnids if wnid not in place]:
        raise ConfigError(
            f"dataset.class_names: the classes are WordNet's numbers, e.g. {strange[0]}, which is none of ImageNet's "
            "1000, and a teacher that reads names needs words; give a list, or a text file with one a line"
        )
    names: Sequence[str] = open_clip().IMAGENET_CLASSNAMES
    return [names[place[wnid]] for wnid in wnids]


def text_features(
    make: Callable[[], Any], tokenizer: Tokenizer, words: list[str], prompts: list[str], identity: dict[str, Any],
    outputs: Path | None,
) -> Tensor:  # fmt: skip
    """The text features of the classes (C, D) of length 1, from outputs/artifacts/text_features if they are there.

    Args:
        make: gives the CLIP, if it is needed.
        identity: what tells these weights from others.
    """

    def computed() -> Tensor:
        net = make()
        return class_features(net, class_tokens(tokenizer, words, prompts).to(net.logit_scale.device))

    if outputs is None:
        return computed()
    spec = {"version": VERSION, **identity, "prompts": prompts, "class_names": words}
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]

    def build(folder: Path) -> None:
        from safetensors.torch import save

        features = computed()
        write_bytes(folder / "features.safetensors", save({"class_embeddings": features}))
        write_json(folder / "spec.json", spec)

    def read(folder: Path) -> Tensor:
        found = read_state(folder / "features.safetensors", str(folder / "features.safetensors"))
        if "class_embeddings" not in found or len(found["class_embeddings"]) != len(words):
            raise DataError(f"{folder}: does not hold the features of {len(words)} classes")
        return found["class_embeddings"].clone()  # not a view into a file that others may replace

    return ensure_readable(outputs / "artifacts" / "text_features" / digest, build, read)


def class_tokens(tokenizer: Tokenizer, words: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """(C, templates, length) int64: every class name in every template."""
    return torch.stack([tokenizer([prompt.format(word) for prompt in prompts]) for word in words])


@torch.no_grad()
def class_features(net: Any, tokens: Tensor) -> Tensor:
    """(C, D) float32: of each class the mean over templates of text features of length 1, of length 1 itself.

    Args:
        tokens: (C, templates, length).
    """
    texts = [F.normalize(net.encode_text(of_class).float(), dim=1) for of_class in tokens]
    return torch.stack([F.normalize(text.mean(0), dim=0) for text in texts])


# ---------------------------------------------------------------------------------------------- what a spec means


@dataclass(frozen=True)
class _Asked:
    """Which CLIP a configuration means, and the keys to blame."""

    name: str | None
    args: Mapping[str, Any]
    path: str | None
    tag: str | None
    key: str
    """Of the network."""
    name_key: str
    args_key: str
    path_key: str
    tag_key: str

    @classmethod
    def by_teacher(cls, spec: TeacherConfig, key: str) -> "_Asked":
        name, args = (None, {}) if spec.model is None else (spec.model.name, spec.model.args)
        keys = (f"{key}.model", f"{key}.model.name", f"{key}.model.args", f"{key}.path", f"{key}.pretrained")
        return cls(name, args, spec.path, spec.pretrained, *keys)

    @classmethod
    def by_student(cls, model: ModelConfig) -> "_Asked":
        args = {name: value for name, value in model.args.items() if name not in STUDENT}
        keys = ("student.args", "student.args.model", "student.args", "student.file", "student.args.tag")
        return cls(model.args.get("model"), args, model.file, model.args.get("tag"), *keys)


@dataclass(frozen=True)
class _Found:
    """Which network, and where its weights are."""

    name: str
    build: Callable[[torch.device], Any]
    tokenizer: Callable[[], Tokenizer]
    width: int
    """D."""
    fetch: Callable[[], Path]
    """Gives the file of the weights."""
    where: str
    """What to blame for the weights."""
    preprocess: dict[str, Any]
    """mean and std, where they are not the architecture's."""
    args: dict[str, Any]
    identity: dict[str, Any]
    model_cfg: dict[str, Any]
    """The architecture, as in open_clip's JSON files, without `args`."""

    def filled(self, weights: bool) -> Any:
        """The whole CLIP, checked against its weights; with `weights` filled with them."""
        net = self.build(torch.get_default_device())  # meta where a run is checked
        path = self.fetch()
        where = f"{self.where}: {path}"
        state = _converted(read_state(path, where), net, self.args)
        check_state(net, self.name, state, where, hint="another model or another image size?")
        if weights:
            net.load_state_dict(state)
        return net


def open_clip() -> Any:
    """The package. Raises ConfigError where it is not installed."""
    try:
        import open_clip as package
    except ImportError as error:
        raise ConfigError(f"teacher.source: open_clip cannot be imported ({error}); pip install kdrun[clip]") from None
    return package


def _find(asked: _Asked) -> _Found:
    package = open_clip()
    args = dict(asked.args)
    if unknown := [name for name in args if name not in FORCE]:
        raise ConfigError(f"{asked.args_key}.{unknown[0]}: not for open_clip; {allowed(unknown[0], FORCE)}")
    folder = None if asked.path is None else Path(asked.path).expanduser()
    preprocess: dict[str, Any] = {}
    where = asked.path_key
    if folder is not None and folder.is_dir():
        content = _folder_config(folder, f"{asked.path_key}: {folder}")
        name, identifier, model_cfg = folder.name, f"local-dir:{folder}", content["model_cfg"]
        weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
        if weights is None:
            raise DataError(f"{where}: {folder}: no weights; expected {WEIGHTS[0]} beside open_clip_config.json")
    elif asked.name is None:
        given = f"{where}: {folder}: no such folder; of a file of weights" if folder else "without a folder of a CLIP"
        raise DataError(f"{given} {asked.name_key} must tell whose")
    else:
        name = identifier = asked.name
        known = package.list_models()
        if name not in known:
            raise ConfigError(f"{asked.name_key}: open_clip knows no model {name!r}; {allowed(name, known, most=0)}")
        model_cfg = package.get_model_config(name)
        if asked.tag is not None:
            preprocess = _published(package, name, asked.tag, asked.tag_key)
            if preprocess.get("quick_gelu") and not model_cfg.get("quick_gelu"):
                args.setdefault("force_quick_gelu", True)  # else the weights work with another activation, and worse
        weights = folder
        where = asked.path_key if folder is not None else asked.tag_key

    def build(device: torch.device) -> Any:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it warns that the weights are random; they come afterwards
        try:
            return package.create_model(identifier, load_weights=False, pretrained_text=False, device=device, **args)
        except Exception as error:  # whatever an architecture makes of its arguments, or a missing package
            why = shorten(str(error) or type(error).__name__, 160, placeholder=" ...")
            raise ConfigError(f"{asked.key}: {name} cannot be built with args {args}: {why}") from error
        finally:
            logging.disable(before)

    def tokenizer() -> Tokenizer:
        try:
            with offline_where_there_is_no_network("hf_tokenizer_name" in model_cfg.get("text_cfg", {})):
                made: Tokenizer = package.get_tokenizer(identifier)
        except Exception as error:  # hubs raise many kinds
            why = shorten(str(error) or type(error).__name__, 160, placeholder=" ...")
            raise DataError(f"{asked.key}: the tokenizer of {name} cannot be had ({why})") from error
        return made

    def fetch() -> Path:
        if weights is not None:
            return weights
        return _downloaded(package, name, str(asked.tag), preprocess, asked)

    content_hash = None if asked.path is None else file_hash(asked.path, asked.path_key, whole=True)
    identity = {"model": name if folder is None or folder.is_file() else None, "args": args}
    identity |= {"weights": content_hash or f"{name}/{asked.tag}"}
    width = int(model_cfg["embed_dim"])
    return _Found(name, build, tokenizer, width, fetch, where, preprocess, args, identity, model_cfg)


def _folder_config(folder: Path, where: str) -> dict[str, Any]:
    path = folder / "open_clip_config.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        content["model_cfg"]["embed_dim"]
    except FileNotFoundError:
        raise DataError(f"{where}: no open_clip_config.json; expected it beside {WEIGHTS[0]}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a configuration of open_clip with model_cfg.embed_dim ({error})") from None
    return content


def _published(package: Any, name: str, tag: str, key: str) -> dict[str, Any]:
    """What open_clip tells of published weights."""
    tags = package.list_pretrained_tags_by_model(name)
    found: dict[str, Any] = package.get_pretrained_cfg(name, tag)
    if not found:
        raise ConfigError(f"{key}: open_clip has no weights {tag!r} of {name}; {allowed(tag, tags)}")
    return found


def _downloaded(package: Any, name: str, tag: str, published: dict[str, Any], asked: _Asked) -> Path:
    """The file of published weights, from the hub or its cache; without a network this fails at once."""
    try:
        with offline_where_there_is_no_network():
            return Path(package.download_pretrained(published))
    except Exception as error:  # hubs raise many kinds
        hub, url = str(published.get("hf_hub") or "").rstrip("/"), published.get("url")
        file = f"{WEIGHTS[0]} (or open_clip_pytorch_model.bin) of {hub} on the Hugging Face hub" if hub else url
        why = f"{type(error).__name__}: {shorten(str(error), 160, placeholder=' ...')}"
        raise DataError(
            f"{asked.tag_key}: {tag} of {name} cannot be had ({why}); fetch {file} where there is a network and name "
            f"the file in {asked.path_key}"
        ) from error


def _converted(state: dict[str, Tensor], net: Any, args: dict[str, Any]) -> dict[str, Tensor]:
    """Weights under the network's names: as open_clip's own reader takes older and foreign files."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed

    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    state = convert_state_dict(net, state)
    if "positional_embedding" in state and not hasattr(net, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(net, name, None)
        if own is not None and name in state and state[name].numel() == own.numel():
            state[name] = state[name].reshape(own.shape)
    state.pop("text.transformer.embeddings.position_ids", None)
    for name in ("input_resolution", "context_length", "vocab_size"):  # of OpenAI's files
        state.pop(name, None)
    if "force_image_size" in args:
        resize_pos_embed(state, net)
    return state


def _three(values: Sequence[float], key: str) -> list[float]:
    if len(values) not in (1, 3):
        raise ConfigError(f"{key}: expected 3 numbers, one for each channel, got {list(values)}")
    return list(values) * (3 // len(values))
