"""TumorNet's second stage: a Gaussian process from the network's features to the mean malignancy rating.

Hussein et al., "TumorNet: lung nodule characterization using multi-view convolutional neural network with Gaussian
process", ISBI 2017.

    pip install -e ".[experiments]"
    python -m experiments.baselines.tumornet --config configs/tumornet.py --workdir runs/tumornet \\
        --config.data.source=folder --config.data.root=/path/to/nodules [--attributes=readers]

From the paper: Gaussian process regression of the mean rating on the network's features, and in its other form
(TumorNet-attribute) six attributes beside them. In the paper these are the readers' ratings *of the very nodules that
are tested*: `--attributes=readers` is that oracle, which no new nodule has. `--attributes=predicted`, chosen here,
takes what ridge regressions on the features say of them: for the training nodules out of the regressions' sample,
patients kept apart (the network itself has seen these nodules).

Also chosen: standardised features, a squared-exponential kernel with one length scale and white noise, and as a
class's probability the mass that the predictive Gaussian has round it. The forms can share one network
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
from experiments.baselines.parts import Part
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError

FORMS = ("none", "readers", "predicted")
ATTRIBUTES = ("calcification", "lobulation", "margin", "sphericity", "spiculation", "texture")
PLACES = [schema.RATING_NAMES.index(name) for name in ATTRIBUTES]
INNER_FOLDS = 5


def gaussian_process(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictive mean and standard deviation, noise included: (n, F), (n,), (m, F) -> (m,), (m,)."""
    scale = StandardScaler().fit(train_x)
    length = np.sqrt(train_x.shape[1])  # about the distance of two standardised nodules
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * RBF(length, (0.1 * length, 1e3 * length))
    process = GaussianProcessRegressor(kernel + WhiteKernel(0.5, (1e-4, 1e1)), normalize_y=True)
    with warnings.catch_warnings():
        # A length scale at its upper bound says that the features tell nothing, which is an answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(scale.transform(train_x), train_y)
    return process.predict(scale.transform(test_x), return_std=True)


def ridge(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """Ridge regression, its penalty chosen by leave-one-out; a training nodule without a rating (NaN) is left out."""
    rated = ~np.isnan(train_y)
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11)))
    return model.fit(train_x[rated], train_y[rated]).predict(test_x)


def out_of_sample(x: np.ndarray, y: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """`ridge` for each nodule from other patients' nodules: (n, F), (n,), (n,) -> (n,)."""
    predicted = np.empty(len(x))
    folds = GroupKFold(min(INNER_FOLDS, len(np.unique(patients))))
    for seen, unseen in folds.split(x, groups=patients):
        predicted[unseen] = ridge(x[seen], y[seen], x[unseen])
    return predicted


def attribute_features(train: Part, test: Part, form: str) -> tuple[np.ndarray, np.ndarray]:
    """The six attributes of the training and of the test nodules: (n, A), (m, A); A is 0 in the form "none".

    An attribute that no training nodule has is left out. In the form "readers" a missing rating is the median.
    """
    means = train.means
    places = [place for place in PLACES if form != "none" and not np.isnan(means[:, place]).all()]
    columns = [(np.empty((len(means), 0)), np.empty((len(test.means), 0)))]
    for place in places:
        if form == "predicted":
            y, patients = means[:, place], train.records[schema.PATIENT_ID]
            pair = out_of_sample(train.features, y, patients), ridge(train.features, y, test.features)
        else:
            median = np.nanmedian(means[:, place])
            pair = tuple(np.where(np.isnan(y), median, y) for y in (means[:, place], test.means[:, place]))
        columns.append((pair[0][:, None], pair[1][:, None]))
    seen, unseen = zip(*columns, strict=True)
    return np.concatenate(seen, axis=1), np.concatenate(unseen, axis=1)


def predict(train: Part, test: Part, seed: int, form: str) -> np.ndarray:
    """(m, 9, 6) probabilities, of malignancy alone; see `second_stage.cross_validate`."""
    del seed  # nothing is drawn
    train_x, test_x = (
        np.concatenate(pair, axis=1)
        for pair in zip((train.features, test.features), attribute_features(train, test, form), strict=True)
    )
    y = train.means[:, schema.MALIGNANCY]
    rated = ~np.isnan(y)
    mean, sd = gaussian_process(train_x[rated], y[rated], test_x)
    classes = schema.RATINGS[schema.MALIGNANCY].classes
    probabilities = second_stage.no_answers(len(test_x))
    probabilities[:, schema.MALIGNANCY] = 0.0
    probabilities[:, schema.MALIGNANCY, :classes] = second_stage.gaussian_classes(mean, sd, classes)
    return probabilities


def run(config: ConfigDict, workdir: Path, attributes: str = "none", network_workdir: Path | None = None) -> dict:
    """Cross-validates one form of TumorNet on the config's nodules; gives the results as in results.json.

    Raises:
      UserError: there is no such form.
    """
    if attributes not in FORMS:
        raise UserError(f"attributes: '{attributes}' is none of {', '.join(FORMS)}")
    method = {"name": "tumornet", "attributes": attributes}
    network = network_workdir or workdir
    return second_stage.cross_validate(config, workdir, partial(predict, form=attributes), method, network=network)


if __name__ == "__main__":
    second_stage.launch(run, "attributes", "network_workdir")
