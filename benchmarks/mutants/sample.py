"""Which mutants of a room are tried: the same ones each time, as long as their lines stay as they are."""

import ast
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.plugins import get_operator, operator_names
from cosmic_ray.work_item import MutationSpec

# Of cosmic-ray's mutants, those that are a fault somebody could make. Not: `is` for `==`, whose answer is the same or
# none; a shift for a sum, which raises, so that any test sees it; one more of a large number, which is the same number.
OPERATORS = re.compile(
    r"core/(?:"
    r"ReplaceBinaryOperator_(?:Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(?:Add|Sub|Mul|Div)"
    r"|ReplaceBinaryOperator_(?:BitOr_BitAnd|BitAnd_BitOr)"
    r"|ReplaceComparisonOperator_(?:Eq|NotEq|Lt|LtE|Gt|GtE)_(?:Eq|NotEq|Lt|LtE|Gt|GtE)"
    r"|ReplaceComparisonOperator_(?:Is_IsNot|IsNot_Is)"
    r"|ReplaceUnaryOperator_Delete_(?:USub|Not|Invert)"
    r"|ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd"
    r"|ReplaceBreakWithContinue|ReplaceContinueWithBreak"
    r"|AddNot|ExceptionReplacer|NumberReplacer|RemoveDecorator|ZeroIterationForLoop"
    r")"
)
LARGE = 100
# The room where `name=value` is the look of a picture: sizes, colours, the frame of a legend.
PICTURES = "plots"

Position = tuple[int, int]


def _keywords(tree: ast.Module) -> Sequence[tuple[Position, Position]]:
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
    ]


def _binary_operators(tree: ast.Module) -> Sequence[tuple[Position, Position]]:
    """Between what they stand, but for `X | None` in an annotation."""
    annotations = {
        id(node)
        for owner in ast.walk(tree)
        for name in ("annotation", "returns")
        if (annotation := getattr(owner, name, None)) is not None
        for node in ast.walk(annotation)
    }
    return [
        ((node.left.end_lineno or 0, node.left.end_col_offset or 0), (node.right.lineno, node.right.col_offset))
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and id(node) not in annotations
    ]


def _mutants(module: Path) -> Iterator[tuple[str, MutationSpec]]:
    """Every mutant that a test could see, and its line."""
    source = module.read_text()
    lines, nodes, tree = source.split("\n"), list(ast_nodes(get_ast(source))), ast.parse(source)
    operators, looks = _binary_operators(tree), _keywords(tree) if module.parent.name == PICTURES else []
    for name in filter(OPERATORS.fullmatch, operator_names()):
        positions = (place for node in nodes for place in get_operator(name)().mutation_positions(node))
        for occurrence, (start, end) in enumerate(positions):
            line = lines[start[0] - 1]
            place = start[0], len(line[: start[1]].encode())
            if "BinaryOperator" in name:  # not the `*` among parameters, which cosmic-ray takes for one
                seen = any(first <= place < last for first, last in operators)
            elif "NumberReplacer" in name and abs(ast.literal_eval(line[start[1] : end[1]])) >= LARGE:
                seen = False
            elif "NumberReplacer" in name or "True" in name:
                seen = not any(first <= place < last for first, last in looks)
            else:
                seen = True
            if seen:
                yield line, MutationSpec(module, name, occurrence, start, end)


def _lot(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()


def sample(modules: Sequence[Path], size: int, seed: int) -> list[MutationSpec]:
    """Places of the code by lot, one mutant by lot at each. The lot falls by the line's text, not by its number."""
    places: dict[str, list[tuple[str, MutationSpec]]] = {}
    for module in modules:
        for line, mutation in _mutants(module):
            place = module.name, line.strip(), mutation.start_pos[1] - len(line) + len(line.lstrip())
            mutants = places.setdefault(_lot(seed, *place), [])
            mutants.append((_lot(seed, *place, mutation.operator_name, len(mutants)), mutation))
    return [min(places[place], key=lambda mutant: mutant[0])[1] for place in sorted(places)[:size]]
