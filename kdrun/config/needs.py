"""What the parts of a run ask of each other, said before any of them is built."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from kdrun.core.errors import ConfigError

T = TypeVar("T")
OverRanks = Literal["mean", "gathered", "no"]
_ORDER: tuple[OverRanks, ...] = ("mean", "gathered", "no")  # of two terms the later one holds


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a loss term or a method asks of the run around it. All that is not said is not needed.

    `method | term | term` is what they ask together; what only a method can ask for is taken from the left.
    """

    teacher: bool = False
    """A term: it is held against the teacher (it may read the labels too). A method: it needs one in any case."""
    features: tuple[str, ...] = ()
    """That the student must give beside its logits."""
    teacher_features: tuple[str, ...] | None = None
    """That the teacher must give; None: `features`, where it needs a teacher."""
    unmixed: tuple[Literal["student", "teacher"], ...] = ()
    """Whose logits on the images before they were mixed, as `Pair.unmixed`."""
    unmixed_gradient: bool = False
    """Whether a gradient flows through those of the student."""
    index: bool = False
    """It remembers single images by their index; refused with mixed images."""
    mixed: bool = False
    """It is about mixed images; refused where none are mixed."""
    over_ranks: OverRanks = "no"
    """Where it is computed when a run has several processes, its ranks, each with its rows of the batch.

    mean: on the rank's own rows; the mean over the ranks is what one process would have. gathered: of a term, over the
    rows of all ranks, which it is given, alike on each; of a method, its step gathers by itself (`kdrun.core.world`)
    what is no mean over rows. no: not at all; such a run is refused.
    """
    per_sample: bool = True
    """A term: whether `forward` gives (B,), which can be weighted sample by sample; else (), a statistic of the batch.
    """
    views: tuple[str, ...] = ()
    """A term: of labeled images, those that it must see, each in a pair of its own; (): any one."""

    # of a method only
    streams: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"labeled": ("weak",)})
    """Stream -> the views that it should carry."""
    sides: tuple[Literal["target", "teacher"], ...] = ("target",)
    """What the terms of `loss` may work against."""
    students: tuple[int, int | None] = (1, 1)
    """Fewest and most; None: any number."""
    takes_mixed: bool = False
    """Whether the images of its streams may be mixed (views.mix): it must take labels (B, classes) then."""
    class_names: bool = False
    """Whether the result depends on the names of the classes."""
    validation: str | None = None
    """What follows validation images, as a message begins: `method.search: needs`. None: nothing."""
    evaluations: bool = False
    """Whether the result depends on how often networks are evaluated; then the cadence is part of the run key."""
    terms: bool = True
    """Whether there is nothing to minimise without a term of `loss`; such a run is refused."""
    trains: bool = True
    """False: nothing is trained, and the teacher is evaluated alone."""
    init: str = ""
    """Part of the seed of the initialisation, where two networks of one name must differ."""
    unsure_errors: bool = False
    """It weighs by how sure the teacher is: a warning goes into the record where the teacher is sure of its errors."""

    @property
    def side(self) -> Literal["target", "teacher"]:
        """What a term works against."""
        return "teacher" if self.teacher else "target"

    @property
    def of_teacher(self) -> tuple[str, ...]:
        """The features that the teacher must give."""
        if self.teacher_features is not None:
            return self.teacher_features
        return self.features if self.teacher else ()

    def __or__(self, other: "Needs") -> "Needs":
        return replace(
            self,
            teacher=self.teacher or other.teacher,
            features=_union(self.features, other.features),
            teacher_features=_union(self.of_teacher, other.of_teacher),
            unmixed=_union(self.unmixed, other.unmixed),
            unmixed_gradient=self.unmixed_gradient or other.unmixed_gradient,
            index=self.index or other.index,
            mixed=self.mixed or other.mixed,
            over_ranks=max(self.over_ranks, other.over_ranks, key=_ORDER.index),
            per_sample=self.per_sample and other.per_sample,
            views=_union(self.views, other.views),
        )


def recipe_of(view: str) -> str:
    """By which recipe a view is made: `weak_2` is a weak one, drawn for itself."""
    return view.partition("_")[0]


def says_of_ranks(cls: type) -> bool:
    """Whether a part says itself what it needs. A plug-in that inherits that from a part of kdrun has not been asked
    how it is computed over ranks."""
    told = next(base for base in cls.__mro__ if "needs" in vars(base))
    return _is_ours(cls) or not _is_ours(told)


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def _union(one: tuple[T, ...], other: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys((*one, *other)))


def refuse_gone(cls: type, gone: Mapping[str, str], page: str) -> None:
    """Refuse a plug-in written for an older contract.

    Args:
        gone: member that is no longer there -> what it is now.
        page: that tells how such a class is written.

    Raises:
        ConfigError: one line with each member that `cls` itself defines.
    """
    old = [f"{name} is now {gone[name]}" for name in vars(cls) if name in gone]
    if old:
        raise ConfigError(f"{cls.__qualname__}: written for an older kdrun: {'; '.join(old)}; see {page}")
