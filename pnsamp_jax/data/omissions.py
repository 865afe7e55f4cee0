"""Which nodules a cohort leaves out, and why; `cohort` decides it."""

import numpy as np

from pnsamp_jax.data import cohort, schema

EXACTLY_3 = {
    "rounded_ne_3": "whose malignancy rounds to 3",
    "mean_ne_3": "whose mean malignancy is 3",
    "median_ne_3": "whose median malignancy is 3",
}


def count_omissions(rating_counts: np.ndarray, name: str, min_readers: int) -> dict[str, int]:
    """Count the nodules that a cohort leaves out, by reason.

    Args:
      rating_counts: (nodules, 9, 6) readers per class.
      name: of the cohort, one of `cohort.COHORTS`.
      min_readers: least number of readers who rated the malignancy.

    Returns:
      {reason with the way to keep them: count}, without zeros. The counts sum to the nodules left out.
    """
    readers = rating_counts[:, schema.MALIGNANCY].sum(axis=-1)
    out = ~cohort.members(rating_counts, name, min_readers)
    few = out & (readers > 0) & (readers < min_readers)
    exactly_3 = f"{EXACTLY_3.get(name)} (--config.data.cohort=all keeps them)"
    counts = {
        "without a rating of malignancy": out & (readers == 0),
        f"whose malignancy fewer than {min_readers} readers rated (config.data.min_readers)": few,
        exactly_3: out & (readers > 0) & ~few,
    }
    return {reason: int(chosen.sum()) for reason, chosen in counts.items() if chosen.any()}


def describe_omissions(rating_counts: np.ndarray, name: str, min_readers: int, train_name: str = "") -> str:
    """Return a line about the nodules that a cohort leaves out, "" if there are none.

    Args:
      rating_counts: (nodules, 9, 6) readers per class of all nodules that were read.
      name: of the cohort.
      min_readers: least number of readers who rated the malignancy.
      train_name: of a wider cohort that joins the training; "" for none.
    """
    omitted = count_omissions(rating_counts, name, min_readers)
    if not omitted:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in omitted.items())
    line = f"{len(rating_counts)} nodules read, {sum(omitted.values())} left out of the cohort {name}: {reasons}"
    if train_name:
        outside = ~cohort.members(rating_counts, name, min_readers)
        joining = int((outside & cohort.members(rating_counts, train_name, min_readers)).sum())
        line += f"; {joining} of them join the training (config.data.train_cohort={train_name})"
    return line
