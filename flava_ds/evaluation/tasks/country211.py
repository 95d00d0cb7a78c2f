"""Country211: which of 211 countries a photograph was taken in. The paper has its probe (Table C.1)."""

from flava_ds.evaluation.datasets.published_images import PublishedImages, split_in_folders
from flava_ds.evaluation.probe import ImageProbe

DATA = PublishedImages(
    name="country211",
    folder="country211",
    licence="each photograph's own, of Creative Commons (YFCC100M)",
    origin="by hand: country211.tgz (11 GB), linked from CLIP's data/country211.md, unpacked",
    layout="{train,valid,test}/COUNTRY/*.jpg",
    variants=split_in_folders(),
)
TASKS = (ImageProbe("country211_probe", DATA),)
