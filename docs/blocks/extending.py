"""docs/extending.md: what an outsider writes, cut out of the tests that train it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

STRANGERS = Path("tests") / "strangers"


def definitions(file: str, *names: str) -> Callable[[Path], str]:
    """Returns a block with the source of some classes and functions, in the file's order."""

    def block(root: Path) -> str:
        source = (root / STRANGERS / file).read_text(encoding="utf-8")
        lines, found = source.splitlines(), []
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in names:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                found.append("\n".join(lines[first - 1 : node.end_lineno]))
        if len(found) != len(names):
            raise SystemExit(f"error: {STRANGERS / file} does not define all of {', '.join(names)}")
        return _python("\n\n\n".join(found))

    return block


def recipe(root: Path) -> str:
    """Returns a block with the file that the recipe's test writes."""
    for node in ast.parse((root / STRANGERS / "test_recipe.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RECIPE":
            return _python(ast.literal_eval(node.value).strip())
    raise SystemExit(f"error: {STRANGERS / 'test_recipe.py'} has no RECIPE")


def _python(code: str) -> str:
    return f"```python\n{code}\n```\n"


BLOCKS = {
    "family": definitions(
        "test_family.py", "TowersConfig", "Vectors", "Words", "Towers", "TowersTask", "Offered"
    ),
    "objective": definitions("test_distillation.py", "DistillationConfig", "NoisyCrops", "Distillation"),
    "states": definitions("test_distillation.py", "Teacher", "Centre"),
    "pooled_objective": definitions("test_pooled_objective.py", "UniformityConfig", "Uniformity"),
    "optimizer": definitions("test_optimizer.py", "HeavyBallConfig", "HeavyBall"),
    "source": definitions("test_source.py", "SquaresConfig", "Squares"),
    "evaluator": definitions("test_evaluator.py", "Patterns", "Twins"),
    "sink": definitions("test_sink.py", "TableConfig", "Table", "rows_of"),
    "recipe": recipe,
}
