"""A small head that learns the diagnosis of a patient from frozen networks: a logistic regression in nested folds.

The outer folds are those of the run: a patient is scored by the network that never saw it, and by a head that was
fitted without it. The strength of the regularisation is chosen in inner folds over the patients that the head is
fitted on. A patient is one row, so patients are apart in the inner folds too.

What a head may read:

* **Ratings**: the calibrated probabilities of the nine ratings of the patient's highest nodule. They mean the same in
  every network, so each patient's come from the one network that never saw the patient, for fitting too.
* **Deep features** of the highest nodule. Those of two networks have nothing in common, so the head of a fold reads
  the features of that fold's network alone, for the patients whom it is fitted on and for those whom it scores. The
  network has learnt from the nodules of the former, though not from their diagnoses: what its features say about them
  is more certain than it will be about new patients, and this can only weaken the head, not flatter it.
* **Facts** about the patient that a user has without a reader: `FACTS`, with diameters of the predicted mask.

A score is the log odds of malignant, less those of the patients that the head was fitted on. Without the latter a fold
with many benign patients would get high scores, since few of them are left for its fitting.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pnsamp_jax import diagnosed, metrics, testing
from pnsamp_jax.data import schema
from pnsamp_jax.inference import ensemble
from pnsamp_jax.run import Run

FACTS = ("number of nodules", "largest diameter", "spread of suspicion")
STRENGTHS = np.logspace(-4, 1, 6)  # C of the regression, from almost constant scores to almost free ones
INNER_FOLDS = 5
SMALLEST_MM = 1.0  # diameter of an empty mask


class Answers(NamedTuple):
    """What one network says about P patients.

    Attributes:
      ratings: (P, R) calibrated probabilities of the classes of the nine ratings of the highest nodule.
      features: (P, F) of the same nodule.
      facts: (P, 3), see `FACTS`; the first two as logarithms.
    """

    ratings: np.ndarray
    features: np.ndarray
    facts: np.ndarray


def ask(run: Run, networks: ensemble.Networks) -> Answers:
    """Ask the network of a fold about all nodules of a run, and return what it says about their sorted patients."""
    patients = np.asarray(run.records[schema.PATIENT_ID])
    nodules = np.arange(len(patients))
    said = testing.predict_nodules(run, networks, nodules, flips=run.settings.test_flips, masks=True)
    suspicion = metrics.expected(said["probabilities"][:, schema.MALIGNANCY])
    highest = diagnosed.highest_nodules(suspicion, patients)
    voxels = said["mask"].sum(axis=(1, 2, 3))
    diameters = np.maximum(networks.spacing_mm * np.cbrt(6 * voxels / np.pi), SMALLEST_MM)
    of_patient = [patients == patient for patient in patients[highest]]
    facts = [(np.log(own.sum()), np.log(diameters[own].max()), suspicion[own].std()) for own in of_patient]
    return Answers(
        said["probabilities"][highest][:, schema.CLASS_EXISTS], said["features"][highest], np.array(facts, np.float64)
    )


def inputs(answers: Mapping[int, Answers], fold_of: np.ndarray) -> dict[str, dict[int, np.ndarray]]:
    """Return what each kind of head reads of P patients, for each outer fold: (P, F), NaN for a patient it has not.

    Args:
      answers: by fold.
      fold_of: (P,) the fold that tests each patient.
    """
    own = [np.full(values.shape, np.nan) for values in next(iter(answers.values()))]
    for fold, of_fold in answers.items():
        for values, said in zip(own, of_fold, strict=True):
            values[fold_of == fold] = said[fold_of == fold]
    ratings, _, facts = own
    return {
        "patient facts": dict.fromkeys(answers, facts),
        "ratings": dict.fromkeys(answers, ratings),
        "ratings and facts": dict.fromkeys(answers, np.hstack([ratings, facts])),
        "deep features": {fold: said.features for fold, said in answers.items()},
        "deep features and facts": {fold: np.hstack([said.features, said.facts]) for fold, said in answers.items()},
    }


def head_scores(read: Mapping[int, np.ndarray], malignant: np.ndarray, fold_of: np.ndarray, seed: int) -> np.ndarray:
    """Return the score that the head of its fold gives each patient: (P,), NaN where no head could be fitted.

    Args:
      read: by fold, (P, F) what its head reads; patients with NaN are left out of the fitting.
      malignant: (P,) bool.
      fold_of: (P,) the fold that tests each patient.
      seed: decides the inner folds.
    """
    scores = np.full(len(malignant), np.nan)
    for fold, values in read.items():
        test = fold_of == fold
        fitted = ~test & ~np.isnan(values).any(axis=1)
        fewest = min(malignant[fitted].sum(), (~malignant[fitted]).sum())
        if fewest < 2 or not test.any():
            continue
        inner = StratifiedKFold(int(min(INNER_FOLDS, fewest)), shuffle=True, random_state=seed)
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        search = GridSearchCV(regression, {"logisticregression__C": STRENGTHS}, scoring="neg_log_loss", cv=inner)
        log_odds = search.fit(values[fitted], malignant[fitted]).decision_function(values[test])
        share = malignant[fitted].mean()
        scores[test] = log_odds - np.log(share / (1 - share))
    return scores
