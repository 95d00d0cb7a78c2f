"""Flickr30K: 1,000 test images with five captions each (paper: Table C.1)."""

from flava_ds.evaluation.datasets.karpathy import KarpathySplit
from flava_ds.evaluation.retrieval import MatchingRetrieval, Retrieval

DATA = KarpathySplit(
    name="flickr30k",
    folder="flickr30k",
    licence="Flickr's terms of use: research and education, no redistribution",
    origin="by hand: a form on the Flickr30K page of the University of Illinois gives flickr30k-images (4.4 "
    "GB), and dataset_flickr30k.json is in Karpathy's caption_datasets.zip",
    json_name="dataset_flickr30k.json",
    image_folders=("flickr30k-images", "flickr30k_images", "images", "."),
)
TASKS = (Retrieval("flickr30k_retrieval", DATA), MatchingRetrieval("flickr30k_retrieval_matching", DATA))
