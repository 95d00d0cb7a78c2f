"""The objectives: one file each, with config, corruption, head, loss and the names of its metrics."""
