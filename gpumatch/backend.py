"""The name of a back end in, the `Backend` out; or an error with the package that is missing and how to install it."""

from __future__ import annotations

from gpumatch.config import cuda_major
from gpumatch.errors import DeviceError
from gpumatch.kernels.backends import Backend, CupyBackend, FaissBackend, TorchBackend

# FAISS's packages by the CUDA major that torch is built for. The one for CUDA 13 pins CUDA libraries to exact versions
# that no torch uses: with its dependencies it would put older libraries under torch, hence --no-deps.
_FAISS_GPU = {
    12: "faiss-gpu",
    13: "--no-deps faiss-gpu-cu13-cuvs==1.15.0 libcuvs-cu13==26.6.0 libraft-cu13==26.6.0 librmm-cu13==26.6.0 "
    "rapids-logger==0.2.3",
}


def open_backend(name: str, device: str, threads: int) -> Backend:
    """Return a back end.

    Args:
        name: torch, faiss or cupy.
        device: "cpu" or "cuda".
        threads: CPU threads.

    Raises:
        DeviceError: the back end's package is missing or cannot be imported, or it does not work on the device.
    """
    if name == "torch":
        return TorchBackend(device, threads)
    if name == "cupy" and device == "cpu":
        raise DeviceError("--backend cupy works on a CUDA device, and there is none; use --backend torch")
    package = package_of(name, device)
    try:
        backend = CupyBackend() if name == "cupy" else FaissBackend(device, threads)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise DeviceError(f"--backend {name}: {name} is not installed; pip install {package}") from error
    except (ImportError, AttributeError) as error:  # such as faiss-cpu, which has nothing for a GPU
        found = str(error).splitlines()[0]
        raise DeviceError(
            f"--backend {name} does not work on {device}: {found}; pip install --force-reinstall {package}"
        ) from error
    return backend


def package_of(name: str, device: str) -> str:
    """Return what `pip install` needs to install FAISS or CuPy for a device."""
    if name == "faiss" and device == "cpu":
        return "faiss-cpu"
    major = cuda_major() or 13  # all packages of a process must be for the same one
    return _FAISS_GPU.get(major, _FAISS_GPU[13]) if name == "faiss" else f"cupy-cuda{major}x"
