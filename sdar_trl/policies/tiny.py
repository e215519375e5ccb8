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
from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl.trainer.utils import pad

from ..chat import Chat
from ..envs import WebShopEnv
from ..history import with_observation
from ..skills import Skill, SkillLibrary, format_skills
from .names import TINY_POLICY, policy_limits


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


# Scripted player

# How often it errs: (opens a product that does not fit, buys before all options are chosen, searches for too little,
# writes no legal action), by what is in its prompt. Without the skills of its task it is a poor shopper, with them
# nearly an expert.
ERRORS = {
    "own skills": (0.02, 0.02, 0.02, 0.0),
    "other skills": (0.15, 0.25, 0.2, 0.01),
    "none": (0.25, 0.4, 0.4, 0.02),
}
LIMITS: dict[str, Any] = policy_limits("tiny")
MAX_TURNS = LIMITS["max_turns"]


def scripted_response(env: WebShopEnv, errors: tuple[float, ...], rng: random.Random) -> str:
    """
    What the scripted player says to the page before it.

    Args:
        env ([`WebShopEnv`]):
            The environment in play; the player knows the goal.
        errors (`tuple[float, ...]`):
            Probabilities of its kinds of errors.
        rng (`random.Random`):
            Draws them.

    Returns:
        `str`: the response.
    """
    wrong_product, no_options, poor_query, illegal = errors
    page, goal = env.page, env.goal
    if rng.random() < illegal:
        return _respond(f"click[{rng.choice(goal.attributes)}]")
    if page.kind == "search":
        wanted = sorted(goal.attributes, key=goal.instruction.find)
        if rng.random() < poor_query:
            wanted = wanted[:0]
        return _respond(f"search[{' '.join([*wanted, goal.query])}]")
    if page.kind == "results":
        listed = [product.asin for product in page.listed]
        if listed and rng.random() < wrong_product:
            return _respond(f"click[{rng.choice(listed[:4]).lower()}]")
        if goal.asin in listed:
            return _respond(f"click[{goal.asin.lower()}]")
        return _respond("click[next >]" if listed else "click[back to search]")
    missing = [
        (name, value)
        for name, value in goal.options.items()
        if page.options.get(name) != value and value in page.clickables
    ]
    if missing and rng.random() >= no_options:
        name, value = missing[0]
        return _respond(f"click[{value}]", thought=f"{name}: {value} ")
    return _respond("click[buy now]")


def _respond(action: str, thought: str = "") -> str:
    return f"{thought}<action>{action}</action>"


def scripted_context(skills: SkillLibrary, task_type: str, rng: random.Random) -> tuple[str, str]:
    """Skills to put into the prompt of a scripted episode, and which row of `ERRORS` they call for."""
    general = [skill for skill in skills if skill.always]
    own = [skill for skill in skills if task_type in skill.task_types]
    others = [skill for skill in skills if not skill.always and skill not in own]
    [kind] = rng.choices(["none", "own skills", "other skills"], [0.3, 0.5, 0.2])
    if kind == "none":
        return "", kind
    if kind == "own skills":
        return format_skills([*general, *own]), kind
    chosen: list[Skill] = rng.sample(others, rng.randint(0, 2))
    return format_skills([*general, *chosen]), kind


def scripted_episode(
    env: WebShopEnv, task: dict[str, Any], skills: SkillLibrary, chat: Chat, rng: random.Random
) -> tuple[list[int], list[int]]:
    """
    Play one scripted episode.

    Args:
        env ([`WebShopEnv`]):
            The environment.
        task (`dict`):
            A row of its dataset.
        skills ([`SkillLibrary`]):
            Skills that may be in the prompt.
        chat ([`Chat`]):
            Renders the conversation.
        rng (`random.Random`):
            Draws prompt and errors.

    Returns:
        `tuple[list[int], list[int]]`: the conversation's ids, and 1 for those of responses.
    """
    context, kind = scripted_context(skills, task["task_type"], rng)
    messages = chat.with_context(task["prompt"], context)
    ids = chat.prompt_ids(with_observation(messages, env.reset(**task)))
    mask = [0] * len(ids)
    for _ in range(MAX_TURNS):
        text = scripted_response(env, ERRORS[kind], rng)
        response = [*chat.tokenizer(text, add_special_tokens=False)["input_ids"], chat.end_of_turn_id]
        ids, mask = ids + response, mask + [1] * len(response)
        step = env.step(text)
        if step.terminated:
            break
        following = chat.observation_ids(step.observation, response)
        ids, mask = ids + following, mask + [0] * len(following)
    return ids, mask


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
        loss = losses[of_response].mean() + losses[~of_response].mean()
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


def main() -> None:
    """Build the policy, save it in half precision, and print how well it plays with skills and without."""
    from ..evaluation import evaluate, policy_rollout, results_table, summarize

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", default=TINY_POLICY, help="Folder to write.")
    parser.add_argument("--episodes", type=int, default=20_000, help="Scripted episodes to train on.")
    parser.add_argument("--hidden_size", type=int, default=128, help="Width of the model.")
    parser.add_argument("--layers", type=int, default=4, help="Depth of the model.")
    args = parser.parse_args()

    env, skills = WebShopEnv(), SkillLibrary.bundled("webshop")
    tasks = list(WebShopEnv.dataset("train"))
    tokenizer = build_tokenizer(env, tasks, skills)
    chat, rng = Chat(tokenizer), random.Random(0)
    conversations = [scripted_episode(env, rng.choice(tasks), skills, chat, rng) for _ in range(args.episodes)]
    lengths = [len(ids) for ids, _ in conversations]
    print(f"{len(tokenizer)} tokens in the vocabulary; episodes of {sum(lengths) / len(lengths):.0f} tokens.")
    # The second, gentler cycle sharpens what the first has found.
    model = new_policy(tokenizer, args.hidden_size, args.layers)
    for part, learning_rate in ((conversations[::2], 3e-3), (conversations[1::2], 2e-3)):
        warm_start(model, part, learning_rate=learning_rate)
    print(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}M parameters")
    model.half().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)

    model = Qwen3ForCausalLM.from_pretrained(args.output, dtype=torch.float32)
    panel = WebShopEnv.dataset("validation").select(range(128))
    rollout = policy_rollout(model, tokenizer, WebShopEnv, **LIMITS)
    results = {
        name: summarize(evaluate(rollout, panel, skills=context))
        for name, context in (("without skills", None), ("with skills", skills))
    }
    print(results_table(results))


if __name__ == "__main__":
    main()
