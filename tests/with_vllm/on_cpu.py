"""vLLM on a CPU, in this process: what it must be told, to be imported before anything else."""

import functools
import os


os.environ.update(
    {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
)
import trl.generation.vllm_generation
import vllm._custom_ops
from vllm.model_executor.layers import utils


# vLLM packs weights when it loads them, and those that come later would be refused, or never used
vllm._custom_ops._supports_onednn = False
utils.check_cpu_sgl_kernel = lambda *_: False
# TRL leaves the type to vLLM, which takes 16 bits for a model of 32; and compiling takes longer than these tests
trl.generation.vllm_generation.LLM = functools.partial(
    trl.generation.vllm_generation.LLM, dtype="float32", enforce_eager=True
)
