"""Rendered SST2: whether the sentence in a picture of text is positive.

The paper has its probe (Table C.1).
"""

from flava_ds.evaluation.datasets.published_images import PublishedImages, split_in_folders
from flava_ds.evaluation.probe import ImageProbe

DATA = PublishedImages(
    name="rendered_sst2",
    folder="rendered-sst2",
    licence="none is stated; the sentences are the Stanford Sentiment Treebank's",
    origin="by hand: rendered-sst2.tgz (131 MB), linked from CLIP's data/rendered-sst2.md, unpacked",
    layout="{train,valid,test}/{negative,positive}/*.png",
    variants=split_in_folders("negative", "positive"),
)
TASKS = (ImageProbe("rendered_sst2_probe", DATA),)
