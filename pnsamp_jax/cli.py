"""The console command `pnsamp`: options become a config, which runs as in `python -m pnsamp_jax.main`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import click

import pnsamp_jax
from pnsamp_jax import config_file
from pnsamp_jax.errors import UsageError, UserError, reported
from pnsamp_jax.files import user_path
from pnsamp_jax.main import run

EXAMPLE = Path(pnsamp_jax.__file__).with_name("examples") / "points.csv"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `pnsamp`, and report a user's mistake as one line.

    Args:
      arguments: of the command line; by default those of this process.
    """
    with reported("pnsamp"):
        try:
            pnsamp.main(arguments, prog_name="pnsamp", standalone_mode=False)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "pnsamp"
            raise UsageError(f"{error.format_message().rstrip('.')}; see {command} --help") from error
        except click.Abort as error:
            raise KeyboardInterrupt from error  # click turns one into the other


class _WithConfigs(click.Command):
    """A command whose --help ends with the list of shipped configs."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list after the examples."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Shipped configs"):
            formatter.write_dl(list(config_file.summaries().items()))


class _Group(_WithConfigs, click.Group):
    """A group of commands whose --help ends with the list of shipped configs."""


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
    Examples:
      pnsamp predict ct.nii.gz --points "-61.5,40.2,-120.0" --out runs/predict
      pnsamp train --config demo --workdir runs/demo
      pnsamp cohort""",
)
@click.version_option(pnsamp_jax.__version__, prog_name="pnsamp")
@click.pass_context
def pnsamp(context: click.Context) -> None:
    """Segment lung nodules in CT and predict radiologists' ratings of them.

    For research only; not a medical device.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@pnsamp.command(
    epilog="""\b
    Examples:
      pnsamp predict ct.nii.gz --points "-61.5,40.2,-120.0;12.0,33.1,-87.5" --out runs/predict
      pnsamp predict dicom_folder --units voxel --points "212,305,88" --out runs/predict
      pnsamp predict --points points.csv --out runs/predict --checkpoint runs/m
      pnsamp predict ct.nrrd --points F.mrk.json --out runs/predict
      pnsamp predict luna16_folder --points candidates.csv --out runs/predict
      pnsamp predict --example --out runs/example
    \b
    DIR then holds predictions.csv and .json, report.html, figures/, masks/ and, for DICOM input, dicom/."""
)
@click.argument("ct", default="")
@click.option("--points", default="", help='"x,y,z;x,y,z", or a file of points; see above.')
@click.option("--example", is_flag=True, help="Predict a nodule of LIDC-IDRI that comes with the package.")
@click.option("--out", required=True, metavar="DIR", help="Folder for the results.")
@click.option(
    "--units", type=click.Choice(["mm", "ras", "voxel"]), default="mm", show_default=True, help="Units of points."
)
@click.option("--min-score", default=0.0, metavar="P", help="Leave out detections with a lower score.")
@click.option("--series", default="", metavar="UID", help="SeriesInstanceUID, if the folder holds several CT series.")
@click.option("--checkpoint", default="", metavar="DIR", help="Workdir of a training.  [default: shipped weights]")
@click.option(
    "--runtime",
    type=click.Choice(["jax", "openvino"]),
    default="jax",
    show_default=True,
    help="What computes the networks' answers.",
)
def predict(
    ct: str,
    points: str,
    example: bool,
    out: str,
    units: str,
    min_score: float,
    series: str,
    checkpoint: str,
    runtime: str,
) -> None:
    """Predict the nodules at the given points of a CT.

    CT is a NIfTI, NRRD, MetaImage or enhanced (multi-frame) CT file, a folder that holds one DICOM series, or a .zip
    or .tar file with one of these. Leave it out if --points is a CSV file that names the images itself; their paths
    are relative to the file.

    Points are in mm, in the LPS system of DICOM and ITK; with --units ras in the RAS system of NIfTI viewers; with
    --units voxel they are the indices i, j, k from 0.

    A file of points is a CSV with the columns nodule_id, image, x_mm, y_mm, z_mm (or i, j, k); a table of LUNA16 or
    LUNA25, where CT is the folder with their images; a .mrk.json or .fcsv of 3D Slicer; the JSON of MONAI's nodule
    detector; or a mask (NIfTI, NRRD, DICOM SEG or RTSTRUCT), each region of which is a nodule.
    """
    if example and (ct or points):
        raise click.UsageError(
            "--example brings a CT and a point; leave out CT and --points", click.get_current_context()
        )
    if example and (units != "mm" or series or min_score):
        raise click.UsageError(
            "--example brings a point in mm; leave out --units, --series and --min-score", click.get_current_context()
        )
    if not example and not points:
        raise click.UsageError("Missing option '--points'", click.get_current_context())
    config = config_file.load("predict")
    points = str(EXAMPLE) if example else points
    values: dict[str, str | float] = {
        **{"image": ct, "points": points, "units": units, "series": series, "checkpoint": checkpoint},
        **{"min_score": min_score, "runtime": runtime},
    }
    config.predict.update(values)
    try:
        run("predict", config, _named(out, "--out"))
    except UserError as error:
        message = str(error)
        for field in values:
            message = message.replace(
                f"config.predict.{field}", "CT" if field == "image" else f"--{field.replace('_', '-')}"
            )
        raise type(error)(message) from error


def _named(folder: str, option: str) -> Path:
    """Return the path of a folder for results. Raise UsageError if it is empty, which would be the current folder."""
    if not folder.strip():
        raise UsageError(f"{option}: is empty; name a folder")
    return user_path(folder)


def _runs_a_config(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of `pnsamp` that takes --config, --workdir and overrides."""
    name = function.__name__
    epilog = f"""\b
    Examples:
      pnsamp {name} --config demo --workdir runs/demo
      pnsamp {name} --config pn_samp_m --workdir runs/m --config.data.source=folder \\
          --config.data.root=/path/to/nodules --config.fold=0
    \b
    configs/base.py describes the fields. A config of your own is a Python file with a get_config() that changes a
    shipped config (from pnsamp_jax.configs import pn_samp_m)."""
    decorators = (
        pnsamp.command(cls=_WithConfigs, context_settings={"ignore_unknown_options": True}, epilog=epilog),
        click.option("--config", required=True, metavar="NAME", help="A shipped config, or a Python file."),
        click.option("--workdir", required=True, metavar="DIR", help="Folder of the run."),
        click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[--config.field=value]..."),
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


@_runs_a_config
def train(config: str, workdir: str, overrides: Sequence[str]) -> None:
    """Cross-validate a network, and evaluate it.

    Prepares the data, trains and tests each fold, and prints the results. The same command continues a run that was
    interrupted.
    """
    run("train", config_file.load(config, overrides), _named(workdir, "--workdir"))


@_runs_a_config
def evaluate(config: str, workdir: str, overrides: Sequence[str]) -> None:
    """Test and evaluate trained folds again."""
    run("evaluate", config_file.load(config, overrides), _named(workdir, "--workdir"))


@_runs_a_config
def prepare(config: str, workdir: str, overrides: Sequence[str]) -> None:
    """Prepare the data, without training."""
    run("prepare", config_file.load(config, overrides), _named(workdir, "--workdir"))


@pnsamp.command(
    epilog="""\b
    Examples:
      pnsamp export shipped --format onnx --out pn_samp.onnx
      pnsamp export runs/m --format openvino --out pn_samp.xml
      pnsamp export runs/m --format stablehlo --out pn_samp.stablehlo"""
)
@click.argument("networks", metavar="DIR")
@click.option(
    "--format", "form", type=click.Choice(["stablehlo", "onnx", "openvino"]), required=True, help="Format of the file."
)
@click.option("--out", required=True, metavar="PATH", help="File to write: .stablehlo, .onnx or .xml.")
def export(networks: str, form: str, out: str) -> None:
    """Write networks as a file that runs without this package.

    DIR is the workdir of a training, or "shipped" for the networks that come with the package. The file answers with
    the mean of all networks: from patches in HU to the probabilities of the mask and of the classes of each rating.
    """
    from pnsamp_jax.export.artifact import export as write  # imports JAX

    for path in write(networks, form, user_path(out)):
        click.echo(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


@pnsamp.command(
    epilog="""\b
    Examples:
      pnsamp cohort
      pnsamp cohort --json > cohorts.json"""
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as python -m pnsamp_jax.data.lidc does.")
def cohort(as_json: bool) -> None:
    """Count LIDC-IDRI's scans, nodules and cohorts.

    "benign" means rated under 3 and "malignant" over 3: the suspicion of the radiologists, not a diagnosis. The cohort
    "all" also holds the nodules rated 3. A cohort is chosen by --config.data.cohort and --config.data.min_readers.
    """
    from pnsamp_jax.data import lidc  # needs a second

    counts = lidc.summary()
    if as_json:
        click.echo(json.dumps(counts))
        return
    click.echo(
        f"LIDC-IDRI: {counts['scans']} scans, {counts['annotations']} annotations, {counts['nodules']} nodules\n"
    )
    click.echo(f"{'cohort':<14}{'readers':>10}{'benign':>10}{'malignant':>12}")
    for least, cohorts in counts["cohorts_by_min_readers"].items():
        for name, members in cohorts.items():
            click.echo(f"{name:<14}{f'>= {least}':>10}{members['benign']:>10}{members['malignant']:>12}")
