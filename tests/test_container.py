"""The images: what the Dockerfile copies, says and runs; what the locked files pin; what compose.yaml starts.

No container engine is needed: the image's commands are run in this environment, or in the one that GPUMATCH_IMAGE_VENV
names (`make container-check` makes it as the image does).
"""

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from gpumatch.demo import lake_path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS = ("cpu", "gpu")
# what CuPy compiles overlap.cu by, and the headers for it
NVRTC = ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime")


def instructions():
    """Return the Dockerfile's instructions, [word, rest] each, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    return [line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def stages():
    """Return each stage's name, what it is made from and its instructions, in their order."""
    found = {}
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.split()
            found[name] = (base, [])
        elif found:
            found[next(reversed(found))][1].append((word, rest))
    return found


def image(target):
    """Return the instructions that make an image, from its base up."""
    base, own = stages()[target]
    return [*(image(base) if base in stages() else [("FROM", base)]), *own]


def last(target, word):
    return [rest for one, rest in image(target) if one == word][-1]


def environment(target):
    """Return what an image's ENV lines set."""
    lines = [rest for word, rest in image(target) if word == "ENV"]
    return dict(pair.split("=", 1) for line in lines for pair in shlex.split(line))


def health_command(target):
    return json.loads(last(target, "HEALTHCHECK").partition("CMD")[2])


def pins(name):
    """Return the version and the hashes of each package of a locked file."""
    lines = (ROOT / "docker" / f"requirements-{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    found = {}
    for line in lines:
        if not line.startswith("#"):
            pin, *options = line.split()
            package, _, version = pin.partition("==")
            found[canonicalize_name(package)] = (version, options)
    return found


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if not line.startswith("#")}


# --- Dockerfile


def test_a_build_without_a_target_is_the_gpu_image():
    assert list(stages())[-1] == "gpu"
    assert set(TARGETS) <= set(stages())


@pytest.mark.parametrize("target", TARGETS)
def test_the_base_is_pinned_by_its_digest_and_the_label_names_it(target):
    base = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG" and "=" in rest)["BASE"]
    tag, digest = re.fullmatch(r"(.+)@sha256:([0-9a-f]{64})", base).groups()
    assert len(digest) == 64
    assert image(target)[0] == ("FROM", "${BASE}")
    labels = dict(pair.split("=", 1) for pair in shlex.split(last(target, "LABEL")))
    assert labels["org.opencontainers.image.base.name"].endswith(f"/{tag}")
    assert labels["org.opencontainers.image.version"] == PROJECT["project"]["version"]
    assert labels["org.opencontainers.image.licenses"] == PROJECT["project"]["license"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_user_is_not_root(target):
    assert image(target)[-1][0] == "USER", "a later instruction would be carried out as another"
    user, _, group = last(target, "USER").partition(":")
    assert int(user) == int(group) == 10001
    assert any(word == "RUN" and f"--uid {user} " in rest for word, rest in image(target))


@pytest.mark.parametrize("target", TARGETS)
def test_everything_that_is_kept_is_kept_in_the_volume(target):
    assert last(target, "VOLUME") == "/cache"
    kept = {name: value for name, value in environment(target).items() if re.search(r"_CACHE_(DIR|PATH)$", name)}
    assert {"GPUMATCH_CACHE_DIR", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "CUPY_CACHE_DIR"} <= set(kept)
    assert {Path(value).parts[:2] for value in kept.values()} == {("/", "cache")}
    assert kept["GPUMATCH_CACHE_DIR"] == "/cache"


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_asks_no_hub_and_imports_nothing_of_the_working_folder(target):
    assert environment(target)["HF_HUB_OFFLINE"] == "1"
    assert environment(target)["PYTHONSAFEPATH"] == "1"


def test_the_gpu_image_has_what_triton_compiles_with():
    installed = [rest.split() for word, rest in image("gpu") if word == "RUN" and "apt-get install" in rest]
    assert {"gcc", "libc6-dev"} <= {word for words in installed for word in words}
    assert {"compute", "utility"} == set(environment("gpu")["NVIDIA_DRIVER_CAPABILITIES"].split(","))


def copied():
    """Return what is copied from the repository."""
    lines = [rest.split() for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    return {source for words in lines for source in words[:-1]}


def test_what_is_copied_is_there_and_git_has_it():
    for path in copied():
        assert (ROOT / path).exists(), path
        done = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
        assert done.returncode == 1, f"git ignores {path}: a clone has it not"


def test_what_the_wheel_is_built_from_is_copied():
    linked = {one.resolve().relative_to(ROOT).parts[0] for one in (ROOT / "gpumatch").iterdir() if one.is_symlink()}
    assert linked == {"kernels", "cache"}
    needed = {"pyproject.toml", "gpumatch", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], *linked}
    source = {rest.split()[-1]: set(rest.split()[:-1]) for word, rest in stages()["source"][1] if word == "COPY"}
    assert needed <= set().union(*source.values())
    for folder in linked:
        assert source[f"/src/{folder}"] == {folder}, "a link points to the folder beside gpumatch"


def test_the_context_is_what_is_copied():
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {Path(path).parts[0] for path in copied()}


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_is_made_by_the_install_script(target):
    runs = [rest for word, rest in stages()[f"packages-{target}"][1] + image(target) if word == "RUN"]
    script = "/src/docker/install.sh /opt/gpumatch"
    assert [run.split("/src/", 1)[1] for run in runs if script in run] == [
        f"docker/install.sh /opt/gpumatch {target} {part}" for part in ("dependencies", "project")
    ]
    assert environment(target)["PATH"].startswith("/opt/gpumatch/bin:")


# --- what an image runs


def run_in_image(command, target, folder):
    """Run a command line as the image does: its environment, an empty volume, no home folder."""
    venv = Path(os.environ.get("GPUMATCH_IMAGE_VENV", sys.prefix))
    variables = {name: value.replace("/cache", str(folder / "cache")) for name, value in environment(target).items()}
    variables["PATH"] = f"{venv}/bin:/usr/bin:/bin"
    if "GPUMATCH_IMAGE_VENV" not in os.environ:
        del variables["NUMBA_CACHE_DIR"]  # loops that are compiled already are taken from where they lie
    (folder / "cache").mkdir(mode=0o700)
    entry = json.loads(last(target, "ENTRYPOINT"))
    assert command[:1] == entry
    assert (venv / "bin" / entry[0]).is_file()
    return subprocess.run(
        [str(venv / "bin" / entry[0]), *command[1:]],
        env={"HOME": "/nonexistent", "LANG": "C.UTF-8", **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_image_command_that_tells_health(tmp_path):
    assert health_command("cpu") == health_command("gpu")
    done = run_in_image(health_command("cpu"), "cpu", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(re.findall(r"^(?:ok|note|warn|fail) +(\S.*?)  +(.*)$", done.stdout, re.MULTILINE))
    assert found["cache"] == f"{tmp_path / 'cache'} can be written"
    assert found["encoder weights"].endswith("sha256 as expected")
    assert found["HF_HUB_OFFLINE"].startswith("1: ")


def test_image_command_takes_its_settings_from_the_image(tmp_path):
    entry = json.loads(last("gpu", "ENTRYPOINT"))
    done = run_in_image([*entry, "config", "show"], "gpu", tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.split()[:1] == ["cache_dir"]]
    assert str(tmp_path / "cache") in line
    assert "GPUMATCH_CACHE_DIR" in line


def test_image_command_of_the_documents(tmp_path):
    entry = json.loads(last("cpu", "ENTRYPOINT"))
    rest = ["match", str(lake_path("join")), "--task", "join", "--max-queries", "3", "--layer", "L1"]
    done = run_in_image([*entry, *rest], "cpu", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3
    assert all(row["matches"] for row in rows)
    assert any((tmp_path / "cache").iterdir()), "the index is kept in the volume"
    assert [one.name for one in tmp_path.iterdir()] == ["cache"], "and nothing beside it"


def test_image_command_without_words_is_the_help():
    assert json.loads(last("cpu", "CMD")) == json.loads(last("gpu", "CMD")) == ["--help"]


# --- locked files


@pytest.mark.parametrize("name", [*TARGETS, "uv"])
def test_every_package_has_one_version_and_hashes_and_no_address(name):
    found = pins(name)
    assert found
    for package, (version, options) in found.items():
        assert Version(version), package
        assert options, package
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in options), package
    text = (ROOT / "docker" / f"requirements-{name}.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index|--find-links|-f |/tmp|/home|/opt|@ ", text)


@pytest.mark.parametrize("name", TARGETS)
def test_versions_are_those_of_constraints(name):
    wanted = constraints()
    found = {package: Version(version).public for package, (version, _) in pins(name).items()}
    shared = set(found) & set(wanted)
    assert {"torch", "numpy", "numba", "duckdb"} <= shared
    # torch's CUDA build asks for one Triton; its CPU build for none, and the tests take a newer one
    differing = {package for package in shared if found[package] != Version(wanted[package]).public}
    assert differing <= ({"triton"} if name == "gpu" else set())


def test_the_cpu_file_has_the_cpu_build_and_nothing_of_cuda():
    found = pins("cpu")
    assert Version(found["torch"][0]).local == "cpu"
    assert not [package for package in found if re.search(r"nvidia|cuda|-cu\d\d|triton", package)]


def test_the_packages_of_the_gpu_file_share_one_cuda():
    found = pins("gpu")
    assert Version(found["torch"][0]).local is None
    assert {"faiss-gpu-cu13-cuvs", "cupy-cuda13x", *NVRTC} <= set(found)
    majors = {match for package in found for match in re.findall(r"-cu(?:da)?(\d\d)(?!\d)", package)}
    releases = [Version(found[one][0]).release for one in ("cuda-toolkit", *NVRTC)]
    assert majors | {str(release[0]) for release in releases} == {"13"}
    # what compiles kernels at run time is no newer than the CUDA that torch asks a driver for
    assert len({release[:2] for release in releases}) == 1


@pytest.mark.parametrize("name", TARGETS)
def test_the_files_have_all_that_pyproject_asks_for(name):
    found = pins(name)
    extras = PROJECT["project"]["optional-dependencies"]
    asked = PROJECT["project"]["dependencies"] + PROJECT["build-system"]["requires"]
    for text in asked + (["faiss-gpu-cu13-cuvs", *extras["cupy"]] if name == "gpu" else []):
        requirement = Requirement(text)
        version = found[canonicalize_name(requirement.name)][0]
        assert requirement.specifier.contains(version), f"{text}: {version}"


def test_the_files_have_all_that_their_packages_ask_for():
    for package, (version, _) in pins("cpu").items():
        if package == "torch" and "+cpu" not in importlib.metadata.version("torch"):
            continue  # another build asks for other packages
        assert Version(importlib.metadata.version(package)).public == Version(version).public
        for text in importlib.metadata.requires(package) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in pins("cpu"), f"{package} asks for {text}"


def test_both_images_have_the_same_packages_but_for_cuda():
    cpu, gpu = pins("cpu"), pins("gpu")
    assert set(cpu) <= set(gpu)
    assert [package for package in cpu if cpu[package][0] != gpu[package][0]] == ["torch"]


# --- compose.yaml


def test_services_of_compose():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert set(compose["services"]) == set(TARGETS)
    for name, service in compose["services"].items():
        assert service["build"]["target"] == name
        assert set(service["build"].get("args", {})) <= {rest for word, rest in instructions() if word == "ARG"}
        assert service["profiles"] == [name]
        assert service["volumes"][0].endswith(":/lake:ro")
        assert service["volumes"][1] == f"cache:{last(name, 'VOLUME')}"
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert service["command"][0] == "match"
        assert service["read_only"] is True
        assert service["network_mode"] == "none"
    assert compose["volumes"]["cache"]["name"] == "gpumatch-cache"


def test_only_the_gpu_service_reserves_a_gpu():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert "reservations" not in services["cpu"]["deploy"]["resources"]
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
