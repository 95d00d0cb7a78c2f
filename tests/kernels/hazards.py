"""Finds in a kernel's source what compiles, or even runs in the interpreter, and goes wrong on a GPU or with
another version of Triton.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

POSITIONAL = {"load": 1, "store": 2}
"""Arguments of tl.load and tl.store whose position no version changes."""

LAUNCH_OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}
WAITS = {"item", "tolist", "nonzero", "argwhere", "masked_select", "cpu", "numpy", "synchronize", "unique"}
SHAPES = {"trans", "reshape", "broadcast_to", "expand_dims", "view", "permute"}
ARITHMETIC = {
    "exp",
    "exp2",
    "log",
    "log2",
    "sqrt",
    "rsqrt",
    "erf",
    "abs",
    "fma",
    "sum",
    "max",
    "min",
    "maximum",
    "minimum",
    "sigmoid",
    "softmax",
    "cumsum",
}
REDUCTIONS = {
    "sum",
    "max",
    "min",
    "mean",
    "any",
    "all",
    "amax",
    "amin",
    "argmax",
    "argmin",
    "prod",
    "norm",
    "count_nonzero",
}
"""Methods whose result a host that asks float(), int() or `if` about it has to wait for."""
WIDE = {"*fp32", "*i1", "*i8", "*i16", "*i32", "*i64"}

Types = Mapping[str, Mapping[str, set[str]]]
"""Function -> argument -> types that it has in the launches."""


def in_source(source: str, types: Types | None = None) -> list[str]:
    """Lists the hazards of a module as "line: what"; `types` tells integers and fp32 from what has to be
    upcast.
    """
    tree = ast.parse(source)
    found = [*_forbidden(tree), *_memory(tree), *_launches(tree)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    kernels = {
        function.name: _Kernel(function, types or {}) for function in functions if _is_kernel(function)
    }
    _pass_on_narrow_arguments(kernels)
    on_a_cpu = _eager_methods(tree)
    for function in functions:
        if _is_kernel(function):
            found += [*_narrow_arithmetic(kernels[function.name]), *_unordered_memory(kernels[function.name])]
        elif "definition" not in function.name and function not in on_a_cpu and not _asks_first(function):
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
    for call in (
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    ):
        keywords = {keyword.arg for keyword in call.keywords}
        missing = LAUNCH_OPTIONS - keywords
        if missing and None not in keywords:
            yield (
                call.lineno,
                f"a launch without {', '.join(sorted(missing))}: the defaults differ between versions",
            )


def _waits(function: ast.FunctionDef) -> Iterator[tuple[int, str]]:
    masks = {
        ast.unparse(node.targets[0])
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and _is_mask(node.value, set())
    }
    on_a_cpu = {
        part
        for node in ast.walk(function)
        if _asks_for_a_cpu(node)
        for statement in node.body
        for part in ast.walk(statement)
    }
    for node in ast.walk(function):
        if node in on_a_cpu:  # there is nothing to wait for
            continue
        if isinstance(node, ast.Call):
            name = _name(node.func)
            if name in WAITS and isinstance(node.func, ast.Attribute):
                yield node.lineno, f".{name}() waits for the device"
            if name == "where" and ast.unparse(node.func) == "torch.where" and len(node.args) == 1:
                yield node.lineno, "torch.where of a condition alone waits for the device"
            if name == "repeat_interleave" and "output_size" not in {
                keyword.arg for keyword in node.keywords
            }:
                yield node.lineno, "repeat_interleave without output_size waits for the device"
        if isinstance(node, ast.Subscript) and _is_mask(node.slice, masks):
            yield node.lineno, "indexing with truth values waits for the device"
        asked = node.test if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert) else None
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("float", "int", "bool")
            and node.args
        ):
            asked = node.args[0]
        if asked is not None and any(_is_reduction(part) for part in ast.walk(asked)):
            yield node.lineno, f"asking for the value of {ast.unparse(asked)} waits for the device"


def _eager_methods(tree: ast.Module) -> set[ast.AST]:
    """What autograd functions of references do: `dispatch.needs_custom_operator` gives them tensors of a CPU
    alone.
    """
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and "Eager" in node.name)
    return {part for node in classes for part in ast.walk(node)}


def _asks_first(function: ast.FunctionDef) -> bool:
    """True for checks (checks.py), which return before they read values that are not on the host, unless
    FLAVA_KERNELS_CHECK=1.
    """
    return any(
        isinstance(node, ast.If)
        and ast.unparse(node.test).startswith("not readable(")
        and isinstance(node.body[0], ast.Return)
        for node in function.body[:2]
    )


def _asks_for_a_cpu(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith(".device.type == 'cpu'")


def _is_reduction(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in REDUCTIONS
    )


def _is_mask(expression: ast.expr, masks: set[str]) -> bool:
    if isinstance(expression, ast.Tuple):
        return any(_is_mask(part, masks) for part in expression.elts)
    if isinstance(expression, ast.Compare):
        return not all(
            isinstance(operator, ast.Is | ast.IsNot | ast.In | ast.NotIn) for operator in expression.ops
        )
    if isinstance(expression, ast.Call):
        return _name(expression.func) in ("bool", "logical_not", "logical_and", "isfinite", "isnan")
    return (isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.Invert)) or ast.unparse(
        expression
    ) in masks


class _Kernel:
    """Which expressions of a kernel may be bf16 or fp16: what was loaded or cast down and not cast up, and
    parameters that get such a value.
    """

    def __init__(self, function: ast.FunctionDef, types: Types):
        everywhere: dict[str, set[str]] = {}
        for arguments in types.values():
            for argument, kinds in arguments.items():
                everywhere[argument] = everywhere.get(argument, set()) | kinds
        self.function = function
        self.parameters = [argument.arg for argument in function.args.args]
        self.narrow_parameters: set[str] = set()
        self.types = types.get(function.name) or everywhere
        self.assigned: dict[str, list[tuple[int, ast.expr]]] = {}
        for node in (node for node in ast.walk(function) if isinstance(node, ast.Assign)):
            for target in node.targets:
                several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                for name, value in (
                    zip(target.elts, node.value.elts, strict=True) if several else [(target, node.value)]
                ):
                    if isinstance(name, ast.Name):
                        self.assigned.setdefault(name.id, []).append((node.lineno, value))

    def value_of(self, name: ast.Name) -> ast.expr | None:
        """What was last assigned above a name's use, or, in a loop, below it; None for parameters."""
        found = sorted(self.assigned.get(name.id, []), key=lambda pair: pair[0])
        above = [value for line, value in found if line < name.lineno]
        if above or name.id in self.parameters:
            return above[-1] if above else None
        return found[-1][1] if found else None

    def narrow(self, expression: ast.expr, seen: frozenset[int] = frozenset()) -> bool:
        """Follows names to what was assigned to them, and shape operations to their argument."""
        if isinstance(expression, ast.Name):
            value = self.value_of(expression)
            if value is None:
                return expression.id in self.narrow_parameters
            return id(value) not in seen and self.narrow(value, seen | {id(value)})
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
        """Yields the names that a pointer is computed from, the leftmost first, without what was loaded on
        the way.
        """
        for node in (
            ast.iter_child_nodes(expression) if not isinstance(expression, ast.Name) else [expression]
        ):
            if not isinstance(node, ast.Name):
                yield from self.names(node, seen)
            elif node.id not in seen:
                value = self.value_of(node)
                loaded = isinstance(value, ast.Call) and _name(value.func) == "load"
                yield from [node.id] if value is None or loaded else self.names(value, seen | {node.id})


def _pass_on_narrow_arguments(kernels: Mapping[str, _Kernel]) -> None:
    """Marks the parameters of helpers that a caller gives 16-bit values, until no call adds one."""
    calls = [
        (kernel, call)
        for kernel in kernels.values()
        for call in ast.walk(kernel.function)
        if isinstance(call, ast.Call) and _name(call.func) in kernels
    ]
    changed = True
    while changed:
        changed = False
        for caller, call in calls:
            helper = kernels[_name(call.func)]
            given = [
                *zip(helper.parameters, call.args, strict=False),
                *((keyword.arg, keyword.value) for keyword in call.keywords),
            ]
            found = {name for name, value in given if caller.narrow(value)} - helper.narrow_parameters
            helper.narrow_parameters |= found
            changed = changed or bool(found)


def _unordered_memory(kernel: _Kernel) -> Iterator[tuple[int, str]]:
    """A pass of an outer loop may load what another thread stored in the pass before: only a barrier orders
    the two.
    """
    for outer in (node for node in ast.walk(kernel.function) if isinstance(node, ast.For)):
        calls = [call for call in ast.walk(outer) if isinstance(call, ast.Call)]
        if any(_name(call.func) == "debug_barrier" for call in calls):
            continue
        for inner in (node for node in ast.walk(outer) if isinstance(node, ast.For) and node is not outer):
            within = [
                call
                for call in ast.walk(inner)
                if isinstance(call, ast.Call) and ast.unparse(call.func) in ("tl.load", "tl.store")
            ]
            places = {"load": set(), "store": set()}
            for call in within:
                places[_name(call.func)] |= {next(kernel.names(call.args[0], frozenset()), "")}
            for name in sorted(places["load"] & places["store"]):
                yield (
                    inner.lineno,
                    (
                        f"{name} is stored and loaded again in a later pass of the loop around it without "
                        "tl.debug_barrier()"
                    ),
                )


def _narrow_arithmetic(kernel: _Kernel) -> Iterator[tuple[int, str]]:
    for node in ast.walk(kernel.function):
        operands: list[ast.expr] = []
        if isinstance(node, ast.BinOp):
            operands = [node.left, node.right]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            operands = [node.operand]
        elif isinstance(node, ast.AugAssign):
            operands = [node.target, node.value]
        elif isinstance(node, ast.Call) and _name(node.func) in ARITHMETIC:
            operands = (
                node.args[:1] if _name(node.func) in ("sum", "max", "min", "softmax", "cumsum") else node.args
            )
        for operand in operands:
            if kernel.narrow(operand):
                yield node.lineno, f"arithmetic on {ast.unparse(operand)} before .to(tl.float32)"
