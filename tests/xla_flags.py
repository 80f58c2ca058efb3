"""Flags of XLA for tests: virtual CPU devices, compiled quickly."""


def xla_flags(devices: int) -> str:
    """`devices` CPU devices that wait for each other, and programs that compile fast.

    The devices take turns on the cores of a busy machine, and XLA would end the process
    when one has not come to a collective 40 s after the first. Programs of tests run a
    few times: most of their time would be that of MLIR and LLVM.
    """
    return (
        f"--xla_force_host_platform_device_count={devices} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600 "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_use_fusion_emitters=false"
    )
