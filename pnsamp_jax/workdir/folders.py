"""The folders fold_0, fold_1 and so on in a workdir. A copy beside them, such as fold_1_backup, is none."""

import re
from pathlib import Path

NAME = re.compile(r"fold_(-1|0|[1-9]\d*)")  # -1 stands for all folds, as in config.fold


def fold_folders(workdir: Path) -> list[Path]:
    """Return the folders of the folds that are there, by their numbers."""
    return sorted((path for path in workdir.glob("fold_*") if NAME.fullmatch(path.name)), key=number)


def trained_folds(workdir: Path) -> list[Path]:
    """Return the folders of the folds that have checkpoints."""
    return [fold for fold in fold_folders(workdir) if (fold / "checkpoints").is_dir()]


def number(fold: Path) -> int:
    """Return the number of a fold's folder."""
    return int(fold.name.removeprefix("fold_"))
