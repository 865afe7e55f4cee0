"""TumorNet's second stage: a Gaussian process from the network's features to the mean malignancy rating.

Hussein et al., "TumorNet: lung nodule characterization using multi-view convolutional neural network with Gaussian
process", ISBI 2017.

    pip install -e ".[experiments]"
    python -m experiments.baselines.tumornet --config tumornet --workdir runs/tumornet \\
        --config.data.source=folder --config.data.root=/path/to/nodules [--attributes=readers]

From the paper: Gaussian process regression of the mean rating on the network's features, and in its other variant
(TumorNet-attribute) on six attributes in addition to them. In the paper these are the readers' ratings *of the very
nodules that are tested*: `--attributes=readers` is that oracle, which does not exist for a new nodule.
`--attributes=predicted`, chosen here, uses attributes that ridge regressions predict from the features; for the
training nodules they are predicted out of sample, with patients kept apart (the network itself was trained on these
nodules).

Also chosen: standardised features, a squared-exponential kernel with one length scale and white noise, and as the
probability of a class the mass of the predictive Gaussian around it. The variants can share one network
(`--network_workdir`).
"""

import warnings
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.baselines import second_stage
from experiments.baselines.subsets import Subset
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError

VARIANTS = ("none", "readers", "predicted")  # the source of the attributes
ATTRIBUTES = ("calcification", "lobulation", "margin", "sphericity", "spiculation", "texture")
INDICES = [schema.RATING_NAMES.index(name) for name in ATTRIBUTES]
INNER_FOLDS = 5


def gaussian_process(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the predictive mean and standard deviation, noise included: (n, F), (n,), (m, F) -> (m,), (m,)."""
    scale = StandardScaler().fit(train_x)
    length = np.sqrt(train_x.shape[1])  # about the distance between two standardised nodules
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * RBF(length, (0.1 * length, 1e3 * length))
    process = GaussianProcessRegressor(kernel + WhiteKernel(0.5, (1e-4, 1e1)), normalize_y=True)
    with warnings.catch_warnings():
        # A length scale at its upper bound means that the features are uninformative, which is a valid result.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(scale.transform(train_x), train_y)
    return process.predict(scale.transform(test_x), return_std=True)


def ridge(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """Predict by ridge regression: (n, F), (n,), (m, F) -> (m,).

    The penalty is chosen by leave-one-out cross-validation; training nodules without a rating (NaN) are left out.
    """
    rated = ~np.isnan(train_y)
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11)))
    return model.fit(train_x[rated], train_y[rated]).predict(test_x)


def out_of_sample(x: np.ndarray, y: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Predict each nodule by `ridge` from the nodules of other patients: (n, F), (n,), (n,) -> (n,)."""
    predicted = np.empty(len(x))
    folds = GroupKFold(min(INNER_FOLDS, len(np.unique(patients))))
    for seen, unseen in folds.split(x, groups=patients):
        predicted[unseen] = ridge(x[seen], y[seen], x[unseen])
    return predicted


def attribute_features(train: Subset, test: Subset, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the attributes of the training and of the test nodules: (n, A), (m, A); A is 0 in the variant "none".

    An attribute that no training nodule has is left out. In the variant "readers", a missing rating is replaced by
    the median.
    """
    means = train.means
    seen, unseen = [np.empty((len(means), 0))], [np.empty((len(test.means), 0))]
    for index in INDICES:
        if variant == "none" or np.isnan(means[:, index]).all():
            continue
        if variant == "predicted":
            y, patients = means[:, index], train.records[schema.PATIENT_ID]
            of_train, of_test = out_of_sample(train.features, y, patients), ridge(train.features, y, test.features)
        else:
            median = np.nanmedian(means[:, index])
            of_train, of_test = (np.where(np.isnan(y), median, y) for y in (means[:, index], test.means[:, index]))
        seen.append(of_train[:, None])
        unseen.append(of_test[:, None])
    return np.concatenate(seen, axis=1), np.concatenate(unseen, axis=1)


def predict(train: Subset, test: Subset, seed: int, variant: str) -> np.ndarray:
    """Predict malignancy alone, (m, 9, 6) probabilities; see `second_stage.cross_validate`."""
    del seed  # nothing is random
    of_train, of_test = attribute_features(train, test, variant)
    train_x, test_x = np.hstack([train.features, of_train]), np.hstack([test.features, of_test])
    y = train.means[:, schema.MALIGNANCY]
    rated = ~np.isnan(y)
    mean, sd = gaussian_process(train_x[rated], y[rated], test_x)
    classes = schema.RATINGS[schema.MALIGNANCY].classes
    probabilities = second_stage.no_answers(len(test_x))
    probabilities[:, schema.MALIGNANCY] = 0.0
    probabilities[:, schema.MALIGNANCY, :classes] = second_stage.gaussian_classes(mean, sd, classes)
    return probabilities


def run(config: ConfigDict, workdir: Path, attributes: str = "none", network_workdir: Path | None = None) -> dict:
    """Cross-validate one variant of TumorNet on the config's nodules, and return the content of results.json.

    Raises:
      UserError: there is no such variant.
    """
    if attributes not in VARIANTS:
        raise UserError(f"attributes: '{attributes}' is none of {', '.join(VARIANTS)}")
    method = {"name": "tumornet", "attributes": attributes}
    network = network_workdir or workdir
    return second_stage.cross_validate(config, workdir, partial(predict, variant=attributes), method, network=network)


if __name__ == "__main__":
    second_stage.launch_method(run, "attributes", "network_workdir")
