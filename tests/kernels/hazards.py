"""Finds in a kernel's source what compiles, or even runs in the interpreter, and goes wrong on a GPU or with another version of Triton."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

POSITIONAL = {"load": 1, "store": 2}
"""Arguments of tl.load and tl.store whose position no version changes."""

LAUNCH_OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}
WAITS = {"item", "tolist", "nonzero", "argwhere", "masked_select", "cpu", "numpy", "synchronize", "unique"}
SHAPES = {"trans", "reshape", "broadcast_to", "expand_dims", "view", "permute"}
ARITHMETIC = {"exp", "exp2", "log", "log2", "sqrt", "rsqrt", "erf", "abs", "fma", "sum", "max", "min", "maximum", "minimum", "sigmoid", "softmax", "cumsum"}
WIDE = {"*fp32", "*i1", "*i8", "*i16", "*i32", "*i64"}

Types = Mapping[str, Mapping[str, set[str]]]
"""Function -> argument -> types that it has in the launches."""


def in_source(source: str, types: Types | None = None) -> list[str]:
    """Lists the hazards of a module as "line: what"; `types` tells integers and fp32 from what has to be upcast."""
    tree = ast.parse(source)
    found = [*_forbidden(tree), *_memory(tree), *_launches(tree)]
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        if _is_kernel(function):
            found += _narrow_arithmetic(function, types or {})
        elif "definition" not in function.name:
            found += _waits(function)
    return [f"{line}: {what}" for line, what in sorted(set(found))]


def _is_kernel(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list)


def _name(call: ast.expr) -> str:
    """The last word of what is called or named."""
    return call.attr if isinstance(call, ast.Attribute) else call.id if isinstance(call, ast.Name) else ""


def _forbidden(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if any("libdevice" in name for name in names):
                yield node.lineno, "libdevice: neither the interpreter nor AMD has it"
        if not isinstance(node, ast.Attribute | ast.Name):
            continue
        name = _name(node)
        if name in ("make_block_ptr", "advance"):
            yield node.lineno, f"{name}: block pointers are gone from Triton 3.9"
        if name == "libdevice":
            yield node.lineno, "libdevice: neither the interpreter nor AMD has it"
        if name.startswith("inline_asm"):
            yield node.lineno, "inline assembly: neither the interpreter nor AMD has it"
        if name.startswith("atomic_"):
            yield node.lineno, f"{name}: results depend on the order of programs"
        if name == "autotune":
            yield node.lineno, "autotune: configurations come from a table"


def _memory(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = _name(call.func)
        if name not in POSITIONAL or not ast.unparse(call.func).startswith("tl."):
            continue
        keywords = {keyword.arg for keyword in call.keywords}
        if len(call.args) > POSITIONAL[name]:
            yield call.lineno, f"tl.{name} with options by position: their order differs between versions"
        if name == "load" and "mask" in keywords and "other" not in keywords:
            yield call.lineno, "a masked tl.load without other: what it gives elsewhere is undefined on a GPU"


def _launches(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)):
        keywords = {keyword.arg for keyword in call.keywords}
        missing = LAUNCH_OPTIONS - keywords
        if missing and None not in keywords:
            yield call.lineno, f"a launch without {', '.join(sorted(missing))}: the defaults differ between versions"


def _waits(function: ast.FunctionDef) -> Iterator[tuple[int, str]]:
    masks = {ast.unparse(node.targets[0]) for node in ast.walk(function) if isinstance(node, ast.Assign) and _is_mask(node.value, set())}
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            name = _name(node.func)
            if name in WAITS and isinstance(node.func, ast.Attribute):
                yield node.lineno, f".{name}() waits for the device"
            if name == "where" and ast.unparse(node.func) == "torch.where" and len(node.args) == 1:
                yield node.lineno, "torch.where of a condition alone waits for the device"
            if name == "repeat_interleave" and "output_size" not in {keyword.arg for keyword in node.keywords}:
                yield node.lineno, "repeat_interleave without output_size waits for the device"
        if isinstance(node, ast.Subscript) and _is_mask(node.slice, masks):
            yield node.lineno, "indexing with truth values waits for the device"


def _is_mask(expression: ast.expr, masks: set[str]) -> bool:
    if isinstance(expression, ast.Tuple):
        return any(_is_mask(part, masks) for part in expression.elts)
    if isinstance(expression, ast.Compare):
        return not all(isinstance(operator, ast.Is | ast.IsNot | ast.In | ast.NotIn) for operator in expression.ops)
    if isinstance(expression, ast.Call):
        return _name(expression.func) in ("bool", "logical_not", "logical_and", "isfinite", "isnan")
    return (isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.Invert)) or ast.unparse(expression) in masks


class _Kernel:
    """Which expressions of a kernel may be bf16 or fp16: what was loaded or cast down and not cast up."""

    def __init__(self, function: ast.FunctionDef, types: Types):
        everywhere: dict[str, set[str]] = {}
        for arguments in types.values():
            for argument, kinds in arguments.items():
                everywhere[argument] = everywhere.get(argument, set()) | kinds
        self.types = types.get(function.name) or everywhere
        self.assigned = {
            target.id: node.value for node in ast.walk(function) if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)
        }

    def narrow(self, expression: ast.expr, seen: frozenset[str] = frozenset()) -> bool:
        """Follows names to what was assigned to them, and shape operations to their argument."""
        if isinstance(expression, ast.Name):
            value = self.assigned.get(expression.id)
            return value is not None and expression.id not in seen and self.narrow(value, seen | {expression.id})
        if isinstance(expression, ast.Subscript):
            return self.narrow(expression.value, seen)
        if isinstance(expression, ast.Attribute):
            return expression.attr == "T" and self.narrow(expression.value, seen)
        if not isinstance(expression, ast.Call):
            return False
        name = _name(expression.func)
        if name == "load":
            kinds = (self.types.get(name, set()) for name in self.names(expression.args[0], frozenset()))
            pointer = next((found for found in kinds if any(kind.startswith("*") for kind in found)), None)
            return pointer is None or not {kind for kind in pointer if kind.startswith("*")} <= WIDE
        if name == "to":
            return ast.unparse(expression.args[0]).endswith(("element_ty", "bfloat16", "float16"))
        if name == "where":
            return any(self.narrow(choice, seen) for choice in expression.args[1:])
        return name in SHAPES and any(self.narrow(argument, seen) for argument in expression.args[:1])

    def names(self, expression: ast.expr, seen: frozenset[str]) -> Iterator[str]:
        """Yields the names that a pointer is computed from, the leftmost first, without what was loaded on the way."""
        for node in ast.iter_child_nodes(expression) if not isinstance(expression, ast.Name) else [expression]:
            if not isinstance(node, ast.Name):
                yield from self.names(node, seen)
            elif node.id not in seen:
                value = self.assigned.get(node.id)
                loaded = isinstance(value, ast.Call) and _name(value.func) == "load"
                yield from [node.id] if value is None or loaded else self.names(value, seen | {node.id})


def _narrow_arithmetic(function: ast.FunctionDef, types: Types) -> Iterator[tuple[int, str]]:
    kernel = _Kernel(function, types)
    for node in ast.walk(function):
        operands: list[ast.expr] = []
        if isinstance(node, ast.BinOp):
            operands = [node.left, node.right]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            operands = [node.operand]
        elif isinstance(node, ast.AugAssign):
            operands = [node.target, node.value]
        elif isinstance(node, ast.Call) and _name(node.func) in ARITHMETIC:
            operands = node.args[:1] if _name(node.func) in ("sum", "max", "min", "softmax", "cumsum") else node.args
        for operand in operands:
            if kernel.narrow(operand):
                yield node.lineno, f"arithmetic on {ast.unparse(operand)} before .to(tl.float32)"
