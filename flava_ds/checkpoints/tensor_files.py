"""The names of storage/tensor_files.py that evaluation/tuning imports from here."""

from flava_ds.storage.tensor_files import TensorFile, write_tensors

__all__ = ["TensorFile", "write_tensors"]
