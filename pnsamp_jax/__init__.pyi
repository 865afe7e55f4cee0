from pathlib import Path

from pnsamp_jax.answer import Answer as Answer
from pnsamp_jax.answer import save as save
from pnsamp_jax.answer import save_report as save_report
from pnsamp_jax.errors import UserError as UserError
from pnsamp_jax.predictor import Predictor as Predictor
from pnsamp_jax.predictor import load as load

__version__: str
EXAMPLE_CT: Path
