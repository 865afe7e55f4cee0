"""Made-up scans and annotations of LIDC-IDRI."""

import sqlite3

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.data.lidc_database import RATING_COLUMNS, Annotation, Contour, Scan


def ids(groups):
    """Return the annotation ids of each group."""
    return [[annotation.annotation_id for annotation in group] for group in groups]


def contour(points, z_mm=0.0, inclusion=True):
    return Contour(z_mm, inclusion, np.array(points, np.int32))


def square(low, high, **options):
    """Return the contour through every edge pixel of the square from (low, low + 1) to (high, high + 1)."""
    side = range(low, high)
    corners = [(low, i) for i in side] + [(i, high) for i in side]
    corners += [(high, low + high - i) for i in side] + [(low + high - i, low) for i in side]
    return contour(np.array(corners) + (0, 1), **options)


def annotation(annotation_id, *contours, malignancy=3):
    ratings = np.ones(9, int)
    ratings[schema.MALIGNANCY] = malignancy
    return Annotation(annotation_id, ratings, contours)


def dots(*columns, z_mm=0.0, row=0):
    """Return one annotation per column, each a single point, so that their distances are known."""
    return tuple(annotation(i, contour([(row, column)], z_mm)) for i, column in enumerate(columns))


def scan_of(annotations, thickness=2.0, spacing=1.0, slice_z=(0.0, 1.0, 2.0), patient="P1", scan_id=1):
    return Scan(scan_id, patient, "1.2", thickness, spacing, np.array(slice_z), tuple(annotations))


def write_database(path):
    """Write a database of one scan in pylidc's schema, with its rows out of order, and return its path."""
    database = sqlite3.connect(path)
    columns = ", ".join(f"{name} INTEGER" for name in RATING_COLUMNS.split(", "))
    database.executescript(f"""
        CREATE TABLE scans (id INTEGER, series_instance_uid, patient_id, slice_thickness FLOAT, pixel_spacing FLOAT);
        CREATE TABLE annotations (id INTEGER, scan_id INTEGER, {columns});
        CREATE TABLE contours (id INTEGER, annotation_id INTEGER, inclusion, image_z_position FLOAT, coords);
        CREATE TABLE zvals (id INTEGER, scan_id INTEGER, val FLOAT);
        INSERT INTO scans VALUES (4, '1.2', 'P4', 2.5, 0.7);
        INSERT INTO zvals VALUES (1, 4, 2.5), (2, 4, -2.5), (3, 4, 0.0);
        INSERT INTO annotations VALUES (9, 4, 1, 2, 3, 4, 5, 4, 3, 2, 1), (8, 4, 1, 5, 6, 1, 1, 1, 1, 1, 5);
        INSERT INTO contours VALUES (3, 9, 0, 0.0, '3,1\n4,2'), (2, 9, 1, 2.5, '30,10'), (1, 8, 1, 0.0, '300,100');
    """)
    database.close()
    return path
