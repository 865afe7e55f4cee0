"""From CT files and radiologists' readings to patches with labels. NumPy only: no JAX, no TensorFlow."""
