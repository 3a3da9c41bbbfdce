"""Settings: a block of `params.yaml` becomes a frozen, typed object; a mistake is one line: file, key, reason."""

from pathlib import Path
from typing import Any, TypeVar

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shared.errors import UserError


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every settings class: immutable, types checked, unknown keys refused."""


S = TypeVar("S", bound=Settings)


def read_yaml(path: Path) -> Any:
    """Read a YAML 1.2 document as DVC reads it (`1e-3` is a number).

    Raises:
        UserError: the file is missing or is not YAML.
    """
    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def load(path: Path, preset: str, kind: type[S], overrides: dict[str, Any] | None = None) -> S:
    """Read the block `preset` of `path` as an object of class `kind`, with single keys replaced by `overrides`.

    Raises:
        UserError: no such block, an unknown key, a missing key, or a value of the wrong type or out of range.
    """
    document = read_yaml(path)
    block = document.get(preset) if isinstance(document, dict) else None
    if not isinstance(block, dict):
        names = (
            ", ".join(k for k, v in document.items() if isinstance(v, dict)) if isinstance(document, dict) else "none"
        )
        raise UserError(f"{path}: no preset named {preset!r}; there are: {names}")
    return convert({**block, **(overrides or {})}, kind, f"{path}: {preset}")


def convert(values: dict[str, Any], kind: type[S], where: str) -> S:
    """Make an object of class `kind` from plain values; `where` opens the message of the `UserError` for a bad one."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        reason = str(error).replace("`$.", "`").replace("Object contains unknown field", "unknown key")
        raise UserError(f"{where}: {reason}") from None
