"""PN-SAMP in Keras 3, the paper's toolkit, to compare with: the network of `pnsamp_jax/models/pn_samp.py`.

Written and trained as Keras' own guides do it: layers of the library, `compile` and `train_on_batch`. It runs on what
KERAS_BACKEND names, else on TensorFlow where that is installed, else on JAX.
"""

import os
from importlib.util import find_spec

from ml_collections import ConfigDict

from experiments.speed.worker import System, seen
from pnsamp_jax.data import schema

# Keras reads it when it is first imported.
os.environ.setdefault("KERAS_BACKEND", "tensorflow" if find_spec("tensorflow") else "jax")

import keras  # noqa: E402
from keras import KerasTensor, layers, ops  # noqa: E402


def block(x: KerasTensor, features: int, name: str) -> KerasTensor:
    """BatchNorm -> Conv 3x3x3 -> ELU: (B, D, H, W, C) -> (B, D, H, W, features)."""
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
    return layers.Conv3D(features, 3, padding="same", activation="elu", name=f"{name}_conv")(x)


def summarise(x: KerasTensor) -> list[KerasTensor]:
    """Mean and maximum over space: (B, D, H, W, C) -> (B, C) float32 of each."""
    return [layers.GlobalAveragePooling3D(dtype="float32")(x), layers.GlobalMaxPooling3D(dtype="float32")(x)]


def dense(parts: list[KerasTensor], features: int, name: str, activation: str | None = "elu") -> KerasTensor:
    """(B, F) of each part, joined -> (B, features) float32."""
    x = layers.Concatenate(dtype="float32")(parts) if len(parts) > 1 else parts[0]
    return layers.Dense(features, activation, dtype="float32", name=name)(x)


def build(side: int, channels: int, features=(16, 32, 64, 128), mask_features=(8, 16, 32, 64)) -> keras.Model:
    """The multi-task form without dropout: (B, S, S, S, windows) -> logits by name, as `torch_pn_samp` has them."""
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
    below = layers.UpSampling3D(2)(layers.Conv3D(1, 1, use_bias=False, name="mask_below")(x))
    prior = keras.initializers.Constant(-4.0)  # MASK_PRIOR
    beside = layers.Conv3D(1, 1, bias_initializer=prior, name="mask_beside")(skips[0])
    mask = layers.Add(dtype="float32")([below, beside])  # as in Flax, the largest map is never joined
    y = layers.Activation("sigmoid", dtype="float32")(mask)
    for level, width in enumerate(mask_features):
        y = layers.MaxPooling3D(2)(block(y, width, f"mask_{level}"))
    x = dense([*summaries, *summarise(y)], 192, "fusion")
    attributes, outputs = [], {"mask": layers.Reshape((side, side, side), dtype="float32", name="logits")(mask)}
    for name, classes in schema.RATINGS:
        given = [x, *attributes] if name == "malignancy" else [x]
        attributes.append(dense(given, 24, f"{name}_features"))
        outputs[name] = dense(attributes[-1:], classes, name, None)
    return keras.Model(inputs, outputs)


def dice_loss(mask: KerasTensor, logits: KerasTensor) -> KerasTensor:
    """See `losses.dice_loss`, and its EPSILON."""
    p, space = ops.sigmoid(logits), (1, 2, 3)
    return 1 - (2 * ops.sum(p * mask, space) + 1) / (ops.sum(p * p + mask * mask, space) + 1)


def compile_model(model: keras.Model, learning_rate: float, weights: dict[str, float]) -> None:
    """Gives a model Adam and the loss of `losses.total`, for nodules of which every rating is there."""
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
    """The one system, `keras`; for its parts see `jax_systems.create`."""
    if config.model.dtype == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    fields = {name: config.model[name] for name in ("features", "mask_features") if name in config.model}
    model = build(config.patch_size, len(config.model.windows), **fields)
    compile_model(model, config.learning_rate, config.loss.to_dict())
    patches, mask, classes = seen(config)
    inputs, truth = ops.convert_to_tensor(patches), {"mask": ops.convert_to_tensor(mask)}
    truth |= zip(schema.RATING_NAMES, classes.T, strict=True)
    step, forward = model.train_on_batch, model.predict_on_batch  # results go to the host, as Keras does it
    parts = {"train_step": lambda: step(inputs, truth), "forward": lambda: forward(inputs)}
    parts["latency"] = lambda: forward(patches[:1])
    about = {"name": f"Keras ({keras.backend.backend()})", "version": keras.__version__, "device": str(inputs.device)}
    return System(about, parts)
