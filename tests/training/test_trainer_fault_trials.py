"""A campaign's faults and moments follow from its seed; each round has every fault."""

import random
from collections import Counter

import fault_trials_disk  # noqa: F401  (adds its faults)
from fault_trials import FAULTS, WEIGHTS, fault_of
from fault_trials_disk import WAYS


class Drawn:
    """What a way to damage a file needs of a trial."""

    draw = random.Random(0)


def test_every_round_has_every_fault_as_often_as_it_weighs():
    size = sum(WEIGHTS.get(fault, 2) for fault in FAULTS)
    rounds = [[fault_of(13, place + size * number) for place in range(size)] for number in range(3)]
    assert all(Counter(faults) == {fault: WEIGHTS.get(fault, 2) for fault in FAULTS} for faults in rounds)
    assert rounds[0] != rounds[1] and rounds[0] == [fault_of(13, place) for place in range(size)]
    assert rounds[0] != [fault_of(14, place) for place in range(size)]


def test_every_damage_changes_the_file(tmp_path):
    """Otherwise its trials would show nothing."""
    for way, damage in WAYS.items():
        path = tmp_path / way
        path.write_bytes(bytes(range(1, 255)) * 40)
        before = path.read_bytes()
        damage(Drawn, path)
        assert not path.exists() or path.read_bytes() != before, way
