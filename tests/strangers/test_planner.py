"""Strangers' objectives are planned by the same code: a teacher with its corruption, and a pooled loss."""

from flava_kernels.attention import pairs
from stranger_runs import SAMPLES, stranger_config
from test_distillation import CROPS, DistillationConfig
from test_pooled_objective import UniformityConfig

from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.facts import Facts
from flava_ds.scaling.hardware import cluster
from flava_ds.scaling.measure import measure
from flava_ds.scaling.plan import forecast
from flava_ds.scaling.setting import Measured, setting_of


def test_an_objective_with_a_teacher(tmp_path):
    config = stranger_config(tmp_path, name="crops", kind="image", objectives={"crops": DistillationConfig()})
    work = measure(config, lengths_of(config, None), samples=4)
    teacher = work.encoders["image_encoder"]
    assert work.frozen >= teacher and work.used_by("image") >= teacher
    kind, shape = work.kinds["drawings"], config.model.image
    one = pairs(1 + shape.num_patches, False) * 4 * shape.hidden_size * shape.num_hidden_layers
    assert kind.parts["crops"].each > CROPS * one and kind.codebook_flops.each > one, "the teacher runs, too"
    assert kind.batch_bytes.each > CROPS * 3 * shape.image_size**2


def test_a_pooled_objective_grows_with_the_global_batch(tmp_path):
    config = stranger_config(tmp_path, name="uniformity", objectives={"uniformity": UniformityConfig()})
    measured = Measured(config, lengths_of(config, None))
    setting = setting_of(Facts.of(config), cluster("h100", 2, None, None), measured)
    work = setting.model.kinds["drawings"]
    width = config.model.projection_dim
    # two matrices of all pairs: of its texts, and of images and texts
    assert sum(o.flops.pair * o.count for o in work.operators if o.phase == "forward") == 2 * 2 * width
    assert work.exchanged["uniformity"].at(SAMPLES) > 0
    assert forecast(setting).times["drawings"].ms["contrastive gather"] > 0
