"""The base configuration of objectives; the rest is in each objective's file under flava_ds/objectives/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.config.variants import Variant
from flava_ds.errors import ConfigError

if TYPE_CHECKING:
    from flava_ds.data.plan import Corruption, Crops

BUILT_IN = {
    "global_contrastive": "flava_ds.objectives.global_contrastive:GlobalContrastiveConfig",
    "local_contrastive": "flava_ds.objectives.local_contrastive:LocalContrastiveConfig",
    "sigmoid_contrastive": "flava_ds.objectives.sigmoid_contrastive:SigmoidContrastiveConfig",
    "mim": "flava_ds.objectives.masked_image:MaskedImageConfig",
    "mlm": "flava_ds.objectives.masked_text:MaskedTextConfig",
    "mmm_image": "flava_ds.objectives.masked_image:MultimodalMaskedImageConfig",
    "joint_mlm": "flava_ds.objectives.masked_text:JointMaskedTextConfig",
    "mmm_text": "flava_ds.objectives.masked_text:MultimodalMaskedTextConfig",
    "itm": "flava_ds.objectives.itm:ImageTextMatchingConfig",
    "dino": "flava_ds.objectives.dino:DinoConfig",
    "simdino": "flava_ds.objectives.simdino:SimdinoConfig",
    "simclr": "flava_ds.objectives.simclr:SimclrConfig",
    "wpa": "flava_ds.objectives.word_patch_alignment:WordPatchAlignmentConfig",
    "itc": "flava_ds.objectives.momentum_contrastive:MomentumContrastiveConfig",
    "itm_hard": "flava_ds.objectives.hard_matching:HardMatchingConfig",
    "mlm_distilled": "flava_ds.objectives.distilled_text:DistilledTextConfig",
    "prefix_lm": "flava_ds.objectives.prefix_lm:PrefixLmConfig",
    "text_prefix_lm": "flava_ds.objectives.prefix_lm:TextPrefixLmConfig",
    "detected_regions": "flava_ds.objectives.detected_regions:DetectedRegionsConfig",
    "sentence_image": "flava_ds.objectives.next_sentence:SentenceImageConfig",
    "tag_contrast": "flava_ds.objectives.tag_contrast:TagContrastConfig",
    "mrfr": "flava_ds.objectives.masked_region_features:MaskedRegionFeaturesConfig",
    "mrc": "flava_ds.objectives.masked_region_classes:MaskedRegionClassesConfig",
    "detection": "flava_ds.objectives.detection:DetectionConfig",
    "classification": "flava_ds.objectives.classification:ClassificationConfig",
    "nsp": "flava_ds.objectives.next_sentence:NextSentenceConfig",
}
"""The built-in objectives by their tag in a configuration."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Variant, built_in=BUILT_IN):
    """One objective of a run. A weight of 0 removes it along with its head and its forward pass."""

    kinds: ClassVar[frozenset[str]]
    """The kinds of step that it takes part in."""
    title: ClassVar[str | None] = None
    """Title of its charts; None takes its name in the configuration."""
    reads_image: ClassVar[bool] = True
    """Whether it reads the whole image, `pixel_values`; False where its crops are all that it needs."""
    predicts_codes: ClassVar[bool] = False
    """Whether its targets are an image codebook's indices."""

    predicts_region_classes: ClassVar[bool] = False
    """Whether its targets are a detector's probabilities of classes for regions."""
    reads_tags: ClassVar[bool] = False
    """Whether it learns from the tags that are stored with regions."""
    drawn_once: ClassVar[tuple[str, ...]] = ()
    """Fields that say how a batch is corrupted, which happens once for all objectives of this class."""
    targets: ClassVar[Literal["labels", "boxes"] | None] = None
    """What it reads of the labels in the shards, of which it has `num_classes`: them, or also their boxes."""

    ignores_padding: ClassVar[bool] = False
    """Whether it leaves out padding where it reads texts or lists of rows (flava_ds/data/padding.py)."""

    weight: Annotated[float, AtLeast(0), AtMost(10**6)] = 1.0
    """Factor of the objective's mean in the loss."""

    def build(self, config: Any) -> Any:
        """Builds the objective with its head for the model of `config`, a Config."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build")

    def views(self, config: Any) -> tuple[str, ...]:
        """Returns the views of the family's model that it reads, as far as its settings tell."""
        own = getattr(self, "view", None)
        return (own,) if isinstance(own, str) else ()

    def classes(self, config: Any) -> int | None:
        """Returns the classes per prediction, from which the loss of guessing follows; None if it varies."""
        return None

    def corruptions(self, config: Any, source: Any) -> tuple[Corruption, ...]:
        """Returns the corruptions that add the objective's own tensors to the batches of `source`.

        `source` is a SourceConfig of `config`. Corruptions that several objectives share, such as the masks
        of FLAVA's masked views, belong to the family's plan.
        """
        return ()

    def crops(self, config: Any, source: Any) -> Mapping[str, Crops]:
        """Returns the crops of each image that its batches of `source` need, by the names of their tensors:
        [b a c S S] uint8, made by the loader from the sample's seed.
        """
        return {}

    @property
    def may_be_negative(self) -> bool:
        """Whether its loss has no floor at zero, so that neither a balance nor the watch for spikes can tell
        how large it is.
        """
        return False

    def check(self, where: str, config: Any) -> None:
        """Raises ConfigError for settings that cannot work in `config`; `where` names the objective."""


def targets_of(objectives: Mapping[str, ObjectiveConfig], kind: str) -> Any:
    """Returns the objective in use that reads the labels of samples in steps of a kind; None if none does."""
    used = in_use(objectives).values()
    return next((own for own in used if own.targets and kind in own.kinds), None)


def corruptions_of(config: Any, source: Any) -> list[Corruption]:
    """Returns the corruptions of the objectives in use that take part in a source's steps."""
    used = (own for own in in_use(config.objectives).values() if source.step_kind in own.kinds)
    return [corruption for own in used for corruption in own.corruptions(config, source)]


def check_drawn_once(objectives: Mapping[str, ObjectiveConfig]) -> None:
    """Raises ConfigError for two objectives that want one batch corrupted in different ways: only the first
    one's settings would count. One with a weight of 0 may still say how.
    """
    for name, own in in_use(objectives).items():
        for other_name, other in objectives.items():
            shared = (vars(base).get("drawn_once") for base in type(own).__mro__ if isinstance(other, base))
            fields = next((found for found in shared if found is not None), ())
            for field in fields if own.kinds & other.kinds else ():
                mine, theirs = getattr(own, field), getattr(other, field)
                if mine != theirs:
                    raise ConfigError(
                        f"objectives.{name}.{field} is {mine} and objectives.{other_name}.{field} is "
                        f"{theirs}, but both read the same corrupted batch; give both the same"
                    )


def check_single(kind: type[ObjectiveConfig], objectives: Mapping[str, ObjectiveConfig], both: str) -> None:
    """Raises ConfigError for several objectives in use of one class; `both` says why they cannot be."""
    names = [f"objectives.{name}" for name, own in in_use(objectives).items() if isinstance(own, kind)]
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(names)} {both}; keep one, and set the other's weight to 0")


def without_floor(objectives: Mapping[str, ObjectiveConfig]) -> str | None:
    """Returns the first objective in use whose loss may be negative; None if no loss can be."""
    return next((name for name, own in in_use(objectives).items() if own.may_be_negative), None)


def check_spikes(factor: float, objectives: Mapping[str, ObjectiveConfig]) -> None:
    """Raises ConfigError for a training.spike_factor that would take usual losses for spikes."""
    if not factor:
        return
    if factor <= 1:
        raise ConfigError(
            f"training.spike_factor {factor:g}: a usual loss would be a spike; give a factor above 1, or 0, "
            "which looks for none"
        )
    if (name := without_floor(objectives)) is not None:
        raise ConfigError(
            f"training.spike_factor {factor:g} compares losses by their ratio, but objectives.{name} may be "
            "negative; leave it out with --training.spike-factor 0"
        )


def in_use(objectives: Mapping[str, ObjectiveConfig]) -> dict[str, ObjectiveConfig]:
    """Returns the objectives with a positive weight."""
    return {name: objective for name, objective in objectives.items() if objective.weight > 0}
