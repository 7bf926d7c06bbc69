"""Analyse a template: which variables it uses, and how."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from jinja2 import meta, nodes

__all__ = ["VariableUse", "read_variable_uses"]

_NUMERIC_FILTERS = frozenset({"round", "abs", "int", "float", "filesizeformat"})
_LIST_FILTERS = frozenset({"join", "length", "count", "sort", "reverse", "list", "unique", "map", "select", "batch"})
_SAME_FILTERS = frozenset({"sort", "reverse", "list", "unique", "select", "selectattr", "reject", "rejectattr"})
_ARITHMETIC = (nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow, nodes.Neg)


@dataclass(slots=True)
class VariableUse:
    """How templates use a variable: the attributes they read, and whether they iterate, call or calculate with it."""

    name: str
    is_item: bool = False  # a list's item
    item_of: str = ""  # for an attribute of a list's item: the item's name
    attributes: dict[str, "VariableUse"] = field(default_factory=dict)
    element: "VariableUse | None" = None
    result: "VariableUse | None" = None
    number: bool = False
    equal_to: object = None

    def attribute(self, name: str) -> "VariableUse":
        """Return the use of an attribute, or of an item with a name."""
        return self.attributes.setdefault(name, VariableUse(name, item_of=self.name if self.is_item else ""))

    def item(self) -> "VariableUse":
        """Return the use of the items, if the variable is a list."""
        if self.element is None:
            name = self.name[:-1] if self.name.endswith("s") and len(self.name) > 1 else self.name
            self.element = VariableUse(name, is_item=True)
        return self.element


def read_variable_uses(trees: Iterable[nodes.Template], known: Iterable[str] = ()) -> dict[str, VariableUse]:
    """Return how templates use each variable of their context, by name. ``known``: names in their environment."""
    uses: dict[str, VariableUse] = {}
    for tree in trees:
        for name in sorted(meta.find_undeclared_variables(tree) - set(known)):
            uses.setdefault(name, VariableUse(name))
        _Reader(uses).statements(tree.body, {})
    return uses


class _Reader:
    """Walks statements and records how they use each variable."""

    def __init__(self, uses: Mapping[str, VariableUse]) -> None:
        self._uses = uses

    def statements(self, body: Iterable[nodes.Node], scope: dict[str, VariableUse | None]) -> None:
        for node in body:
            self._statement(node, scope)

    def _statement(self, node: nodes.Node, scope: dict[str, VariableUse | None]) -> None:
        if isinstance(node, nodes.For):
            inner = {**scope, "loop": None}
            self._bind(node.target, self.read(node.iter, scope), inner)
            self._read_all(node.iter_child_nodes(exclude=("target", "iter", "body", "else_")), inner)
            self.statements(node.body, inner)
            self.statements(node.else_, dict(scope))
        elif isinstance(node, nodes.Assign):
            use = self.read(node.node, scope)
            scope |= {name.name: use for name in _names(node.target)}
        elif isinstance(node, nodes.Macro | nodes.CallBlock):
            inner = {**scope, **{argument.name: None for argument in node.args}}
            self._read_all(node.iter_child_nodes(exclude=("args", "body")), scope)
            self.statements(node.body, inner)
        elif isinstance(node, nodes.With):
            values = [self.read(value, scope) for value in node.values]
            inner = dict(scope)
            for target, value in zip(node.targets, values, strict=True):
                inner |= {name.name: value for name in _names(target)}
            self.statements(node.body, inner)
        elif isinstance(node, nodes.Expr):
            self.read(node, scope)
        else:
            self.statements(node.iter_child_nodes(), scope)

    def _bind(self, target: nodes.Node, use: VariableUse | None, scope: dict[str, VariableUse | None]) -> None:
        if use is not None and isinstance(target, nodes.Name):
            scope[target.name] = use.item()
        else:
            scope |= {name.name: None for name in _names(target)}

    def _read_all(self, children: Iterable[nodes.Node], scope: dict[str, VariableUse | None]) -> None:
        for child in children:
            self.read(child, scope)

    def read(self, node: nodes.Node, scope: dict[str, VariableUse | None]) -> VariableUse | None:
        """Record an expression's uses; return the use that it stands for, or None if it is not a variable's value."""
        if isinstance(node, nodes.Name):
            return scope[node.name] if node.name in scope else self._uses.get(node.name)
        if isinstance(node, nodes.Getattr):
            base = self.read(node.node, scope)
            return None if base is None else base.attribute(node.attr)
        if isinstance(node, nodes.Getitem):
            return self._item(node, scope)
        if isinstance(node, nodes.Call):
            return self._call(node, scope)
        if isinstance(node, nodes.Filter):
            return self._filter(node, scope)
        if isinstance(node, nodes.Compare):
            self._compare(node, scope)
        elif isinstance(node, _ARITHMETIC):
            self._calculate(node, scope)
        else:
            self._read_all(node.iter_child_nodes(), scope)
        return None

    def _item(self, node: nodes.Getitem, scope: dict[str, VariableUse | None]) -> VariableUse | None:
        base = self.read(node.node, scope)
        if base is None or not isinstance(node.arg, nodes.Const):
            self.read(node.arg, scope)
            return None
        return base.attribute(node.arg.value) if isinstance(node.arg.value, str) else base.item()

    def _call(self, node: nodes.Call, scope: dict[str, VariableUse | None]) -> VariableUse | None:
        function = self.read(node.node, scope)
        self._read_all((*node.args, *node.kwargs), scope)
        if function is None:
            return None
        if function.result is None:
            function.result = VariableUse(function.name)
        return function.result

    def _filter(self, node: nodes.Filter, scope: dict[str, VariableUse | None]) -> VariableUse | None:
        use = None if node.node is None else self.read(node.node, scope)
        self._read_all((*node.args, *node.kwargs), scope)
        if node.name == "format" and isinstance(node.node, nodes.Const):
            for argument in node.args:
                if (value := self.read(argument, scope)) is not None:
                    value.number = "%s" not in str(node.node.value)
        if use is None:
            return None
        if node.name in _NUMERIC_FILTERS:
            use.number = True
        elif node.name in ("first", "last", "random"):
            return use.item()
        elif node.name in _LIST_FILTERS and not (node.name in ("length", "count") and use.attributes):
            use.item()
        return use if node.name in _SAME_FILTERS else None

    def _compare(self, node: nodes.Compare, scope: dict[str, VariableUse | None]) -> None:
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        uses = [self.read(side, scope) for side in sides]
        constants = [side.value for side in sides if isinstance(side, nodes.Const)]
        for use in uses:
            if use is None or not constants:
                continue
            if isinstance(constants[0], int | float) and not isinstance(constants[0], bool):
                use.number = True
            elif node.ops[0].op == "eq" and use.equal_to is None:
                use.equal_to = constants[0]

    def _calculate(self, node: nodes.Node, scope: dict[str, VariableUse | None]) -> None:
        sides = list(node.iter_child_nodes())
        text = any(isinstance(side, nodes.Const) and isinstance(side.value, str) for side in sides)
        for side in sides:
            use = self.read(side, scope)
            if use is not None and not text:
                use.number = True


def _names(target: nodes.Node) -> Iterator[nodes.Name]:
    if isinstance(target, nodes.Name):
        yield target
    else:
        yield from target.find_all(nodes.Name)
