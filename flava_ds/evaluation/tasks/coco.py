"""COCO captions, Karpathy's split: 5,000 images of val2014, five captions each (paper: Table C.1)."""

from flava_ds.evaluation.datasets.karpathy import KarpathySplit
from flava_ds.evaluation.retrieval import MatchingRetrieval, Retrieval

DATA = KarpathySplit(
    name="coco",
    folder="coco",
    licence="annotations CC-BY-4.0; the photographs under Flickr's terms of use",
    origin=(
        "by hand: val2014.zip (6 GB; for split train also train2014.zip, 13 GB) from the COCO page, and "
        "dataset_coco.json from Karpathy's caption_datasets.zip"
    ),
    json_name="dataset_coco.json",
    image_folders=(".", "images", "val2014", "train2014"),
    splits=("test", "val", "restval", "train"),
)
TASKS = (Retrieval("coco_retrieval", DATA), MatchingRetrieval("coco_retrieval_matching", DATA))
