"""Tasks: one file per data set or benchmark, each with a tuple TASKS. The registry finds every file here."""
