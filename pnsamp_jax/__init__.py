"""PN-SAMP in JAX: joint segmentation, attribute and malignancy rating of pulmonary nodules."""

__version__ = "0.1.0"
