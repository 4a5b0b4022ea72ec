"""The source keeps its shape: functions and modules that fit on a screen, and each option written in one place."""

import ast
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import rectilinear
from rectilinear.cli.main import COMMANDS

SOURCE = Path(rectilinear.__file__).parent
TREES = {
    file.relative_to(SOURCE).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in SOURCE.rglob("*.py")
}

#: Options of one name that are something else in other commands: each has a doc, a type and a default of its own.
HOMONYMS = {
    "batch_size",  # rows of a forward pass; of a process; examples of a step
    "blocks",  # where they are; which to replace
    "count",  # of blocks; of stories
    "data",  # of questions; of tasks of the harness
    "device",  # where to run; where to train
    "dtype",  # of weights; of products
    "epochs",  # over a text; over examples
    "folds",  # of scores; of ridges; of penalties
    "learning_rate",  # of the preset; of fine-tuning
    "max_tokens",  # of a text to measure, to pretrain on, to fit on
    "seq_len",  # of these; of questions
    "target",  # of which several are measured; of which one is replaced
    "text",  # to measure on; to profile a training on
    "tokenizer",  # of a text; of a decoder that is trained
}

#: Types of parameters that public functions and commands have beside their settings.
SHARED_TYPES = {"BatchSize"}


def functions():
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{name} {node.name}", node


def parameters(function):
    """Its parameters, without the object that a method is of."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    found = [*named, *filter(None, (arguments.vararg, arguments.kwarg))]
    return found[1:] if found and found[0].arg in ("self", "cls") else found


def test_no_function_has_more_than_8_parameters():
    assert [where for where, function in functions() if len(parameters(function)) > 8] == []


def test_no_function_is_longer_than_60_lines():
    assert [where for where, function in functions() if function.end_lineno - function.lineno >= 60] == []


def test_no_module_is_longer_than_300_lines():
    lengths = {name: len((SOURCE / name).read_text(encoding="utf-8").splitlines()) for name in TREES}
    assert [name for name, length in lengths.items() if length > 300] == []


class Option(NamedTuple):
    """An option as it is written somewhere.

    Attributes:
        name: of the field or parameter.
        home: the class or command that has it, and those that the class inherits from.
        doc: the sentence that says what it is; None where there is none.
    """

    name: str
    home: tuple[str, ...]
    doc: str | None


def settings_classes():
    """Classes that derive from `Settings`, each with the names of itself and of those between."""
    lines, found = {"Settings": ()}, {}
    classes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while more := [
        node
        for node in classes
        if node.name not in lines and any(isinstance(base, ast.Name) and base.id in lines for base in node.bases)
    ]:
        for node in more:
            bases = [lines[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in lines]
            lines[node.name] = (node.name, *(name for line in bases for name in line))
            found[node.name] = node, lines[node.name]
    return found


def fields():
    """The options that are fields of settings, with their docs."""
    for node, line in settings_classes().values():
        for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(statement.annotation):
                docs = [after.value] if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else []
                docs += [k.value for k in getattr(statement.value, "keywords", ()) if k.arg == "description"]
                yield Option(statement.target.id, line, ast.unparse(docs[0]) if docs else None)


def help_in(node):
    """The help texts in annotations, as ``Parameter(help=...)`` has them."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Parameter":
            yield from (ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "help")


def command_parameters():
    """The options that commands have beside their settings."""
    for name in COMMANDS:
        [command] = [n for n in TREES[f"cli/{name}.py"].body if isinstance(n, ast.FunctionDef) and n.name == name]
        for parameter in parameters(command):
            kind = ast.unparse(parameter.annotation)
            if "Options[" not in kind:  # those are settings
                yield Option(parameter.arg, (name,), next(help_in(parameter.annotation), None))


def test_each_option_is_described():
    inherited = {(option.name, option.home[0]) for option in fields() if option.doc}
    for option in fields():
        assert any((option.name, above) in inherited for above in option.home), option


def test_the_name_of_an_option_is_in_one_place():
    """A subclass may have another default; commands share parameters by the names of their annotations."""
    several = {
        one.name
        for one, other in combinations(fields(), 2)
        if one.name == other.name and one.home[0] not in other.home and other.home[0] not in one.home
    }
    names = {option.name for option in fields()}
    several |= {option.name for option in command_parameters() if option.name in names}
    described = Counter(option.name for option in command_parameters() if option.doc)
    several |= {name for name, times in described.items() if times > 1}
    assert several == HOMONYMS


def test_the_doc_of_an_option_is_in_one_place():
    shared = [text for name, tree in TREES.items() if name.startswith("cli/") for text in help_in(tree)]
    docs = Counter([option.doc for option in fields() if option.doc] + shared)
    assert [doc for doc, times in docs.items() if times > 1] == []


def assignments(node):
    """The fields of a class that have a default."""
    return {n.target.id: ast.unparse(n.value) for n in node.body if isinstance(n, ast.AnnAssign) and n.value}


def test_a_subclass_has_another_default_or_none():
    for node, line in settings_classes().values():
        for above in line[1:]:
            assert assignments(node).items().isdisjoint(assignments(settings_classes()[above][0]).items()), line


def test_the_default_of_an_option_is_in_one_place():
    """Commands have no defaults but those of settings; parameters of a type that they share have one in all of src."""
    shared = {}
    for where, function in functions():
        keywords = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        for parameter, default in ((p, ast.unparse(d)) for p, d in keywords if d and p.annotation):
            kind = ast.unparse(parameter.annotation).removesuffix("Option")
            if kind in SHARED_TYPES:
                assert shared.setdefault(kind, default) == default, where
            elif where in {f"cli/{name}.py {name}" for name in COMMANDS}:
                assert default in ("None", "False", "()") or default.endswith("()"), (where, default)
    assert shared.keys() == SHARED_TYPES


def test_no_architecture_is_named():
    """No string or name in the package is a model type, or a class of an architecture, of transformers."""
    from transformers.models.auto import configuration_auto, modeling_auto

    mappings = [value for name, value in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]
    classes = {
        name
        for mapping in mappings
        for value in mapping.values()
        for name in ([value] * isinstance(value, str) or value)
    }
    named = {*configuration_auto.CONFIG_MAPPING_NAMES, *configuration_auto.CONFIG_MAPPING_NAMES.values(), *classes}
    allowed = {"superglue"}  # tasks, which a model that matches images is called after
    found = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            words = [getattr(node, name, None) for name in ("value", "id", "attr", "name")]
            found += [f"{file}: {word}" for word in words if isinstance(word, str) and word in named - allowed]
    assert [place for place in found if not place.startswith("training/presets.py")] == []
