"""The data of a page, read back from the file."""

import base64
import json
import re
import zlib

import numpy as np

from pnsamp_jax.inference.locator import Locator

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">&amp;{{data}}"


HEADER = {  # as `inference.ensemble.described` returns it
    "checkpoint": "shipped with pnsamp_jax",
    "version": "1.2.3",
    "networks": 2,
    "flips": 8,
    "trained_on_simulated_voxels": False,
    "date": "2024-02-29",
}


def make_place():
    """Return a locator of 300 x 360 mm in which `findings.make_finding`'s point is at row 60 and column 40."""
    grey = np.add.outer(np.arange(100), np.arange(120)).astype(np.uint8)
    return Locator(grey, np.array([-61.25 - 3 * 40.5, 40.5 - 3 * 60.5]), 3.0)


def content_of(path):
    """Read the JSON data of a page."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(text)


def cube(packed, size):
    """Unpack the result of `html_page._pack`."""
    levels = np.frombuffer(zlib.decompress(base64.b64decode(packed["voxels"])), np.uint8).reshape((size,) * 3)
    for axis in range(packed["summed"]):
        levels = np.cumsum(levels, axis=axis, dtype=np.uint8)
    return levels


def rounded(value):
    """Round a number as in predictions.csv."""
    return float(f"{value:.6g}")
