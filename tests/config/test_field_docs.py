"""The strings below fields, as their source has them."""

from flava_ds.config.field_docs import field_docs


class Base:
    """A base."""

    one: int = 1
    """Said here."""
    two: int = 2
    """Said here, too."""


class Derived(Base):
    """A class that annotates a field again."""

    one: int = 3
    two: int = 4
    """Said anew,
    on two lines."""
    three: int = 5


def test_field_docs_are_inherited_and_replaced():
    assert field_docs(Derived) == {"one": "Said here.", "two": "Said anew, on two lines."}
    assert field_docs(type("Made", (), {"__annotations__": {"x": int}})) == {}
