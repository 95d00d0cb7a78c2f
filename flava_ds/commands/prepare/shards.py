"""What the actions of `flava-ds prepare` accept as shards."""

SHARDS = "folder, .tar or brace pattern"
