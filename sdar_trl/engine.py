"""vLLM in the trainer's own process (TRL's colocate mode), asked request by request.

TRL hands vLLM a batch and waits for all of it; with sleep mode, each such call also drops the engine's weights and its
cache of keys and values, to have both back for the next. Here the engine is woken once a rollout, its weights are
pushed once, and each episode's next response is asked for as soon as its environment has answered, while the others
are still being generated.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from trl.extras.profiling import profiling_context


if TYPE_CHECKING:
    from trl import GRPOTrainer


class EngineBackend:
    """
    A [`~sdar_trl.backends.StreamingBackend`]: the engine of a trainer's process.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            The trainer, with `use_vllm=True`, `vllm_mode="colocate"` and one process an engine.
    """

    def __init__(self, trainer: "GRPOTrainer"):
        self.trainer: Any = trainer
        self._asked: dict[str, Any] = {}  # keys of the requests that are not finished

    def begin(self) -> None:
        """Bring the engine to the present weights, awake; every process must do so, whatever it has to play."""
        trainer, engine = self.trainer, self.trainer.vllm_generation
        if engine._llm_weights_sleeping or trainer.state.global_step != trainer._last_loaded_step:
            with profiling_context(trainer, "sync_weights"):
                engine.sync_weights()
            trainer._last_loaded_step = trainer.state.global_step
        if engine.enable_sleep_mode:
            engine.llm.wake_up(tags=["kv_cache"])
        self._options = sampling_options(engine)

    def submit(self, key: Any, ids: list[int], seed: Sequence[int]) -> None:
        """Ask for the response to a row of ids; it is sampled by a random state of its own."""
        from vllm import SamplingParams

        [number] = np.random.SeedSequence(seed).generate_state(1, np.uint64)
        params = SamplingParams(**{**self._options, "seed": int(number >> 1)})
        llm = self.trainer.vllm_generation.llm
        [request] = llm.enqueue([{"prompt_token_ids": ids}], sampling_params=params, use_tqdm=False)
        self._asked[request.partition("-")[0]] = key  # outputs have the number alone

    def collect(self) -> list[tuple[Any, list[int], list[float]]]:
        """Generate one token for each request; key, ids and log-probs (nats) of those that are finished."""
        outputs = [output for output in self.trainer.vllm_generation.llm.llm_engine.step() if output.finished]
        found = []
        for output in outputs:
            [response] = output.outputs
            ids = list(response.token_ids)
            logprobs = [of[token].logprob for of, token in zip(response.logprobs, ids, strict=True)]
            found.append((self._asked.pop(output.request_id), ids, logprobs))
        return found

    def end(self) -> None:
        """The rollout has ended, perhaps by an exception: nothing is left in the engine, and it may sleep."""
        engine = self.trainer.vllm_generation
        if self._asked:
            engine.llm.llm_engine.abort_request(list(self._asked))
            self._asked.clear()
        if engine.enable_sleep_mode and not engine._llm_weights_sleeping:
            engine.llm.sleep(level=2)
            engine._llm_weights_sleeping = True


def sampling_options(engine: Any) -> dict[str, Any]:
    """
    What TRL's engine samples by, as its own `generate` puts it together.

    Args:
        engine ([`~trl.generation.vllm_generation.VLLMGeneration`]):
            The engine.

    Returns:
        `dict[str, Any]`: arguments of vLLM's `SamplingParams`.
    """
    options: dict[str, Any] = {
        "repetition_penalty": engine.repetition_penalty,
        "temperature": engine.temperature,
        "top_p": engine.top_p,
        "top_k": engine.top_k,
        "min_p": engine.min_p or 0.0,
        "max_tokens": engine.max_completion_length,
        "logprobs": 0,  # the sampled token's alone
        **engine.generation_kwargs,
    }
    options.setdefault("detokenize", bool(options.get("stop")))  # nobody reads its text, but for stop strings
    structure = options.get("structured_outputs")
    if engine.structured_outputs_regex is not None:
        structure = {"regex": engine.structured_outputs_regex}
    if isinstance(structure, dict):
        from vllm.sampling_params import StructuredOutputsParams

        options["structured_outputs"] = StructuredOutputsParams(**structure)
    return options
