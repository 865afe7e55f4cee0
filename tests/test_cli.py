"""pnsamp_jax.cli: the console command builds the config that --config would, and its help explains it."""

import json
import subprocess
import sys
from pathlib import Path

import ct_files
import numpy as np
import pytest
from click.testing import CliRunner

import pnsamp_jax
from pnsamp_jax import cli, config_file
from pnsamp_jax.ct.read import read_image
from pnsamp_jax.data import lidc
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import point_files

COUNTS = {"benign": 895, "malignant": 502}
SUMMARY = {
    "scans": 1018,
    "annotations": 6859,
    "nodules": 2651,
    "cohorts": {"rounded_ne_3": COUNTS},
    "cohorts_by_min_readers": {"1": {"rounded_ne_3": COUNTS}, "2": {"rounded_ne_3": {"benign": 5, "malignant": 4}}},
}


@pytest.fixture
def calls(monkeypatch):
    """The runs that a command starts: mode, config and workdir."""
    found = []
    monkeypatch.setattr(cli, "run", lambda *arguments: found.append(arguments))
    return found


def refusal(capsys, *arguments: str) -> tuple[int, str]:
    """Return the exit status and the only line on stderr of a command that fails."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert not output.out
    return caught.value.code, line


@pytest.mark.parametrize("command", ["", "predict", "train", "evaluate", "prepare", "export", "cohort"])
def test_help_explains_with_examples(command):
    result = CliRunner().invoke(cli.pnsamp, [*command.split(), "--help"], prog_name="pnsamp")
    assert result.exit_code == 0
    assert f"Usage: pnsamp {command}".strip() in result.output
    assert f"Examples:\n    pnsamp {command}" in result.output
    if command in ("", "train", "evaluate", "prepare"):
        words = " ".join(result.output.split())
        for name, summary in config_file.summaries().items():
            assert f"{name} {summary}" in words


def test_without_arguments_it_prints_its_help(capsys):
    cli.main([])
    assert "Usage: pnsamp [OPTIONS]" in capsys.readouterr().out


def test_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"pnsamp, version {pnsamp_jax.__version__}\n"


@pytest.mark.parametrize("command", ["train", "evaluate", "prepare"])
def test_a_config_runs_as_with_mode(command, calls):
    overrides = ["--config.batch_size=4", "--config.seed", "3", "--noconfig.augment.flip"]
    cli.main([command, "--config", "demo", overrides[0], "--workdir", "runs/x", *overrides[1:]])
    ((mode, config, workdir),) = calls
    assert (mode, workdir) == (command, Path("runs/x"))
    assert config.to_dict() == config_file.load("demo", overrides).to_dict()
    assert (config.batch_size, config.seed, config.augment.flip) == (4, 3, False)


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["ct.nii", "--points", "-1,2,3;4,5,6"], {"image": "ct.nii", "points": "-1,2,3;4,5,6"}),
        (["--points", "points.csv"], {"points": "points.csv"}),
        (["--points", "points.csv", "--runtime=openvino"], {"points": "points.csv", "runtime": "openvino"}),
        (
            ["--points=1,2,3", "folder", "--units=voxel", "--checkpoint=runs/m", "--series=1.2.3"],
            {"image": "folder", "points": "1,2,3", "units": "voxel", "checkpoint": "runs/m", "series": "1.2.3"},
        ),
    ],
)
def test_predict_sets_the_fields_of_the_predict_config(arguments, fields, calls):
    cli.main(["predict", *arguments, "--out", "results"])
    ((mode, config, workdir),) = calls
    assert (mode, workdir) == ("predict", Path("results"))
    overrides = [f"--config.predict.{name}={value}" for name, value in fields.items()]
    assert config.to_dict() == config_file.load("predict", overrides).to_dict()


def test_the_example_is_a_part_of_a_real_scan_around_its_point(calls):
    cli.main(["predict", "--example", "--out", "x"])
    ((_, config, _),) = calls
    (request,) = point_files.read_requests(config.predict.image, config.predict.points, config.predict.units)
    ct = read_image(request.path)
    half_mm = np.array(ct.array.shape) * ct.spacing / 2
    assert (half_mm > 19.2 + 3).all()  # a patch of 38.4 mm, with some room
    assert np.abs(ct.to_lps((np.array(ct.array.shape) - 1) / 2) - request.point).max() < ct.spacing.max()
    assert request.path.stat().st_size < 300_000
    if ct_files.REAL.is_dir():  # the voxels are those of the scan, at their place
        scan = read_image(ct_files.REAL)
        start = np.rint(scan.to_index(ct.to_lps((0, 0, 0)))).astype(int)
        box = tuple(slice(a, a + n) for a, n in zip(start, ct.array.shape, strict=True))
        np.testing.assert_array_equal(scan.array[box], ct.array)
        np.testing.assert_allclose(scan.to_lps(start), ct.to_lps((0, 0, 0)), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["fly"], "No such command 'fly'; see pnsamp --help"),
        (["train", "--workdir=x"], "Missing option '--config'; see pnsamp train --help"),
        (["predict", "a.nii", "--out=x"], "Missing option '--points'; see pnsamp predict --help"),
        (["predict", "a.nii", "--example", "--out=x"], "--example brings a CT and a point; leave out CT and --points"),
        (
            ["predict", "--example", "--points=1,2,3", "--out=x"],
            "leave out CT and --points; see pnsamp predict --help",
        ),
        (["predict", "--example", "--units=ras", "--out=x"], "leave out --units, --series and --min-score"),
        (["predict", "--example", "--min-score=0.5", "--out=x"], "leave out --units, --series and --min-score"),
        (["predict", "a.nii", "--points=1,2,3"], "Missing option '--out'; see pnsamp predict --help"),
        (["predict", "a", "--points=1,2,3", "--out=x", "--units=cm"], "'cm' is not one of 'mm', 'ras', 'voxel'"),
        (["train", "--config=nonesuch", "--workdir=x"], "nonesuch: no such file or shipped config; the shipped"),
        (["train", "--config=demo", "--workdir=x", "--config.bach_size=3"], "the closest is config.batch_size"),
        (["train", "--config=demo", "--workdir=x", "--config.seed=a"], "config.seed: must be a whole number"),
        (["train", "--config=demo", "--workdir=x", "--epochs=3"], "unexpected argument '--epochs=3'"),
        (["train", "--config=demo", "--workdir="], "--workdir: is empty; name a folder"),
        (["predict", "a.nii", "--points=1,2,3", "--out="], "--out: is empty; name a folder"),
    ],
)
def test_a_wrong_command_ends_with_one_line_and_status_2(arguments, complaint, capsys, calls):
    status, line = refusal(capsys, *arguments)
    assert status == 2 and line.startswith("pnsamp: ") and complaint in line
    assert not calls


def test_a_mistake_in_the_points_names_the_option(capsys, monkeypatch):
    def fail(mode, config, workdir):
        raise UserError("config.predict.image: leave it out where config.predict.points is a CSV")

    monkeypatch.setattr(cli, "run", fail)
    status, line = refusal(capsys, "predict", "ct.nii", "--points=p.csv", "--out=x")
    assert (status, line) == (1, "pnsamp: CT: leave it out where --points is a CSV")


def test_cohort_prints_a_table_or_the_object_of_the_data_module(capsys, monkeypatch):
    monkeypatch.setattr(lidc, "summary", lambda: SUMMARY)
    cli.main(["cohort"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "LIDC-IDRI: 1018 scans, 6859 annotations, 2651 nodules"
    assert [line.split() for line in lines[2:]] == [
        ["cohort", "readers", "benign", "malignant"],
        ["rounded_ne_3", ">=", "1", "895", "502"],
        ["rounded_ne_3", ">=", "2", "5", "4"],
    ]
    cli.main(["cohort", "--json"])
    printed = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["lidc"])
    lidc.main()
    assert capsys.readouterr().out == printed and json.loads(printed) == SUMMARY


def test_python_m_is_the_same_command_in_any_folder(tmp_path):
    command = [sys.executable, "-m", "pnsamp_jax", "train", "--config", "demo", "--workdir", "x", "--config.seed=a"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pnsamp: config.seed: must be a whole number such as 0, not 'a'\n"
