"""jaxdecode: decoding and training for language models in JAX, on one compiled loop."""

__version__ = "0.1.0"
