"""The data of a page, read back from the file."""

import base64
import json
import re
import zlib

import numpy as np

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">&amp;{{data}}"


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
