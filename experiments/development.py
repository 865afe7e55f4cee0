"""Score networks on development data: the validation nodules of their folds, on which recipes are chosen.

    python -m experiments.development --config pn_samp_plus --workdir runs/a --out runs/a_development \\
        --config.data.source=folder --config.data.root=/path/to/nodules --against=runs/b_development

The folds that the run has trained are scored, each network on the validation nodules of its own fold, as a test asks
them: with the shift of the mask fitted to these nodules, and averaged over flips if the config says so. `--networks`
scores others in place of the run's own, such as exported weights, if they were made for the same folds. The output
folder has the tables of a workdir, predictions.csv and readers.csv, and development.md, which is printed as well: Dice
by texture and size, with the change from the same nodules in the folder that `--against` names.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.comparison.scores import mean_estimate
from experiments.launch import launch, path_flag, require_new
from experiments.nodule_or_not import groups
from pnsamp_jax import testing
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import write_text
from pnsamp_jax.inference import ensemble
from pnsamp_jax.run import Run, open_run
from pnsamp_jax.workdir import layout, tables
from pnsamp_jax.workdir.tables import Table, read_tables

RESAMPLES = 2000
POOR = 0.4  # Dice below which an outline is hardly of the nodule


def score(config: ConfigDict, workdir: Path, out: Path, networks: Path | None, against: Path | None) -> str:
    """Score the validation nodules of a run's folds; see the module's docstring.

    Args:
      config: of the run.
      workdir: of the run.
      out: folder to write.
      networks: exported weights, or the workdir of another run, to score in place of the run's own.
      against: an `out` of earlier.

    Returns:
      The content of development.md.

    Raises:
      UserError: no fold is trained, the networks are of other folds, `against` lacks a nodule, or `out` exists.
    """
    require_new(out)
    before = None if against is None else read_tables(against)
    run = open_run(config, workdir)
    for fold, asked in _networks(run, networks).items():
        nodules = run.indices(fold)["validation"]
        folder = layout.fold_folder(out, fold)
        folder.mkdir(parents=True)
        testing.write_predictions(run, fold, asked, nodules, folder / "predictions.csv")
    tables.write_readers(out / "readers.csv", run.records)
    tables.gather_predictions(out)
    text = "\n".join(dice_lines(read_tables(out), before))
    write_text(out / "development.md", text + "\n")
    print(text)
    return text


def _networks(run: Run, folder: Path | None) -> dict[int, ensemble.Networks]:
    """Return the network of each fold to score, with the shift of its mask."""
    if folder is None:
        trained = [fold for fold in run.settings.folds if (run.fold_folder(fold) / "checkpoints").is_dir()]
        if not trained:
            raise UserError(f"{run.workdir}: none of its folds is trained; run --mode train first")
        found = {}
        for fold in trained:
            networks, _ = testing.load_fold(run, fold)
            found[fold], _ = testing.fit_shift(run, networks, run.indices(fold)["validation"])
        return found
    loaded = ensemble.load(folder)
    if layout.fold_of_patients(folder / "folds.json") != layout.fold_of_patients(run.workdir / "folds.json"):
        raise UserError(f"{folder}: its networks are of other folds than those of {run.workdir}")
    chosen = [fold for fold in run.settings.folds if f"fold_{fold}" in loaded.members]
    if not chosen:
        raise UserError(f"{folder}: has no network of the config's folds; ready are {', '.join(loaded.members)}")
    return {fold: loaded.member(fold) for fold in chosen}


def dice_lines(table: Table, before: Table | None) -> Iterable[str]:
    """Yield a Markdown table of the Dice by texture and size.

    Args:
      table: the nodules.
      before: of other networks, with the same nodules of each fold, to compare with; None for no comparison.

    Raises:
      UserError: `before` lacks a nodule.
    """
    columns, change = ["validation nodules", "n", "Dice, %", f"below {100 * POOR:g} %"], None
    if before is not None:
        own, theirs = (dict(zip(_keys(one), one["dice"].tolist(), strict=True)) for one in (table, before))
        lost = [nodule for nodule in own if nodule not in theirs]
        if lost:
            raise UserError(f"--against: has no nodule '{lost[0][1]}' of fold {lost[0][0]:g}; score the same folds")
        change = np.array([own[nodule] - theirs[nodule] for nodule in own])
        columns.append("change")
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * len(columns) + "|"
    for name, chosen in groups(table).items():
        if not chosen.any():
            continue
        patients, dice = table["patient_id"][chosen], table["dice"][chosen]
        row = [name, chosen.sum(), mean_estimate(dice, patients, RESAMPLES), int((dice < POOR).sum())]
        if change is not None:
            row.append(mean_estimate(change[chosen], patients, RESAMPLES, signed=True))
        yield "| " + " | ".join(map(str, row)) + " |"


def _keys(table: Table) -> list[tuple[float, str]]:
    """Return what tells the rows apart: a nodule may belong to the validation part of several folds."""
    return list(zip(table["fold"].tolist(), table["nodule_id"].tolist(), strict=True))


if __name__ == "__main__":
    launch(
        score,
        config="The config of the run.",
        workdir="Workdir of the run.",
        out=path_flag("out", "Folder to write; must not exist.", required=True),
        networks=path_flag("networks", "Networks to score in place of the run's own."),
        against=path_flag("against", "The --out of other networks, to compare with."),
    )
