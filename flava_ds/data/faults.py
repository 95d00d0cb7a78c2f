"""The reasons for which a sample cannot be used. Each is counted under its words, logged, and the sample replaced."""


class SampleFault(Exception):
    """An unusable sample; `reason` is one of a small set of words, `detail` tells what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


TRUNCATED = "truncated"
UNDECODABLE = "undecodable"
TOO_MANY_PIXELS = "too many pixels"
TOO_MANY_BYTES = "too many bytes"
NO_IMAGE = "no image"
MISSING_CAPTION = "missing caption"
EMPTY_CAPTION = "empty caption"
NOT_UTF8 = "not utf-8"
BAD_CODES = "bad image codes"
SKIP_LIST = "skip list"
"""The one reason that is intended: it never stops a run."""
