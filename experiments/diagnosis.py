"""Networks, readers and baselines against the diagnosis of the patients, as far as it is known.

    pip install -e ".[experiments]"
    python -m experiments.diagnosis --config pn_samp_plus --workdir runs/plus --config.data.source=folder \\
        --config.data.root=/path/to/nodules --config.data.diagnosis=/path/to/tcia-diagnosis-data-2012-04-20.xls \\
        --out runs/diagnosis [--forest runs/radiomics]

Writes to --out: diagnosis.md and diagnosis.csv, the table; patients.csv, every score of every patient, from which the
table can be computed; and disagreement.png, the patients of whom the readers and the diagnosis disagree most.

Every patient is scored out of fold, by the highest nodule (see `pnsamp_jax.diagnosed`). The AUC is that of the
probabilities in predictions.csv, as everywhere in the project; what depends on the probabilities themselves, the
calibration and the heads, uses the calibrated ones that a prediction gives. Where folds of the run are not tested yet,
the patients of those that are tested are shown, and how many these are.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.baselines import diagnosis_head
from experiments.comparison import by_diagnosis, tables
from experiments.comparison.disagreement import Case, draw_cases
from experiments.comparison.runs import read_run, select
from experiments.launch import launch, path_flag
from experiments.reliability import scaled
from pnsamp_jax import diagnosed, metrics
from pnsamp_jax.config import Settings, read_settings
from pnsamp_jax.data import schema
from pnsamp_jax.data.diagnosis import Diagnosis, of_patients, read_diagnoses
from pnsamp_jax.errors import UsageError, UserError
from pnsamp_jax.evaluate import CONTEXT_NOTES
from pnsamp_jax.files import atomic_path, user_path, write_text
from pnsamp_jax.inference import ensemble
from pnsamp_jax.run import Run, load_records
from pnsamp_jax.workdir import layout
from pnsamp_jax.workdir.tables import Table, rated

SHOWN, FIGURE = 12, "disagreement.png"  # patients in the figure


@dataclass(frozen=True)
class Patients:
    """The P patients whose diagnosis is known and who are tested, and their N nodules.

    Attributes:
      table: of the nodules, with the columns of `diagnosed.with_diagnosis`.
      names: (P,) sorted.
      diagnosis, method: (P,) str.
      fold: (P,) int, the fold that tested each.
    """

    table: Table
    names: np.ndarray
    diagnosis: np.ndarray
    method: np.ndarray
    fold: np.ndarray

    def highest(self, scores: np.ndarray) -> np.ndarray:
        """Return the index of each patient's nodule with the highest score: (N,) -> (P,)."""
        return diagnosed.highest_nodules(scores, self.table["patient_id"])

    def by_highest(self, scores: np.ndarray) -> np.ndarray:
        """Return the highest score of each patient's nodules: (N,) -> (P,)."""
        return scores[self.highest(scores)]

    @property
    def counts(self) -> np.ndarray:
        """Return the number of nodules of each patient: (P,) float."""
        return np.unique(self.table["patient_id"], return_counts=True)[1].astype(float)


def read_patients(workdir: Path, diagnoses: dict[str, Diagnosis], file: str) -> Patients:
    """Read the nodules of the tested patients with a known diagnosis.

    Args:
      workdir: of the run.
      diagnoses: by patient.
      file: they are from, for the message.

    Raises:
      UserError: there are none, or the run does not rate malignancy.
    """
    every = read_run(workdir)
    if not rated(every)[schema.MALIGNANCY]:
        raise UserError(f"{workdir}: its network does not rate malignancy; give the workdir of one that does")
    table = diagnosed.with_diagnosis(every, diagnoses)
    names, first = np.unique(table["patient_id"], return_index=True)
    if not len(names):
        raise UserError(
            f"{file}: none of the patients that {workdir} tested has a known diagnosis there; names must be the same, "
            f"such as '{every['patient_id'][0]}' in the run and '{next(iter(diagnoses))}' in the table"
        )
    diagnosis, method, fold = (table[column][first] for column in ("diagnosis", "method", "fold"))
    return Patients(table, names, diagnosis, method, fold.astype(int))


def forest_scores(patients: Patients, forest: Path) -> tuple[str, np.ndarray]:
    """Return the name of a forest by what it is given, and its scores of the patients' nodules: (N,).

    Raises:
      UserError: the run did not test one of the nodules.
    """
    table = read_run(forest)
    wanted = patients.table["nodule_id"]
    at = np.minimum(np.searchsorted(table["nodule_id"], wanted), len(table["nodule_id"]) - 1)
    if (missing := wanted[table["nodule_id"][at] != wanted]).size:
        raise UserError(
            f"{forest}: did not test nodule '{missing[0]}' ({missing.size} missing of {len(wanted)}); run it on the "
            "same nodules as the network, with the same --config.data.cohort"
        )
    method = forest / "second_stage.json"
    predicted = method.is_file() and "mask_run" in json.loads(method.read_text())
    outlines = "predicted" if predicted else "readers'"
    return f"radiomics forest, {outlines} outlines", diagnosed.network_scores(table)[at]


def head_scores(
    settings: Settings,
    workdir: Path,
    patients: Patients,
    records: schema.Records,
    diagnoses: Mapping[str, Diagnosis],
) -> dict[str, np.ndarray]:
    """Ask the networks of the tested folds, and return the scores of the heads by name: (P,) each.

    Args:
      settings: of the run.
      workdir: of the run.
      patients: to score.
      records: of all patients whose diagnosis is known; those whom no tested fold tests serve for fitting alone.
      diagnoses: by patient, as the records name them.
    """
    networks, tested = ensemble.load(workdir), layout.fold_of_patients(workdir / "folds.json")
    run = Run(workdir, settings, records, folds=[])
    answers = {fold: diagnosis_head.ask(run, networks.member(fold)) for fold in np.unique(patients.fold).tolist()}
    names = np.unique(records[schema.PATIENT_ID])
    malignant = np.array([diagnoses[name].diagnosis != "benign" for name in names.tolist()])
    fold_of = np.array([tested.get(name, -1) for name in names.tolist()])
    shown = np.isin(names, patients.names)
    return {
        f"head on {kind}": diagnosis_head.head_scores(read, malignant, fold_of, settings.seed)[shown]
        for kind, read in diagnosis_head.inputs(answers, fold_of).items()
    }


def disagreements(
    patients: Patients, readers: np.ndarray, network: np.ndarray, records: schema.Records, spacing_mm: float
) -> list[Case]:
    """Return the patients of whom the readers and the diagnosis disagree most, the largest disagreement first.

    Args:
      patients: all.
      readers: (N,) mean rating of the nodules.
      network: (N,) expected malignancy of the nodules.
      records: of the patients' nodules, and others.
      spacing_mm: of their voxels.
    """
    chosen = patients.highest(readers)
    benign = patients.diagnosis == "benign"
    distance = np.where(benign, readers[chosen] - 1, 5 - readers[chosen])  # from the end of the scale that is right
    row_of = {nodule: row for row, nodule in enumerate(records[schema.NODULE_ID].tolist())}
    cases = []
    for index in np.argsort(-distance, kind="stable")[:SHOWN]:
        nodule = chosen[index]
        row = row_of[str(patients.table["nodule_id"][nodule])]
        image, mask = (np.asarray(records[name][row]) for name in (schema.IMAGE, schema.MASK))
        made = "" if patients.method[index] == "unknown" else f" ({patients.method[index].replace('_', ' ')})"
        found = f"readers {readers[nodule]:.1f}, network {network[nodule]:.1f}"
        context = patients.table["context"][nodule]
        lines = (f"{patients.names[index]} ({context})", f"{patients.diagnosis[index]}{made}", found)
        cases.append(Case(image, 2 * mask.astype(int) >= schema.MASK_UNIT, spacing_mm, lines))
    return cases


def heading(patients: Patients, settings: Settings, diagnoses: Mapping[str, Diagnosis]) -> str:
    """Return which patients the table is about."""
    known = sum(one.diagnosis != "unknown" for one in diagnoses.values())
    contexts, counts = np.unique(patients.table["context"], return_counts=True)
    nodules = ", ".join(f"{count} {context}" for context, count in zip(contexts, counts, strict=True))
    folds = ", ".join(map(str, np.unique(patients.fold)))
    missing = known - len(patients.names)
    simulated = f" {CONTEXT_NOTES['simulated']}." if "simulated" in contexts else ""
    return (
        f"{len(patients.names)} patients with {len(patients.table['patient_id'])} nodules ({nodules}) of the cohort "
        f"'{settings.cohort}', tested in folds {folds} of {settings.num_folds}. Patients with a known "
        f"diagnosis who are not in these folds: {missing}.{simulated} Per cent, with 95 % intervals by patients."
    )


def write_patients(path: Path, patients: Patients, scores: Mapping[str, np.ndarray]) -> None:
    """Write every score of every patient; blank where a system gives none."""
    columns = ["patient_id", "diagnosis", "method", "fold", "nodules", *scores]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        given = (patients.names, patients.diagnosis, patients.method, patients.fold, patients.counts.astype(int))
        for row in zip(*given, *scores.values(), strict=True):
            writer.writerow([*row[:5], *("" if np.isnan(score) else f"{score:.6g}" for score in row[5:])])


def run(config: ConfigDict, workdir: Path, out: Path, forest: Path | None) -> None:
    """Score the patients, and write the table, the scores and the figure; see the module's docstring.

    Raises:
      UserError: the config names no table of diagnoses, the workdir belongs to another config, or no patient of the
        run has a known diagnosis.
    """
    settings = read_settings(config)
    if not settings.diagnosis:
        raise UsageError("config.data.diagnosis: is empty; give the table of diagnoses, .xls or CSV")
    diagnoses = read_diagnoses(user_path(settings.diagnosis))
    layout.check_config(workdir, settings.fields)
    patients = read_patients(workdir, diagnoses, settings.diagnosis)
    readers, network = diagnosed.reader_scores(patients.table), diagnosed.network_scores(patients.table)
    of_nodules = {by_diagnosis.READERS: readers, by_diagnosis.NETWORK: network}
    if forest is not None:
        name, trees = forest_scores(patients, forest)
        of_nodules[name] = trees
    of_nodules["diameter of the readers' outline"] = patients.table["diameter_mm"]
    scores = {name: patients.by_highest(score) for name, score in of_nodules.items()}
    scores["number of nodules"] = patients.counts
    records = load_records(settings)
    own = of_patients(diagnoses, records[schema.PATIENT_ID].tolist())
    known = [name for name, one in own.items() if one.diagnosis != "unknown"]
    records = select(records, np.isin(records[schema.PATIENT_ID], known))
    scores |= head_scores(settings, workdir, patients, records, own)
    calibrated = scaled(patients.table, workdir)["probabilities"][:, schema.MALIGNANCY]
    probability = metrics.malignant_probability(calibrated)[patients.highest(network)]

    page = by_diagnosis.build(scores, probability, patients.diagnosis, patients.method)
    text = tables.markdown(page, heading(patients, settings, diagnoses))
    write_text(out / "diagnosis.md", f"{text}\n![Disagreement](disagreement.png)\n")
    tables.write_csv(page, out / "diagnosis.csv")
    write_patients(out / "patients.csv", patients, {**scores, "calibrated probability": probability})
    cases = disagreements(patients, readers, network, records, settings.geometry.spacing_mm)
    draw_cases(cases, "Where readers and diagnosis disagree most, by the readers' highest nodule", out / FIGURE)
    print(
        f"{text}\n{', '.join(str(out / name) for name in ('diagnosis.md', 'diagnosis.csv', 'patients.csv', FIGURE))}"
    )


if __name__ == "__main__":
    launch(
        run,
        config="The config of the run; config.data.diagnosis names the table of diagnoses.",
        workdir="Workdir of the run.",
        out=path_flag("out", "Folder to write.", required=True),
        forest=path_flag("forest", "Workdir of a radiomics forest on the same nodules, to compare with."),
    )
