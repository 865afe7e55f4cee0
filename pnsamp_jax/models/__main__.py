"""Prints a model's table of layers: `python -m pnsamp_jax.models --config configs/pn_samp_m.py`."""

from absl import app, flags
from ml_collections import config_flags

from pnsamp_jax import models

CONFIG = config_flags.DEFINE_config_file("config", None, "The config file.")


def main(argv: list[str]) -> None:
    """Prints the table of the config's model at the config's patch size."""
    del argv
    fields = CONFIG.value.model.to_dict()
    windows = fields.pop("windows")
    print(models.layer_table(models.create(**fields), CONFIG.value.patch_size, len(windows)))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
