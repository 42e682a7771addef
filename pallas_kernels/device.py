"""What a call is traced for: block sizes depend on it."""

import jax


def kind(backend: str) -> str | None:
    """Device kind of the mesh in force, which need not be here, else of this machine.

    Args:
        backend: "tpu" or "gpu"; this machine's devices count only if they are of it.

    Returns:
        As `jax.Device.device_kind`, e.g. "TPU v5 lite"; None if unknown.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None and jax.default_backend() == backend:
        device = jax.devices()[0]
    return None if device is None else device.device_kind
