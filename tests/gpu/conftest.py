"""The device of the tests: the CPU, where each test is small, and the first GPU."""

import pytest

GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def reason_against(device: str, count: int = 1) -> str | None:
    """Return why tests cannot run on `count` devices of this kind here, None if they can."""
    import torch

    if device == "cpu":
        return None
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA"
    found = torch.cuda.device_count()
    if found < count:
        return f"needs {count} CUDA GPUs, {found} are visible"
    return None


@pytest.fixture(params=["cpu", GPU])
def device(request):
    """Return the device on which the test computes; results are compared with the CPU's."""
    import torch

    if reason := reason_against(request.param):
        pytest.skip(reason)
    return torch.device(request.param)


@pytest.fixture(params=["cpu", GPU])
def pair_of_devices(request):
    """Return the kind of device of which two are used: two processes on the CPU, or two GPUs."""
    if reason := reason_against(request.param, 2):
        pytest.skip(reason)
    return request.param
