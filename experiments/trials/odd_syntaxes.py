"""Odd CTs in DICOM: other transfer syntaxes, and damage to compressed pixels."""

from collections.abc import Callable
from pathlib import Path

import pydicom
from pydicom.encaps import encapsulate, generate_frames

from experiments.trials.odd_kinds import SAME, Case, Kind, Maker, Scan, Unavailable, link, replace

PLAIN = "ImplicitVRLittleEndian", "ExplicitVRBigEndian", "DeflatedExplicitVRLittleEndian"
HIGH_THROUGHPUT = "HTJ2KLossless", "HTJ2KLosslessRPCL", "HTJ2K"
COMPRESSED = "RLELossless", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"


def _transcode(source: Path, target: Path, syntax: str) -> None:
    try:
        import gdcm  # type: ignore[import-untyped]  # it comes without annotations
    except ImportError as error:
        raise Unavailable('needs pip install "pnsamp-jax[compressed]"') from error
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    change.Change()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.Write()


def _transcoded(syntax: str, damage: Callable[[bytes], bytes] | None = None) -> Maker:
    """Return a maker of a series with slices in another syntax.

    Without `damage` every second slice is transcoded. Otherwise only the slice at the point is, and its bytes are
    damaged.
    """

    def make(scan: Scan, folder: Path) -> Case:
        link(scan, folder)
        for i in [scan.middle] if damage else range(0, len(scan.files), 2):
            target = folder / f"{i:04}.dcm"
            target.unlink()
            _transcode(scan.files[i], target, syntax)
            if damage:
                ds = pydicom.dcmread(target)
                frame = next(generate_frames(ds.PixelData, number_of_frames=1))
                ds.PixelData = encapsulate([damage(frame)])
                ds["PixelData"].is_undefined_length = True
                replace(target, ds)
        return Case(folder)

    return make


def _high_throughput(syntax: str, damage: Callable[[bytes], bytes] | None = None) -> Maker:
    """Return a maker of a series in High-Throughput JPEG 2000; see `_transcoded`."""

    def make(scan: Scan, folder: Path) -> Case:
        try:
            from imagecodecs import htj2k_encode  # type: ignore[import-not-found]  # not needed otherwise
        except ImportError as error:
            raise Unavailable("needs pip install imagecodecs, to encode it") from error
        link(scan, folder)
        for i in [scan.middle] if damage else range(0, len(scan.files), 2):
            ds = pydicom.dcmread(scan.files[i])
            data = bytes(htj2k_encode(ds.pixel_array, reversible=True))
            ds.PixelData = encapsulate([damage(data) if damage else data])
            ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
            ds.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
            replace(folder / f"{i:04}.dcm", ds)
        return Case(folder)

    return make


def _half(data: bytes) -> bytes:
    return data[: len(data) // 4 * 2]  # DICOM pads to an even length


def kinds() -> list[Kind]:
    """Return all kinds."""
    plain = [Kind(syntax, _transcoded(syntax), SAME) for syntax in PLAIN + COMPRESSED]
    cut = [Kind(f"{syntax}, cut", _transcoded(syntax, _half), "pixel data") for syntax in COMPRESSED]
    high = [Kind(syntax, _high_throughput(syntax), SAME) for syntax in HIGH_THROUGHPUT]
    high += [Kind(f"{syntax}, cut", _high_throughput(syntax, _half), "pixel data") for syntax in HIGH_THROUGHPUT]
    return plain + cut + high
