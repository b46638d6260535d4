"""YAML as a hyperparameter file may use it: plain data, each field once."""

from __future__ import annotations

import yaml

MAX_BYTES = 64 * 1024


class InvalidYamlError(ValueError):
    """The bytes are not the plain YAML that a hyperparameter file may hold; the text names the line."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases and duplicate fields."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.current_event.start_mark if self.current_event else None
            text = "a word that begins with * needs quotes (YAML's aliases are not allowed)"
            raise yaml.composer.ComposerError(None, None, text, mark)
        return super().compose_node(parent, index)  # type: ignore[arg-type]  # the stub knows integers only

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        first: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in first:
                text = f"field {key.value!r} stands twice, first in line {first[key.value]}: keep one of them"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            first[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


def load(data: bytes) -> object:
    """The one document in `data`; raises `InvalidYamlError`."""
    if len(data) > MAX_BYTES:
        raise InvalidYamlError(f"is larger than {MAX_BYTES} bytes, the most a hyperparameter file may have")
    try:
        loader = _Loader(data)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise InvalidYamlError(f"is not valid YAML: {_place(error)}{error.problem or error.context}") from error
    except RecursionError as error:
        raise InvalidYamlError("is not a hyperparameter file: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # bad encoding; a date or number that does not exist
        raise InvalidYamlError(f"is not valid YAML: {error}") from error


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
