"""CLIP (Radford et al. 2021, arXiv 2103.00020), through open_clip: a teacher that tells classes by their names.

And its image encoder as a student, whose heads may start from the class names: `image_encoder`, `student_texts`.

p = softmax(cos(f_X(x), f_T(t_c)) / zeta), where f_T(t_c) is the mean over templates of the text features of class c,
each of length 1, brought to length 1 again (DHO, arXiv 2505.07675, section 3).
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.model import ModelConfig
from kdrun.core.errors import ConfigError, DataError, allowed
from kdrun.core.hashing import file_hash
from kdrun.core.schema import FileContent
from kdrun.models.weights import check_state, offline_where_there_is_no_network, read_state

Tokenizer = Callable[[list[str]], Tensor]
FORCE = ("force_image_size", "force_quick_gelu", "force_custom_text", "force_patch_dropout", "force_context_length")
STUDENT = ("model", "tag", "embed_dim", "vision_cfg", "quick_gelu")  # args of a student that are not open_clip's
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


def student(model: ModelConfig) -> ModelConfig:
    """The network `open_clip` with all that its weights and architecture decide: input, and what builds it anew.

    What it was trained from may be gone when it is opened again.
    """
    found = find_clip(Asked.by_student(model))
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
    side = image_size(net)[0]
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
    visual: nn.Module = find_clip(Asked.by_student(model)).filled(True).visual
    return visual


def image_size(net: Any) -> tuple[int, int]:
    """Height and width of the images of a CLIP."""
    side = net.visual.image_size
    return (side, side) if isinstance(side, int) else tuple(side)


@dataclass(frozen=True)
class Asked:
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
    entry: str | None = None
    """Where in the file at `path` the weights stand."""

    @classmethod
    def by_student(cls, model: ModelConfig) -> "Asked":
        args = {name: value for name, value in model.args.items() if name not in STUDENT}
        keys = ("student.args", "student.args.model", "student.args", "student.file", "student.args.tag")
        return cls(model.args.get("model"), args, model.file, model.args.get("tag"), *keys, model.entry)


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
    entry: str | None
    model_cfg: dict[str, Any]
    """The architecture, as in open_clip's JSON files, without `args`."""

    def filled(self, weights: bool) -> Any:
        """The whole CLIP, checked against its weights; with `weights` filled with them."""
        net = self.build(torch.get_default_device())  # meta where a run is checked
        path = self.fetch()
        where = f"{self.where}: {path}"
        state = _converted(read_state(path, where, self.entry, self.where.rpartition(".")[0]), net, self.args)
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


def find_clip(asked: Asked) -> _Found:
    package = open_clip()
    args = dict(asked.args)
    if unknown := [name for name in args if name not in FORCE]:
        raise ConfigError(f"{asked.args_key}.{unknown[0]}: not for open_clip{allowed(unknown[0], FORCE)}")
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
            raise ConfigError(f"{asked.name_key}: open_clip knows no model {name!r}{allowed(name, known, most=0)}")
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

    content_hash = None if asked.path is None else file_hash(asked.path, asked.path_key, FileContent(whole=True))
    identity = {"model": name if folder is None or folder.is_file() else None, "args": args}
    identity |= {"weights": content_hash or f"{name}/{asked.tag}"}
    width = int(model_cfg["embed_dim"])
    return _Found(name, build, tokenizer, width, fetch, where, preprocess, args, identity, asked.entry, model_cfg)


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
        raise ConfigError(f"{key}: open_clip has no weights {tag!r} of {name}{allowed(tag, tags)}")
    return found


def _downloaded(package: Any, name: str, tag: str, published: dict[str, Any], asked: Asked) -> Path:
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
