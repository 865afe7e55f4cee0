"""PN-SAMP in Keras 3, the paper's toolkit, for comparison: the network of `pnsamp_jax/models/pn_samp.py`.

It is written and trained as in Keras' own guides: layers of the library, `compile` and `train_on_batch`. The backend
is the one that KERAS_BACKEND names, otherwise TensorFlow if it is installed, otherwise JAX.
"""

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from ml_collections import ConfigDict

from experiments.speed.worker import System, network_inputs
from pnsamp_jax.data import schema

# Keras reads the variable when it is first imported.
os.environ.setdefault("KERAS_BACKEND", "tensorflow" if find_spec("tensorflow") else "jax")

import keras  # noqa: E402
from keras import KerasTensor, layers, ops  # noqa: E402


def block(x: KerasTensor, features: int, name: str) -> KerasTensor:
    """Apply BatchNorm, Conv 3x3x3 and ELU: (B, D, H, W, C) -> (B, D, H, W, features)."""
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
    return layers.Conv3D(features, 3, padding="same", activation="elu", name=f"{name}_conv")(x)


def summarise(x: KerasTensor) -> list[KerasTensor]:
    """Return mean and maximum over space: (B, D, H, W, C) -> (B, C) float32 of each."""
    return [layers.GlobalAveragePooling3D(dtype="float32")(x), layers.GlobalMaxPooling3D(dtype="float32")(x)]


def dense(inputs: list[KerasTensor], features: int, name: str, activation: str | None = "elu") -> KerasTensor:
    """Apply a dense layer to the concatenated inputs, (B, F) each -> (B, features) float32."""
    x = layers.Concatenate(dtype="float32")(inputs) if len(inputs) > 1 else inputs[0]
    return layers.Dense(features, activation, dtype="float32", name=name)(x)


def build(
    side: int,
    channels: int,
    features: Sequence[int] = (16, 32, 64, 128),
    mask_features: Sequence[int] = (8, 16, 32, 64),
) -> keras.Model:
    """Build the multi-task variant without dropout: (B, S, S, S, windows) -> logits by name, as in `torch_pn_samp`."""
    x = inputs = keras.Input((side, side, side, channels))
    skips = []
    for level, width in enumerate(features):
        skips.append(block(x, width, f"down_{level}"))
        x = layers.MaxPooling3D(2)(skips[-1])
    summaries = summarise(x)
    for level in reversed(range(1, len(features))):
        x = layers.UpSampling3D(2)(block(x, features[level], f"up_{level}"))
        x = layers.Concatenate()([x, skips[level]])
    x = block(x, features[0], "up_0")
    of_up = layers.UpSampling3D(2)(layers.Conv3D(1, 1, use_bias=False, name="mask_up")(x))
    prior = keras.initializers.Constant(-4.0)  # MASK_PRIOR
    of_skip = layers.Conv3D(1, 1, bias_initializer=prior, name="mask_skip")(skips[0])
    mask = layers.Add(dtype="float32")([of_up, of_skip])  # as in Flax, the largest maps are not concatenated
    y = layers.Activation("sigmoid", dtype="float32")(mask)
    for level, width in enumerate(mask_features):
        y = layers.MaxPooling3D(2)(block(y, width, f"mask_{level}"))
    x = dense([*summaries, *summarise(y)], 192, "fusion")
    attributes: list[KerasTensor] = []
    outputs = {"mask": layers.Reshape((side, side, side), dtype="float32", name="logits")(mask)}
    for rating in schema.RATINGS:
        inner = [x, *attributes] if rating.name == "malignancy" else [x]
        attributes.append(dense(inner, 24, f"{rating.name}_features"))
        outputs[rating.name] = dense(attributes[-1:], rating.classes, rating.name, None)
    return keras.Model(inputs, outputs)


def dice_loss(mask: KerasTensor, logits: KerasTensor) -> KerasTensor:
    """Compute `losses.dice_loss`, with its EPSILON of 1."""
    p, space = ops.sigmoid(logits), (1, 2, 3)
    return 1 - (2 * ops.sum(p * mask, space) + 1) / (ops.sum(p * p + mask * mask, space) + 1)


def compile_model(model: keras.Model, learning_rate: float, weights: dict[str, float]) -> None:
    """Compile a model with Adam and the loss of `losses.total`, for nodules with all ratings."""
    attribute = weights["attributes"] / (len(schema.RATINGS) - 1)
    shares = dict.fromkeys(schema.RATING_NAMES, attribute) | {"malignancy": weights["malignancy"]}
    entropy = {name: keras.losses.SparseCategoricalCrossentropy(from_logits=True) for name in shares}
    model.compile(
        keras.optimizers.Adam(learning_rate, epsilon=1e-8),
        loss={"mask": dice_loss, **entropy},
        loss_weights={"mask": weights["segmentation"], **shares},
        jit_compile=keras.backend.backend() == "jax",  # XLA's 3D convolution on CPU is slower than TensorFlow's own
    )


def create(system: str, config: ConfigDict) -> System:
    """Create the system `keras`; for its parts see `jax_systems.create`."""
    if config.model.dtype == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    fields = {name: config.model[name] for name in ("features", "mask_features") if name in config.model}
    model = build(config.patch_size, len(config.model.windows), **fields)
    compile_model(model, config.learning_rate, config.loss.to_dict())
    patches, mask, classes = network_inputs(config)
    inputs, truth = ops.convert_to_tensor(patches), {"mask": ops.convert_to_tensor(mask)}
    truth |= zip(schema.RATING_NAMES, classes.T, strict=True)
    step, forward = model.train_on_batch, model.predict_on_batch  # both copy their results to the host
    parts: dict[str, Callable[[], object]] = {
        "train_step": lambda: step(inputs, truth),
        "forward": lambda: forward(inputs),
    }
    parts["latency"] = lambda: forward(patches[:1])
    about = {"name": f"Keras ({keras.backend.backend()})", "version": keras.__version__, "device": str(inputs.device)}
    return System(about, parts)
