"""From CT files and radiologists' annotations to labelled patches. NumPy only: no JAX, no TensorFlow."""
