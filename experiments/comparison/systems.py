"""The systems that are compared: how each is trained under one protocol, and its published results.

A protocol is a config (data, size, epochs, folds); the `apply_to` of a system's own config sets its model and its loss
on it. Every system has a folder of its own, named by its key, in the workdir of the comparison.

The published results are those in Wu et al., ISBI 2018, which took those of TumorNet, SHC-DCNN, MCNN and CNN-MTL from
their papers: other nodules and other splits. MCNN's is the accuracy of benign against malignant.
"""

import copy
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.comparison.average_runs import average
from experiments.comparison.runs import is_complete
from pnsamp_jax import train
from pnsamp_jax.config import read_settings
from pnsamp_jax.evaluate import PAPER
from pnsamp_jax.workdir import layout

PN_SAMP = "pn_samp_m"  # the reference of all differences, and the source of predicted masks
AVERAGED = ("pn_samp_s1", "pn_samp_s2", PN_SAMP)

Run = Callable[[ConfigDict, Path], object]  # of the system's config and workdir


def _baseline(module: str, **options: str | Path) -> Run:
    """Return the run of a module in `baselines`. A Path among its options is relative to the folder of all systems."""

    def run(config: ConfigDict, workdir: Path) -> None:
        resolved = {name: workdir.parent / it if isinstance(it, Path) else it for name, it in options.items()}
        import_module(f"experiments.baselines.{module}").run(config, workdir, **resolved)

    return run


def _average(config: ConfigDict, workdir: Path) -> None:
    average(workdir, [workdir.parent / key for key in AVERAGED])


class System(NamedTuple):
    """One row of a table.

    Attributes:
      name: as printed.
      config: the module in `configs` whose `apply_to` turns a protocol into the system's config; "" if nothing is
        trained.
      run: trains, tests and evaluates the system, going on from where it stopped.
      needs: keys of the systems that have to run first.
      uses_readers: whether it is given the readers' outlines or ratings of the nodules that it is tested on.
      slabs_only: whether it means something on slabs alone, which only the source `folder` has.
      published: results in per cent: "dice", "malignancy" (off-by-one) and "mean" (off-by-one of nine ratings).
    """

    name: str
    config: str = ""
    run: Run = train.train_and_evaluate
    needs: tuple[str, ...] = ()
    uses_readers: bool = False
    slabs_only: bool = False
    published: dict[str, float] = {}


MASK = {"mask_run": Path(PN_SAMP)}
TUMORNET = {"network_workdir": Path("tumornet_network")}  # shared by its three variants
SHC = {"network_workdir": Path("shc_dcnn_network")}
ATTRIBUTES = {"malignancy": 92.31}

SYSTEMS = {
    "depth": System("Depth of the image file alone, no voxels", "depth", _baseline("depth"), slabs_only=True),
    "diameter": System("Diameter alone, readers' mask", "diameter", _baseline("diameter"), uses_readers=True),
    "radiomics": System("Radiomics forest, readers' mask", "radiomics", _baseline("radiomics"), uses_readers=True),
    "radiomics_predicted": System(
        "Radiomics forest, predicted mask", "radiomics", _baseline("radiomics", **MASK), (PN_SAMP,)
    ),
    "tumornet": System("TumorNet", "tumornet", _baseline("tumornet", **TUMORNET), published={"malignancy": 82.47}),
    "tumornet_readers": System(
        "TumorNet-attribute, readers' ratings (oracle)",
        "tumornet",
        _baseline("tumornet", attributes="readers", **TUMORNET),
        uses_readers=True,
        published=ATTRIBUTES,
    ),
    "tumornet_predicted": System(
        "TumorNet-attribute, predicted ratings",
        "tumornet",
        _baseline("tumornet", attributes="predicted", **TUMORNET),
        published=ATTRIBUTES,
    ),
    "shc_dcnn": System(
        "SHC-DCNN, readers' mask",
        "shc_dcnn",
        _baseline("shc_dcnn", **SHC),
        uses_readers=True,
        published={"malignancy": 82.4},
    ),
    "shc_dcnn_predicted": System(
        "SHC-DCNN, predicted mask",
        "shc_dcnn",
        _baseline("shc_dcnn", **SHC, **MASK),
        (PN_SAMP,),
        published={"malignancy": 82.4},
    ),
    "mcnn": System("MCNN", "mcnn", _baseline("mcnn"), published={"malignancy": 86.84}),
    "cnn_mtl": System("CNN-MTL", "cnn_mtl", _baseline("cnn_mtl"), published={"malignancy": 91.26}),
    "unet3d": System("3D-UNet", "unet3d", published={"dice": 71.97}),
    "pn_samp_seg": System("PN-SAMP Seg", "pn_samp_seg", published=PAPER["Seg"]),
    "pn_samp_c": System("PN-SAMP C", "pn_samp_c", published=PAPER["C"]),
    "pn_samp_s1": System("PN-SAMP S1", "pn_samp_s1", published=PAPER["S1"]),
    "pn_samp_s2": System("PN-SAMP S2", "pn_samp_s2", published=PAPER["S2"]),
    PN_SAMP: System("PN-SAMP M", "pn_samp_m", published=PAPER["M"]),
    "pn_samp_mean": System("PN-SAMP S1, S2 and M, averaged", run=_average, needs=AVERAGED),
}


def config_of(key: str, protocol: ConfigDict) -> ConfigDict:
    """Return the system's config under a protocol, which is not changed."""
    config, module = copy.deepcopy(protocol), SYSTEMS[key].config
    return import_module(f"pnsamp_jax.configs.{module}").apply_to(config) if module else config


def check_workdir(workdir: Path, config: ConfigDict) -> dict:
    """Return the fields of a config as JSON; raise UserError if the workdir belongs to another config."""
    fields = json.loads(config.to_json())
    layout.check_config(workdir, fields)
    return fields


def check_system(key: str, protocol: ConfigDict, root: Path) -> None:
    """Raise UserError if a system's folder in `root` holds a run of another config, such as of fewer epochs."""
    if SYSTEMS[key].config:
        check_workdir(root / key, config_of(key, protocol))


def run_system(key: str, protocol: ConfigDict, root: Path) -> None:
    """Run a system in its folder of `root`, after the systems that it needs. A complete run is left alone.

    Raises:
      UserError: the folder holds a run of another config, or the run raises it.
    """
    system, workdir, config = SYSTEMS[key], root / key, config_of(key, protocol)
    for needed in system.needs:
        run_system(needed, protocol, root)
    check_system(key, protocol, root)
    if not is_complete(workdir, read_settings(protocol).folds):
        print(f"\n{system.name}: {workdir}", flush=True)
        system.run(config, workdir)
