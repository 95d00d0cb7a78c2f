"""Tasks: one file per data set, each with a tuple TASKS. The registry finds every file here."""
