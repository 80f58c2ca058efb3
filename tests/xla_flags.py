"""Flags of XLA for tests: virtual CPU devices, compiled quickly."""

from importlib.util import find_spec

QUICK = (
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false "
    "--xla_backend_optimization_level="
)
OTHER_COMPILERS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")


def xla_flags(devices: int, *, level: int = 0) -> str:
    """`devices` CPU devices that wait for each other, and programs that compile fast.

    The devices take turns on the cores of a busy machine, and XLA would end the process
    when one has not come to a collective 40 s after the first. Programs of tests run a
    few times: most of their time would be that of MLIR and LLVM. Those that run some
    dozens of times are sooner done with `level` 1.
    """
    flags = (
        f"--xla_force_host_platform_device_count={devices} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
    # Compilers for other devices read the same variable: plans for them would be those
    # of slow programs, and libtpu ends the process at a flag that it does not know.
    if any(find_spec(name) for name in OTHER_COMPILERS):
        return flags
    return f"{flags} {QUICK}{level}"
