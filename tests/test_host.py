"""What the host process sets before the first computation."""

import pytest
from jaxlib.xla_client import generate_pjrt_gpu_plugin_options

from vtscale_jax.devices import GPU_MEMORY_SHARE
from vtscale_jax.parallel.host import take_gpu_memory

VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    return monkeypatch


def test_jax_takes_the_share_of_a_gpu_that_plans_count_on(environment):
    take_gpu_memory()
    assert generate_pjrt_gpu_plugin_options()["memory_fraction"] == GPU_MEMORY_SHARE


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.filterwarnings("ignore:.*MEM_FRACTION:DeprecationWarning")
def test_a_share_that_the_user_names_stays(environment, name):
    environment.setenv(name, "0.5")
    take_gpu_memory()
    assert generate_pjrt_gpu_plugin_options()["memory_fraction"] == 0.5
