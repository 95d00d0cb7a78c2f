"""The language filter on short captions as photographers write them, and the way out when its library is
missing.
"""

import sys

import pytest

from flava_ds.errors import DataError
from flava_ds.prepare.english import english_filter

ENGLISH = [
    *(
        "my vacation in the mountains",
        "sunset over the lake at the cabin",
        "Taken at the zoo with my new lens",
        "a red car parked outside the house",
    ),
    *(
        "Dinner with friends in San Francisco",
        "Our dog playing in the snow",
        "View from Tower Bridge, London",
        "Happy birthday to my little sister",
    ),
    *(
        "flower macro shot in the garden",
        "NEW YORK CITY SKYLINE BY NIGHT",
        "Paris - Eiffel tower in the rain",
        "the boys at the beach",
    ),
]
OTHERS = [
    *(
        "coucher de soleil sur la plage",
        "Vue sur la Tour Eiffel",
        "Blick vom Turm auf die Stadt",
        "Unser Urlaub in den Bergen",
        "Mi viaje por los Andes",
    ),
    *(
        "puesta de sol en la playa",
        "Gita al lago con gli amici",
        "Passeio de barco no rio",
        "Een mooie dag aan het strand",
        "Zachód słońca nad morzem",
    ),
    *(
        "東京タワーの夜景です",
        "Вид на город с башни",
        "北京的秋天很美",
        "Solnedgång över sjön vid stugan",
        "Deniz kenarında güneş batıyor",
    ),
]


def test_tells_english_captions_from_others():
    pytest.importorskip("py3langid")
    is_english = english_filter()
    assert [text for text in ENGLISH if not is_english(text)] == [] and [
        text for text in OTHERS if is_english(text)
    ] == []


def test_missing_library_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    english_filter.cache_clear()
    with pytest.raises(DataError, match=r"pip install 'flava_ds\[prepare\]'"):
        english_filter()
