"""The systems that are compared: how each is trained under one protocol, and what was published of it.

A protocol is a config (data, size, epochs, folds); a system's own config sets its model and its loss upon it with
`apply_to`. Every system has a folder of its own, named by its key, in the workdir of the comparison.

The published figures are those of Wu et al., ISBI 2018, which took those of TumorNet, SHC-DCNN, MCNN and CNN-MTL
from their papers: other nodules, other splits. MCNN's is the accuracy of benign against malignant.
"""

import copy
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.comparison import ensemble
from experiments.comparison.runs import is_complete
from pnsamp_jax import train
from pnsamp_jax.evaluate import PAPER
from pnsamp_jax.workdir import layout

PN_SAMP = "pn_samp_m"  # what the others are held against, and whose masks they read where masks are predicted
AVERAGED = ("pn_samp_s1", "pn_samp_s2", PN_SAMP)

Run = Callable[[ConfigDict, Path], object]  # the system's config and its workdir


def _stage(module: str, **options) -> Run:
    """A second stage of `experiments`. An option that is a Path is relative to the folder of all the systems."""

    def run(config: ConfigDict, workdir: Path) -> None:
        placed = {name: workdir.parent / it if isinstance(it, Path) else it for name, it in options.items()}
        import_module(f"experiments.{module}").run(config, workdir, **placed)

    return run


def _average(config: ConfigDict, workdir: Path) -> None:
    ensemble.run(workdir, [workdir.parent / key for key in AVERAGED])


class System(NamedTuple):
    """One row of a table.

    Attributes:
      name: as printed.
      config: the module in `configs` whose `apply_to` makes the system of a protocol; "" where nothing is trained.
      run: trains, tests and evaluates it, going on from where it stopped.
      needs: keys of the systems that have to be there first.
      told: whether it is told what the readers drew or rated of the very nodules that it is tested on.
      published: in per cent, by "dice", "malignancy" (off-by-one) and "mean" (of nine ratings).
    """

    name: str
    config: str = ""
    run: Run = train.train_and_evaluate
    needs: tuple[str, ...] = ()
    told: bool = False
    published: dict[str, float] = {}


MASK = {"mask_run": Path(PN_SAMP)}
TUMORNET = {"network_workdir": Path("tumornet_network")}  # its three forms share one
SHC = {"network_workdir": Path("shc_dcnn_network")}
ATTRIBUTES = {"malignancy": 92.31}

SYSTEMS = {
    "diameter": System("Diameter alone, readers' mask", "diameter", _stage("diameter"), told=True),
    "radiomics": System("Radiomics forest, readers' mask", "radiomics", _stage("radiomics"), told=True),
    "radiomics_predicted": System(
        "Radiomics forest, predicted mask", "radiomics", _stage("radiomics", **MASK), (PN_SAMP,)
    ),
    "tumornet": System("TumorNet", "tumornet", _stage("tumornet", **TUMORNET), published={"malignancy": 82.47}),
    "tumornet_readers": System(
        "TumorNet-attribute, readers' ratings (oracle)",
        "tumornet",
        _stage("tumornet", attributes="readers", **TUMORNET),
        told=True,
        published=ATTRIBUTES,
    ),
    "tumornet_predicted": System(
        "TumorNet-attribute, predicted ratings",
        "tumornet",
        _stage("tumornet", attributes="predicted", **TUMORNET),
        published=ATTRIBUTES,
    ),
    "shc_dcnn": System(
        "SHC-DCNN, readers' mask", "shc_dcnn", _stage("shc_dcnn", **SHC), told=True, published={"malignancy": 82.4}
    ),
    "shc_dcnn_predicted": System(
        "SHC-DCNN, predicted mask",
        "shc_dcnn",
        _stage("shc_dcnn", **SHC, **MASK),
        (PN_SAMP,),
        published={"malignancy": 82.4},
    ),
    "mcnn": System("MCNN", "mcnn", _stage("mcnn"), published={"malignancy": 86.84}),
    "cnn_mtl": System("CNN-MTL", "cnn_mtl", _stage("cnn_mtl"), published={"malignancy": 91.26}),
    "unet3d": System("3D-UNet", "unet3d", published={"dice": 71.97}),
    "pn_samp_seg": System("PN-SAMP Seg", "pn_samp_seg", published=PAPER["Seg"]),
    "pn_samp_c": System("PN-SAMP C", "pn_samp_c", published=PAPER["C"]),
    "pn_samp_s1": System("PN-SAMP S1", "pn_samp_s1", published=PAPER["S1"]),
    "pn_samp_s2": System("PN-SAMP S2", "pn_samp_s2", published=PAPER["S2"]),
    PN_SAMP: System("PN-SAMP M", "pn_samp_m", published=PAPER["M"]),
    "pn_samp_mean": System("PN-SAMP S1, S2 and M, averaged", run=_average, needs=AVERAGED),
}


def config_of(key: str, protocol: ConfigDict) -> ConfigDict:
    """The system's config under a protocol, which is left as it is."""
    config, module = copy.deepcopy(protocol), SYSTEMS[key].config
    return import_module(f"pnsamp_jax.configs.{module}").apply_to(config) if module else config


def run_system(key: str, protocol: ConfigDict, root: Path) -> None:
    """Runs a system in its folder of `root`, and first those that it needs. What is complete is left alone.

    Raises:
      UserError: its folder holds a run of another config, or whatever the run finds.
    """
    system, workdir, config = SYSTEMS[key], root / key, config_of(key, protocol)
    for needed in system.needs:
        run_system(needed, protocol, root)
    if system.config:
        layout.check(config, workdir)
    if not is_complete(workdir, layout.chosen_folds(protocol)):
        print(f"\n{system.name}: {workdir}", flush=True)
        system.run(config, workdir)
