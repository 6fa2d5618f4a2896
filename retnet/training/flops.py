"""What a device can do at most, for the model FLOPs utilization. A table, not a measurement."""

import torch

# Dense peaks from the vendors' data sheets, in TFLOP/s: (bfloat16, float16, TF32, float32).
# Sparse figures are twice as high and nothing here computes with sparsity. The first name found
# in the device's name counts, so variants come before their family. 0: no such arithmetic.
_PEAKS = {
    "B200": (2250.0, 2250.0, 1125.0, 75.0),
    "H200 NVL": (835.5, 835.5, 417.5, 60.0),
    "H200": (989.4, 989.4, 494.7, 66.9),
    "GH200": (989.4, 989.4, 494.7, 66.9),
    "H100 PCIe": (756.0, 756.0, 378.0, 51.2),
    "H100 NVL": (835.5, 835.5, 417.5, 60.0),
    "H100": (989.4, 989.4, 494.7, 66.9),
    "A100": (312.0, 312.0, 156.0, 19.5),
    "L40S": (362.1, 362.1, 183.0, 91.6),
    "L4": (121.0, 121.0, 60.0, 30.3),
    "V100 SXM2": (0.0, 125.0, 0.0, 15.7),
    "T4": (0.0, 65.0, 0.0, 8.1),
    "MI300X": (1307.4, 1307.4, 0.0, 163.4),
    "MI325X": (1307.4, 1307.4, 0.0, 163.4),
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Dense FLOP/s of one device in the module's dtype; None where it is not known.

    float32 counts as TF32 where torch may use it (`torch.set_float32_matmul_precision`). A CPU is
    never known: its peak depends on clock and cores.
    """
    if device.type != "cuda":
        return None
    return peak_of_name(torch.cuda.get_device_name(device), dtype)


def peak_of_name(name: str, dtype: torch.dtype) -> float | None:
    """The same, by the device's name as its driver gives it."""
    words = name.replace("-", " ").split()
    if "MIG" in words:  # a slice of a device
        return None
    for known, (bfloat16, float16, tf32, float32) in _PEAKS.items():
        if not set(known.split()) <= set(words):
            continue
        if dtype == torch.float32:
            allowed = torch.get_float32_matmul_precision() != "highest"
            peak = tf32 if allowed and tf32 else float32
        else:
            peak = {torch.bfloat16: bfloat16, torch.float16: float16}.get(dtype, 0.0)
        return peak * 1e12 or None
    return None
