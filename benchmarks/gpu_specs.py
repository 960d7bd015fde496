"""Published peaks of NVIDIA GPUs."""

import re

# Peak of dense bfloat16 matrix products in 10^12 operations per second, by a pattern of the device's name. Data sheets
# that state the rate with sparsity are halved. The first pattern that matches counts.
_DENSE_BF16 = (
    (r"\bB200\b", 2250.0, "https://www.nvidia.com/en-us/data-center/hgx/"),
    (r"\bH200 NVL\b", 835.5, "https://www.nvidia.com/en-us/data-center/h200/"),
    (r"\bH200\b", 989.5, "https://www.nvidia.com/en-us/data-center/h200/"),
    (r"\bH100 PCIe\b", 756.0, "https://www.nvidia.com/en-us/data-center/h100/"),
    (r"\bH100 NVL\b", 835.5, "https://www.nvidia.com/en-us/data-center/h100/"),
    (r"\b(H100|H800|GH200)\b", 989.5, "https://www.nvidia.com/en-us/data-center/h100/"),
    (r"\b(A100|A800)\b", 312.0, "https://www.nvidia.com/en-us/data-center/a100/"),
    (r"\bL40S\b", 362.0, "https://www.nvidia.com/en-us/data-center/l40s/"),
    (r"\bL40\b", 181.0, "https://www.nvidia.com/en-us/data-center/l40/"),
    (r"\bL4\b", 121.0, "https://www.nvidia.com/en-us/data-center/l4/"),
    (r"\bA30\b", 165.0, "https://www.nvidia.com/en-us/data-center/products/a30-gpu/"),
    (r"\bA10\b", 125.0, "https://www.nvidia.com/en-us/data-center/products/a10-gpu/"),
)


def dense_bf16_peak(device: str) -> float | None:
    """Returns the peak of dense bfloat16 products of a device in TFLOP/s, or None for a device without an entry.

    Args:
      device: the name of the device, such as "NVIDIA H100 80GB HBM3" (`jax.Device.device_kind`).
    """
    return next((peak for pattern, peak, _ in _DENSE_BF16 if re.search(pattern, device)), None)
