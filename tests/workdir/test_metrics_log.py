"""The log of a training: what TensorBoard shows is what metrics.jsonl holds, and more."""

import json
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from pnsamp_jax.workdir.metrics_log import MetricsLog, outlined

CONFIG = {"seed": 3, "learning_rate": 0.001, "augment": {"flip": True}, "model": {"windows": [[1600.0, -600.0]]}}


def read_events(folder):
    """Return the events of all files, which are TFRecords: length (8 bytes), checksum (4), data, checksum (4)."""
    events = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            events.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return events


@pytest.fixture
def events(tmp_path):
    slices = np.zeros((2, 3, 4, 5))
    with MetricsLog(tmp_path, 0, CONFIG) as log:
        log.write("train", 10, {"loss": 2.5, "learning_rate": 1e-3})
        log.write("validation", 12, {"loss": 1.5, "dice": 0.5}, slices)
    return read_events(tmp_path)


def test_scalars_are_those_of_the_file(events, tmp_path):
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in events
        for value in event.summary.value
        if value.HasField("simple_value")
    }
    expected = {("train/loss", 10): 2.5, ("train/learning_rate", 10): 1e-3}
    expected |= {("validation/loss", 12): 1.5, ("validation/dice", 12): 0.5}
    assert scalars == pytest.approx(expected)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 10, "part": "train", "loss": 2.5, "learning_rate": 1e-3},
        {"step": 12, "part": "validation", "loss": 1.5, "dice": 0.5},
    ]


def test_the_config_is_shown_as_text_and_as_hyperparameters(events):
    values = [value for event in events for value in event.summary.value]
    (text,) = (value.tensor.string_val[0].decode() for value in values if value.tag.startswith("config"))
    assert json.loads(text.removeprefix("```json\n").removesuffix("\n```")) == CONFIG
    (start,) = (v.metadata.plugin_data.content for v in values if v.tag == "_hparams_/session_start_info")
    assert b"augment.flip" in start and b"learning_rate" in start and b"model.windows" in start


def test_outlines_are_shown_after_a_validation(events):
    (image,) = (v.image for event in events for v in event.summary.value if v.tag == "validation/outlines")
    assert (image.height, image.width, image.colorspace) == (16, 40, 3)
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_an_outline_is_the_edge_of_its_mask():
    slices = np.zeros((1, 3, 6, 6))
    slices[0, 0] = 0.5
    slices[0, 2, 1:5, 1:5] = 1  # the readers' square
    slices[0, 1, 2:4, 2:4] = 0.9  # the network's, within it
    image = outlined(slices)
    grey, yellow, blue = (127, 127, 127), (255, 217, 47), (78, 179, 255)
    assert image.shape == (24, 24, 3)
    for place, colour in {
        (0, 0): grey,
        (4, 4): yellow,
        (4, 10): yellow,
        (6, 6): grey,
        (8, 8): blue,
        (10, 10): grey,
    }.items():
        assert tuple(image[place]) == colour, place


def test_a_resumed_log_drops_the_steps_that_are_taken_again(tmp_path):
    with MetricsLog(tmp_path, 0, CONFIG) as log:
        for step in (1, 2, 3):
            log.write("train", step, {"loss": float(step)})
    with MetricsLog(tmp_path, 2, CONFIG) as log:
        log.write("train", 3, {"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 9.0)]
