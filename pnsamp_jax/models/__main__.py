"""Print the table of a model's layers: `python -m pnsamp_jax.models --config pn_samp_m`."""

from absl import app, flags

from pnsamp_jax import config_file
from pnsamp_jax.errors import reported

CONFIG = config_file.define_flag("A Python file, or the name of a shipped config.")
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Print the table of layers of the config's model at the config's patch size."""
    del argv
    with reported():
        from pnsamp_jax import models  # imports JAX, which a wrong command line need not wait for

        fields = CONFIG.value.model.to_dict()
        windows = fields.pop("windows")
        print(models.layer_table(models.create(**fields), CONFIG.value.patch_size, len(windows)))


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line, and report a mistake in it as one line; see `config_file.parse_flags`."""
    with reported():
        return config_file.parse_flags(argv)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
