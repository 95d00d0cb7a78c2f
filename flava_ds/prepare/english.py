"""Tells English from other languages with py3langid, an n-gram naive Bayes classifier over 97 languages that
runs at tens of thousands of texts a second.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from flava_ds.errors import DataError


@functools.cache
def english_filter() -> Callable[[str], bool]:
    """Returns the classifier. Texts are lower-cased first, as names in capitals mislead it; its model is an
    .npz of arrays, not a pickle.

    Raises: DataError with the command that installs it.
    Source: Lui and Baldwin, "langid.py" (2012), in the maintained form of Barbaresi.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise DataError(
            "telling English from other languages needs py3langid: pip install 'flava_ds[prepare]'"
        ) from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    return lambda text: identifier.classify(text.lower())[0] == "en"
