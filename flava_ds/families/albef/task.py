"""ALBEF with its objectives and its teacher: construction, and the FLOPs of its batches."""

from __future__ import annotations

from collections.abc import Iterator

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.families.albef.config import AlbefConfig
from flava_ds.families.albef.model import Albef, initialize
from flava_ds.families.albef.teacher import AlbefTeacher
from flava_ds.families.building import seeded, terms
from flava_ds.layers.work import cross_attention_flops, encoder_flops, head_flops, patch_flops
from flava_ds.objectives.distilled_text import DistilledText
from flava_ds.objectives.hard_matching import HardNegatives
from flava_ds.objectives.masked_text import MaskedLanguageModeling
from flava_ds.training.task import Pass, Task, built_objectives


class AlbefTask(Task):
    """ALBEF, its objectives, and the teacher that follows both."""

    def __init__(self, config: Config) -> None:
        objectives = built_objectives(config)
        super().__init__(Albef(AlbefConfig.of(config)), objectives)
        self.config = config

    def follow(self) -> None:
        """Adds the teacher, a copy of the weights as they are drawn; negatives are chosen last."""
        distilled = {name: own for name, own in self.objectives.items() if isinstance(own, DistilledText)}
        name, own = next(iter(distilled.items()), ("", None))
        momentum = AlbefConfig.of(self.config).teacher_momentum
        teacher = AlbefTeacher(self.model, None if own is None else own.head, name, momentum)
        last = {key: state for key, state in self.states.items() if isinstance(state, HardNegatives)}
        others = {key: state for key, state in self.states.items() if key not in last}
        self.states = {"teacher": teacher, **others, **last}

    def passes(self, batch: Batch) -> Iterator[Pass]:
        """Lists a batch's work, without lookups, norms and losses.

        Another sample's texts are taken to be as long as the batch's own.
        """
        active = self.active(batch.kind).values()
        views = set().union(*(own.needs for own in active))
        masked = terms(self, batch, MaskedLanguageModeling)
        yield from self._encoders(batch, views, masked)
        width = AlbefConfig.of(self.config).fusion.hidden_size
        yield Pass("mlm", masked * head_flops(width, AlbefConfig.of(self.config).text.vocab_size))
        if "multimodal" in views:
            yield Pass("itm", 3 * batch.size * 2 * width * 2)

    def target_flops(self, batch: Batch) -> float:
        """Counts the teacher, which encodes the pairs and, for a distilled objective, the masked texts."""
        teacher = self.states["teacher"]
        assert isinstance(teacher, AlbefTeacher)
        masked = batch["mlm_rows"].shape[0] if teacher.predicts else 0
        views = {"image", "text"} | ({"multimodal_masked"} if teacher.predicts else set())
        model = AlbefConfig.of(self.config)
        head = masked * head_flops(model.fusion.hidden_size, model.text.vocab_size)
        return head + sum(part.flops for part in self._encoders(batch, views, masked))

    def _encoders(self, batch: Batch, views: set[str], masked: int) -> Iterator[Pass]:
        model, size = AlbefConfig.of(self.config), batch.size
        image, text, fusion = model.image, model.text, model.fusion
        lengths, rows = batch["cu_seqlens"].diff().tolist(), 1 + model.image.num_patches
        matching = "multimodal" in views
        images = size * (1 + matching)
        yield Pass("patch_embedding", patch_flops(image, images * image.num_patches))
        fused = matching or "multimodal_masked" in views
        yield Pass("image_encoder", encoder_flops(image, [rows] * images, None if fused else size))
        if "text" in views or matching:
            yield Pass(
                "text_encoder", encoder_flops(text, lengths * (1 + matching), None if matching else size)
            )
        if "multimodal_masked" in views:
            yield Pass("text_encoder", encoder_flops(text, lengths))
            yield Pass(
                "multimodal_masked",
                encoder_flops(fusion, lengths, masked) + cross_attention_flops(fusion, lengths, rows, masked),
            )
        if matching:
            yield Pass(
                "multimodal",
                encoder_flops(fusion, lengths * 3, 3 * size)
                + cross_attention_flops(fusion, lengths * 3, rows, 3 * size),
            )
        yield Pass("projections", 2 * size * model.projection_dim * (image.hidden_size + text.hidden_size))


def build_task(config: Config) -> AlbefTask:
    """Builds ALBEF and its objectives, initialised from config.seed, independent of the global generator."""
    task = seeded(AlbefTask, config, lambda task: initialize(task, AlbefConfig.of(config).initializer_range))
    task.follow()
    return task
