"""The embedded policy: a small Qwen3 with its own tokenizer, warm-started on scripted episodes of the embedded shop.

It comes with the package, so that demos, notebooks and tests train a real policy without a model hub. The scripted
player errs often, unless the skills for its task are in its prompt: so the same weights shop better with skills than
without, which is what self-distillation needs.

Rebuild the shipped weights (two CPU cores, prints how well the policy plays with and without skills):

    python -m sdar_trl.policies.tiny
"""

import argparse
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl.trainer.utils import pad

from ..chat import Chat
from ..envs import WebShopEnv
from ..history import History, growing, windowed
from ..skills import SkillLibrary, format_skills
from .names import TINY_POLICY, policy_limits
from .scripted import ERRORS, MAX_TURNS, scripted_episode, scripted_response


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
    An uncased byte-level BPE tokenizer with a ChatML template (system, user, assistant, tool). Without case, a word of
    the instruction and the same word in a title are one token, which is what a small model can match.

    Args:
        texts (`Iterator[str]`):
            What it is trained on.
        vocab_size (`int`):
            Number of tokens.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: the tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
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


# Warm start


def build_tokenizer(env: WebShopEnv, tasks: list[dict[str, Any]], skills: SkillLibrary) -> PreTrainedTokenizerFast:
    """The policy's tokenizer, trained on scripted episodes and skills. Product ids and the marks that occur all over
    the pages are single tokens, which keeps episodes short."""
    rng = random.Random(0)
    ids = [product.asin.lower() for product in env.shop.products]
    without_ids = re.compile("|".join(ids), re.IGNORECASE)

    def texts() -> Iterator[str]:
        for _ in range(200):  # as often as the pages, so that skills are made of whole words too
            yield from (format_skills([skill]) for skill in skills)
            yield "system\nuser\nassistant\ntool\n" + tasks[0]["prompt"][0]["content"]
        for task in rng.choices(tasks, k=400):
            yield without_ids.sub("", env.reset(**task))
            for _ in range(MAX_TURNS):
                step = env.step(scripted_response(env, ERRORS["other skills"], rng))
                yield without_ids.sub("", step.observation)
                if step.terminated:
                    break

    tokenizer = train_tokenizer(texts(), vocab_size=1600)
    marks = [" [sep]", "<action>", "</action>", "], click[", "click[", "search["]
    tokenizer.add_tokens([AddedToken(text, normalized=True) for text in ids + marks])
    return tokenizer


def new_policy(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int = 128, layers: int = 4, seed: int = 0
) -> Qwen3ForCausalLM:
    """
    A small Qwen3, randomly initialised.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            The policy's tokenizer.
        hidden_size (`int`, *optional*, defaults to `128`):
            Width, a multiple of 32.
        layers (`int`, *optional*, defaults to `4`):
            Depth.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights.

    Returns:
        [`~transformers.Qwen3ForCausalLM`]: the model.
    """
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def warm_start(
    model: Qwen3ForCausalLM,
    conversations: list[tuple[list[int], list[int]]],
    *,
    learning_rate: float = 3e-3,
    batch_tokens: int = 6_000,
    observation_share: float = 0.5,
    observation_weight: float = 1.0,
) -> None:
    """
    Train a policy on conversations, one pass over them.

    Args:
        model ([`~transformers.Qwen3ForCausalLM`]):
            The policy.
        conversations (`list[tuple[list[int], list[int]]]`):
            Ids, and 1 for those of responses.
        learning_rate (`float`, *optional*, defaults to `3e-3`):
            Peak of the cosine schedule.
        batch_tokens (`int`, *optional*, defaults to `6_000`):
            Tokens of a batch, padding included.
        observation_share (`float`, *optional*, defaults to `0.5`):
            Share of the environment's tokens that are predicted too: it teaches reading.
        observation_weight (`float`, *optional*, defaults to `1.0`):
            Weight of their loss beside that of the responses.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    batches = _batches(conversations, batch_tokens, random.Random(0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=len(batches), pct_start=0.05, cycle_momentum=False
    )
    progress = tqdm(batches, desc="warm start", mininterval=5)
    for batch in progress:
        ids, mask = (
            pad([torch.tensor(conversation[part]) for conversation in batch], padding_value=value)
            for part, value in ((0, 0), (1, -1))
        )
        # padding is on the right and attention is causal: no attention mask is needed, and none is faster
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
        targets, mask = ids[:, 1:], mask[:, 1:]
        counted = (mask == 1) | ((mask == 0) & (torch.rand(mask.shape) < observation_share))
        losses = torch.nn.functional.cross_entropy(model.lm_head(hidden[counted]), targets[counted], reduction="none")
        of_response = mask[counted] == 1
        loss = losses[of_response].mean() + observation_weight * losses[~of_response].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(response_loss=f"{losses[of_response].mean().item():.3f}")


def _batches(conversations: list, batch_tokens: int, rng: random.Random) -> list[list]:
    """Batches of conversations of like length, in random order."""
    batches: list[list] = []
    for start in range(0, len(conversations), 512):
        batch: list = []
        for conversation in sorted(conversations[start : start + 512], key=lambda c: len(c[0])):
            if (len(batch) + 1) * len(conversation[0]) > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(conversation)
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def print_results(
    folder: str,
    environment_factory: Callable[[], Any],
    dataset: Dataset,
    skills: SkillLibrary,
    limits: dict[str, Any],
    window: int = 2,
) -> None:
    """
    How well a saved policy plays 128 tasks, in both histories, with skills and without.

    Args:
        folder (`str`):
            Where it is.
        environment_factory (`Callable`):
            Makes an environment.
        dataset ([`~datasets.Dataset`]):
            Tasks, of which the first are played.
        skills ([`SkillLibrary`]):
            The skills.
        limits (`dict`):
            The policy's limits, as [`policy_limits`].
        window (`int`, *optional*, defaults to `2`):
            Turns in the window.
    """
    from ..evaluation import evaluate, policy_rollout, results_table, summarize

    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    print(f"{model.num_parameters() / 1e6:.2f}M parameters")
    panel = dataset.select(range(128))
    results = {}
    for history in ("growing", "window"):
        rollout = policy_rollout(
            model, tokenizer, environment_factory, history=history, history_window=window, **limits
        )
        results[f"{history}, without skills"] = summarize(evaluate(rollout, panel))
        results[f"{history}, with skills"] = summarize(evaluate(rollout, panel, skills=skills))
        rollout.close()
    print(results_table(results))


def main() -> None:
    """Build the policy, save it in half precision, and print how well it plays with skills and without."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", default=TINY_POLICY, help="Folder to write.")
    parser.add_argument("--episodes", type=int, default=20_000, help="Scripted episodes to train on.")
    parser.add_argument("--hidden_size", type=int, default=128, help="Width of the model.")
    parser.add_argument("--layers", type=int, default=4, help="Depth of the model.")
    parser.add_argument(
        "--start_from", metavar="DIR", help="Go on from a policy of this kind, with the last cycle alone."
    )
    args = parser.parse_args()

    env, skills = WebShopEnv(), SkillLibrary.bundled("webshop")
    tasks = list(WebShopEnv.dataset("train"))
    rng = random.Random(0)

    def play(count: int, history: History = growing) -> list[tuple[list[int], list[int]]]:
        return [
            row for _ in range(count) for row in scripted_episode(env, rng.choice(tasks), skills, chat, rng, history)
        ]

    if args.start_from:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start_from)
        model = Qwen3ForCausalLM.from_pretrained(args.start_from, dtype=torch.float32)
        chat = Chat(tokenizer)
    else:
        tokenizer = build_tokenizer(env, tasks, skills)
        model = new_policy(tokenizer, args.hidden_size, args.layers)
        chat = Chat(tokenizer)
        # The second, gentler cycle sharpens what the first has found.
        for learning_rate in (3e-3, 2e-3):
            warm_start(model, play(args.episodes // 2), learning_rate=learning_rate)
    # The last one is for a window on the history, and keeps the growing one in mind.
    rows = play(args.episodes // 12) + play(args.episodes // 20, windowed(2, WebShopEnv.history))
    rng.shuffle(rows)
    warm_start(model, rows)
    model.half().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    print_results(args.output, WebShopEnv, WebShopEnv.dataset("validation"), skills, policy_limits("tiny"))


if __name__ == "__main__":
    main()
