"""PN-SAMP in JAX: joint segmentation, attribute and malignancy rating of pulmonary nodules.

    import pnsamp_jax

    predictor = pnsamp_jax.load()
    answer = predictor("ct.nii.gz", (-61.5, 40.2, -120.0))  # LPS mm

See `load`, `Predictor`, `Answer`, `save` and `save_report`. They are imported when they are first used, so that the
package itself imports in no time.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

EXAMPLE_CT = Path(__file__).with_name("examples") / "lidc_idri_0001.nii.gz"  # a part of LIDC-IDRI-0001, CC BY 3.0

_MODULES = {
    "load": "predictor",
    "Predictor": "predictor",
    "Answer": "answer",
    "save": "answer",
    "save_report": "answer",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
