"""The embedded policy: a small Qwen3 with its own tokenizer, warm-started on scripted episodes of the embedded shop.

It comes with the package, so that demos, notebooks and tests train a real policy without a model hub. The scripted
player errs often, unless the skills for its task are in its prompt: so the same weights shop better with skills than
without, which is what self-distillation needs.

Rebuild the shipped weights (two CPU cores, prints how well the policy plays with and without skills):

    python -m sdar_trl.tiny
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from .envs import WebShopEnv
from .rollout import Chat
from .skills import Skill, SkillLibrary, format_skills
from .teacher import add_context


TINY_POLICY = str(Path(__file__).parent / "tiny_policy")
"""Folder of the shipped policy; `from_pretrained` takes it."""

# ChatML. Tools are described in the system message, called as JSON in <tool_call> tags, answered in the tool role.
CHAT_TEMPLATE = """\
{%- if tools and messages[0].role != 'system' -%}
{%- set messages = [{'role': 'system', 'content': ''}] + messages -%}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
{%- if loop.first and tools -%}
{{- '\\n\\nTools, called as <tool_call>{"name": ..., "arguments": ...}</tool_call>:' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# How Transformers reads a response in this format back into a message.
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """
    A byte-level BPE tokenizer with a ChatML template (system, user, assistant, tool).

    Args:
        texts (`Iterator[str]`):
            What it is trained on.
        vocab_size (`int`):
            Number of tokens.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: the tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    # Words keep their leading space, and punctuation and digits stand alone: a word is mostly one token.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        eos_token=special[2],
        additional_special_tokens=[special[1]],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        response_template=RESPONSE_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
