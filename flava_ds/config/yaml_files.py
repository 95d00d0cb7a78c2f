"""YAML as a configuration is written in it: plain values, strictly.

PyYAML's safe loader, without what surprises: `1e-4` is a number (YAML 1.1 wants `1.0e-4`), a key may stand
once in a mapping and is text, and aliases, with which a short file can stand for an endless one, are refused.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the rules above."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"line {self.peek_event().start_mark.line + 1}: aliases (*) are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ValueError(f"line {line}: key {key!r:.60} is no text; put it in quotes")
            if key in made:
                raise ValueError(f"line {line}: key '{key}' occurs twice in one mapping")
            made[key] = self.construct_object(value_node, deep=deep)
        return made


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def loads(text: str) -> Any:
    """Reads YAML into JSON's types, and dates.

    Raises: ValueError with the line, where it is none or breaks a rule above.
    """
    try:
        return yaml.load(text, _Loader)  # a safe loader: it makes plain values alone
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise ValueError(f"{line}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("is nested too deeply") from None
