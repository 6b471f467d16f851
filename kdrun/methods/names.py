"""Heads that start from the names of the classes: their text embeddings are the first weights, the biases are 0.

Language-aware initialization of DHO (Kang et al. 2025, arXiv 2505.07675, Eq. 10), which takes it from ELEVATER (Li et
al. 2022, arXiv 2204.08790). Embeddings have length 1; DHO's code leaves them as long as they are.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from kdrun.config.model import ModelConfig
from kdrun.config.parts import MethodConfig
from kdrun.config.prompts import templates
from kdrun.config.run import RunConfig
from kdrun.core.errors import ConfigError
from kdrun.methods.step import Setup
from kdrun.models.class_texts import class_words, student_texts

KEY = "method.language_aware_init"


class NamesConfig(MethodConfig):
    """The keys of a method whose heads may start from the names of the classes."""

    both: ClassVar[bool] = False
    """Whether its KD head may too."""

    language_aware_init: Literal["none", "ce", "both"] = "none"
    """Which heads start from embeddings of the class names: the student's own (ce), and of DHO the KD head too (both).
    They have length 1 (Eq. 10 of DHO's paper; its code leaves them as long as they are), biases are 0."""
    text_encoder: Literal["auto", "teacher", "student"] = "auto"
    """Whose embeddings: the student's own where it is a CLIP, else the teacher's (auto)."""

    @model_validator(mode="after")
    def has_the_heads(self) -> Self:
        if self.language_aware_init == "both" and not self.both:
            raise ValueError("language_aware_init: both is for the two heads of method=dho; set it to ce or none")
        return self


def names_contradictions(config: RunConfig) -> list[str]:
    """What does not go with heads that start from names, one line each."""
    spec = config.method
    if not isinstance(spec, NamesConfig) or spec.language_aware_init == "none" or len(config.students) != 1:
        return []
    student, errors = config.students[0], list[str]()
    if student.head != "linear":
        errors.append(
            f"{KEY}: an {student.head} head has no weight for each class; set it to none, or student.head to linear"
        )
    if spec.text_encoder == "student" and student.name != "open_clip":
        errors.append(
            f"method.text_encoder: student, but {student.name} has none; take student=open_clip, or set it to auto"
        )
    elif not _own_texts(spec, student) and not config.needs_teacher:
        errors.append(
            f"{KEY}: method={spec.name} asks no teacher for the texts; take student=open_clip with text_encoder=auto, "
            "or set it to none"
        )
    if _own_texts(spec, student) and not student.pretrained:
        errors.append(
            "method.text_encoder: the student's has learned nothing; set student.pretrained=true, or it to teacher"
        )
    return errors


@torch.no_grad()
def start_from_names(heads: Iterable[Any], config: RunConfig, setup: Setup) -> None:
    """Give heads (weight (C, D) and, or not, bias (C,)) the embeddings of the class names as weights.

    Nothing is done to a finished run that is opened again, nor to a network that has no weights yet.

    Raises:
        ConfigError: there is no text encoder, or its embeddings are not as wide as the features.
    """
    spec, student = config.method, config.students[0]
    if setup.restoring or not isinstance(spec, NamesConfig):
        return
    if _own_texts(spec, student):
        words = class_words(setup)
        if not student.pretrained:  # built to be checked, or to be given weights
            return
        prompts = next((kind.prompts for kind in config.teacher.kinds if kind.prompts is not None), None)
        outputs = Path(config.execution.outputs).expanduser()
        embeddings: Tensor | None = student_texts(student, words, templates(prompts, config.dataset.name), outputs)
    else:
        embeddings = setup.teacher.class_embeddings if setup.teacher is not None else None
    if embeddings is None:
        raise ConfigError(f"{KEY}: the teacher has no text encoder for the class names; set it to none, or take a CLIP")
    for head in heads:
        if embeddings.shape[1] != head.weight.shape[1]:
            raise ConfigError(
                f"{KEY}: the teacher's embeddings have {embeddings.shape[1]} dimensions, the student's features "
                f"{head.weight.shape[1]}; set it to none, or take a student as wide, or a CLIP"
            )
        head.weight.copy_(embeddings)
        if getattr(head, "bias", None) is not None:
            head.bias.zero_()


def _own_texts(spec: NamesConfig, student: ModelConfig) -> bool:
    """Whether heads start from the student's own embeddings of the class names."""
    return student.name == "open_clip" and spec.text_encoder != "teacher"
