"""Checks whether consumers of an old JSON schema can read records of a new schema. Pure.

A new schema is compatible if a consumer that was written for the old schema can read all new records. New fields are compatible, because
consumers ignore fields that they do not know.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

Schema = Mapping[str, Any]

_LOWER_BOUNDS: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER_BOUNDS: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_EXACT: Final = ("pattern", "format", "const")
_ANNOTATIONS: Final = frozenset({"$schema", "$id", "title", "description"})
_COMPARED: Final = frozenset(
    {
        *_LOWER_BOUNDS,
        *_UPPER_BOUNDS,
        *_EXACT,
        *("type", "enum", "required", "properties", "items", "additionalProperties"),
    }
)


def find_broken_promises(old: Schema, new: Schema, path: str = "data") -> Iterator[str]:
    """Yield what a consumer of the old schema can no longer rely on. Yield nothing if the new schema is compatible.

    Args:
        old: the schema of the last release.
        new: the current schema.
        path: where in the record the schemas apply.
    """
    if unknown := sorted(key for key in old if key not in _COMPARED | _ANNOTATIONS and old[key] != new.get(key)):
        yield f"{path}: {', '.join(unknown)} changed"
    yield from _compare_types(old, new, path)
    yield from _compare_values(old, new, path)
    yield from _compare_fields(old, new, path)
    if "items" in old:
        yield from find_broken_promises(old["items"], new.get("items", {}), f"{path}[]")


def _compare_types(old: Schema, new: Schema, path: str) -> Iterator[str]:
    before, after = old.get("type"), new.get("type", _type_of_values(new))
    if before not in {None, after} and (before, after) != ("number", "integer"):
        yield f"{path}: the type was {before} and is {after or 'any'}"


def _type_of_values(schema: Schema) -> str | None:
    """Return the type of a schema that lists its values, if all of them are texts."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return "string" if values and all(isinstance(value, str) for value in values) else None


def _compare_values(old: Schema, new: Schema, path: str) -> Iterator[str]:
    allowed = new.get("enum", [new["const"]] if "const" in new else None)
    if "enum" in old and (allowed is None or (added := [value for value in allowed if value not in old["enum"]])):
        yield f"{path}: new values: {'any' if allowed is None else ', '.join(map(str, added))}"
    for key in _EXACT:
        if key in old and old[key] != new.get(key):
            yield f"{path}: {key} was {old[key]} and is {new.get(key, 'absent')}"
    for keys, sign in ((_LOWER_BOUNDS, 1), (_UPPER_BOUNDS, -1)):
        for key in keys:
            if key in old and (key not in new or sign * new[key] < sign * old[key]):
                yield f"{path}: {key} was {old[key]} and is {new.get(key, 'absent')}"


def _compare_fields(old: Schema, new: Schema, path: str) -> Iterator[str]:
    for name in sorted(set(old.get("required", ())) - set(new.get("required", ()))):
        yield f"{path}.{name}: was required"
    if old.get("additionalProperties") is False and new.get("additionalProperties") is not False:
        yield f"{path}: may have further fields"
    fields = new.get("properties", {})
    for name, field in old.get("properties", {}).items():
        if name not in fields:
            yield f"{path}.{name}: is gone"
        else:
            yield from find_broken_promises(field, fields[name], f"{path}.{name}")
