"""What the DVC pipelines of this checkout say, as DVC itself reads them (matrices and templates resolved)."""

from dataclasses import dataclass
from pathlib import Path

from shared import errors, paths


@dataclass(frozen=True)
class Stage:
    """One stage after the expansion of its matrix; all paths are absolute."""

    name: str  # as DVC addresses it: "papers/nvae/dvc.yaml:train@0", or "papers/nvae" for a stage of the root file
    file: Path  # the dvc.yaml that holds it
    folder: Path  # where its command runs
    command: str
    dependencies: tuple[Path, ...]  # files and folders; parameters are not among them
    outputs: tuple[Path, ...]


def stages(root: Path = paths.ROOT) -> tuple[Stage, ...]:
    """All stages of the checkout `root`; the pointers of `dvc add` are left out.

    Raises:
        UserError: DVC cannot read one of the files.
    """
    # Imported here: DVC is heavy, and its loading is of no use to those who only need the types.
    from dvc.dependency.param import ParamsDependency
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    try:
        with Repo(str(root)) as repository:
            loaded = [stage for stage in repository.index.stages if isinstance(stage, PipelineStage)]
    except DvcException as error:
        raise errors.UserError(f"{root}: DVC cannot read the pipelines: {' '.join(str(error).split())}") from None
    return tuple(
        Stage(
            name=_address(Path(stage.path), stage.name, root),
            file=Path(stage.path),
            folder=Path(stage.wdir),
            command=stage.cmd if isinstance(stage.cmd, str) else " && ".join(stage.cmd),
            dependencies=tuple(Path(x.fs_path) for x in stage.deps if not isinstance(x, ParamsDependency)),
            outputs=tuple(Path(x.fs_path) for x in stage.outs),
        )
        for stage in loaded
    )


def _address(file: Path, name: str, root: Path) -> str:
    """The name by which DVC knows a stage at the root: that of the root file's stages is bare."""
    return name if file.parent == root else f"{file.relative_to(root).as_posix()}:{name}"


def of_paper(name: str, root: Path = paths.ROOT) -> tuple[Stage, ...]:
    """The stages in `papers/<name>/dvc.yaml`.

    Raises:
        UserError: there are none.
    """
    file = root / "papers" / name / "dvc.yaml"
    found = tuple(stage for stage in stages(root) if stage.file == file)
    if not found:
        raise errors.UserError(f"{file} has no stages; papers with a pipeline: {', '.join(existing(root)) or 'none'}")
    return found


def existing(root: Path = paths.ROOT) -> tuple[str, ...]:
    """The names of the papers that have a pipeline, in the order of the seminar."""
    return tuple(name for name in paths.PAPERS if (root / "papers" / name / "dvc.yaml").is_file())


def data_sets(name: str, root: Path = paths.ROOT) -> tuple[str, ...]:
    """The data sets a paper's stages depend on, by the manifests among their dependencies.

    Stages depend on `shared/data/manifests/<set>.tsv`, the checksums that the loaders enforce, and not on files in
    `data/`: where only some sets are present, DVC would silently write the smaller folder into `data.dvc`.
    """
    manifests = root / "shared" / "data" / "manifests"
    found = {path.stem for stage in of_paper(name, root) for path in stage.dependencies if path.parent == manifests}
    return tuple(sorted(found))
