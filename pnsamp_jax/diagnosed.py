"""Patients whose diagnosis is known, and how well a score of their nodules ranks them by it.

A table of diagnoses does not say which nodule was diagnosed, so a patient counts by the nodule with the highest score,
whatever its context.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pnsamp_jax import intervals, metrics
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.data.diagnosis import Diagnosis, of_patients
from pnsamp_jax.workdir.tables import Table

# What benign is compared with: the diagnoses that count as positive. Other patients are left out.
CONTRASTS = {"malignant": ("primary", "metastatic"), "primary": ("primary",), "metastatic": ("metastatic",)}


def with_diagnosis(table: Table, diagnoses: Mapping[str, Diagnosis]) -> Table:
    """Return the nodules of the patients whose diagnosis is known, with the columns `diagnosis` and `method`."""
    patients = table["patient_id"].tolist()
    own = of_patients(diagnoses, patients)
    given = [own.get(patient, Diagnosis("unknown", "unknown")) for patient in patients]
    columns = zip(Diagnosis._fields, np.array(given, dtype=str).reshape(-1, 2).T, strict=True)
    known = np.array([one.diagnosis != "unknown" for one in given], dtype=bool)
    return {name: values[known] for name, values in {**table, **dict(columns)}.items()}


def highest_nodules(scores: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Return the index of each patient's nodule with the highest score, in the order of the sorted patients.

    Args:
      scores: (N,) of the nodules; NaN counts as the lowest.
      patients: (N,) whose nodules they are.

    Returns:
      (P,) int.
    """
    order = np.lexsort((np.where(np.isnan(scores), np.inf, -scores), patients))
    return order[np.unique(patients[order], return_index=True)[1]]


def network_scores(table: Table) -> np.ndarray:
    """Return the expected malignancy of each nodule: (N,)."""
    return metrics.expected(table["probabilities"][:, schema.MALIGNANCY])


def reader_scores(table: Table) -> np.ndarray:
    """Return the mean malignancy that the readers gave each nodule: (N,)."""
    return cohort.mean_rating(table["rating_counts"][:, schema.MALIGNANCY])


def contrasted(diagnosis: np.ndarray, contrast: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which patients are positive and which take part in one of `CONTRASTS`: (P,) bool each."""
    positive = np.isin(diagnosis, CONTRASTS[contrast])
    return positive, positive | (diagnosis == "benign")


def auc_results(table: Table, diagnoses: Mapping[str, Diagnosis]) -> dict[str, Any]:
    """Return the AUC of the network and of the readers against the diagnosis, for the section of results.json.

    Args:
      table: of a run, see `workdir.tables.read_tables`.
      diagnoses: by patient.

    Returns:
      The numbers of patients with a known diagnosis, of all patients, and of nodules by context; and for each of
      `CONTRASTS` the number of patients and of positive ones, and the AUC of `network` and `readers`.
    """
    tested_patients = len(np.unique(table["patient_id"]))
    table = with_diagnosis(table, diagnoses)
    scores = {"network": network_scores(table), "readers": reader_scores(table)}
    highest = {name: highest_nodules(of_nodules, table["patient_id"]) for name, of_nodules in scores.items()}
    diagnosis, patients = (table[name][highest["readers"]] for name in ("diagnosis", "patient_id"))
    contexts, counts = np.unique(table["context"], return_counts=True)
    results: dict[str, Any] = {
        "patients": len(patients),
        "of_patients": tested_patients,
        "nodules": dict(zip(contexts.tolist(), counts.tolist(), strict=True)),
        "against_benign": {},
    }
    for contrast in CONTRASTS:
        positive, counted = contrasted(diagnosis, contrast)
        found: dict[str, Any] = {"n": int(counted.sum()), "positive": int(positive.sum())}
        results["against_benign"][contrast] = found
        for name in scores:

            def statistic(weights: np.ndarray, name=name, positive=positive, counted=counted) -> float:
                return metrics.auc(scores[name][highest[name]], positive, weights * counted)

            interval = intervals.cluster_bootstrap(statistic, patients)
            found[name] = {"value": statistic(np.ones(len(patients))), "interval": interval}
    return results
