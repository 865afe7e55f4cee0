"""TensorFlow Datasets builders."""
