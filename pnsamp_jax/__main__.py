"""Make `python -m pnsamp_jax` the console command `pnsamp`."""

from pnsamp_jax.cli import main

if __name__ == "__main__":
    main()
