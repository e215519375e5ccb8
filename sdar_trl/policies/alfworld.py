"""The embedded policy of ALFWorld: made like the shop's, on scripted episodes of the embedded games.

Rebuild the shipped weights (two CPU cores, prints how well the policy plays with and without skills):

    python -m sdar_trl.policies.alfworld
"""

import argparse
import functools
import random
from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from ..chat import Chat
from ..envs import AlfWorldEnv
from ..envs.alfworld.env import load_game
from ..envs.alfworld.rooms import HOLDS, LAMP, PICKUPABLE, TASK_TYPES, TREATMENTS
from ..history import windowed
from ..skills import SkillLibrary, format_skills
from .names import policy_limits, policy_path
from .scripted_alfworld import ERRORS, MAX_TURNS, Player, scripted_episode
from .search_qa import transferred
from .tiny import print_results, train_tokenizer, warm_start


# What occurs all over is one token, which keeps episodes short. A class of things is one too, and so is each thing
# with its number: what is in sight of what the task asks for is then found by a look at the token that is most alike.
MARKS = (
    *("<think>", "</think>"),
    *("<action>go to", "<action>take", "<action>open", "<action>move", "<action>look</action>", "</action>", " from"),
    *("<action>use", "<action>examine", "<action>clean", "<action>heat", "<action>cool", " with", ". on the", ". the"),
    *("you arrive at", ", you see a", ", you see nothing.", ", and a", ", a", " is closed.", " is open. in it"),
    *("you pick up the", " from the", "you move the", " to the", "you open the", "you are facing the", "next to it"),
    *("nothing happens.", "your task is to:", "you are in the middle of a room. looking quickly around you"),
)
NAMES = sorted({name.lower() for name in (*HOLDS, *PICKUPABLE, LAMP)})
NUMBERS = range(1, 41)
FURNITURE = {name.lower() for name in HOLDS}
THINGS = [(name, number) for name in NAMES for number in (NUMBERS if name in FURNITURE else range(1, 4))]


def build_tokenizer(env: AlfWorldEnv, tasks: list[dict[str, Any]], skills: SkillLibrary) -> PreTrainedTokenizerFast:
    """The policy's tokenizer, trained on scripted episodes and skills."""
    rng = random.Random(0)

    def texts() -> Iterator[str]:
        for _ in range(100):  # as often as the observations, so that skills are made of whole words too
            yield from (format_skills([skill]) for skill in skills)
            yield "system\nuser\nassistant\ntool\n" + tasks[0]["prompt"][0]["content"]
        for task in rng.choices(tasks, k=50):
            player = Player(load_game(task["game"]), ERRORS["other skills"], rng)
            observation = env.reset(**task)
            for _ in range(MAX_TURNS):
                yield observation
                response = player.respond(observation, env.commands)
                yield response
                step = env.step(response)
                if step.terminated:
                    break
                observation = step.observation

    tokenizer = train_tokenizer(texts(), vocab_size=1100)
    marks = [*(f" {name}" for name in NAMES), *(f" {number}" for number in NUMBERS), *MARKS]
    marks += [f" {name} {number}" for name, number in THINGS]
    tokenizer.add_tokens([AddedToken(text, normalized=True) for text in marks])
    return tokenizer


def new_names(tokenizer: PreTrainedTokenizerFast, rng: random.Random, places: bool) -> dict[int, int]:
    """
    Other names for the classes of things: in an episode told with them, what a task asks for can only be read, not
    guessed from the room.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            The policy's tokenizer.
        rng (`random.Random`):
            Draws them.
        places (`bool`):
            Whether furniture gets other names too, all but what treats a thing.

    Returns:
        `dict[int, int]`: of each token that is a name, the one that stands for it.
    """
    groups = [{name.lower() for name in PICKUPABLE} - FURNITURE]
    if places:
        groups.append(FURNITURE - {place.lower() for place, _ in TREATMENTS.values()})
    names: dict[str, str] = {}
    for group in map(sorted, groups):
        names |= dict(zip(group, rng.sample(group, len(group)), strict=True))
    pairs = [(f" {old}", f" {new}") for old, new in names.items()]
    pairs += [(f" {name} {number}", f" {names[name]} {number}") for name, number in THINGS if name in names]
    old, new = zip(*pairs, strict=True)
    return dict(zip(*map(tokenizer.convert_tokens_to_ids, map(list, (old, new))), strict=True))


def reading_policy(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Qwen3ForCausalLM:
    """The policy for Search-QA, which copies names that it has never seen, with other words: each of our names gets
    the embedding of one of its words, which its layers can carry, and a thing that of its class and of its number."""
    source = policy_path("tiny-search_qa")
    model = transferred(tokenizer, source)
    known = AutoTokenizer.from_pretrained(source).get_vocab()
    embeddings = Qwen3ForCausalLM.from_pretrained(source, dtype=torch.float32).model.embed_tokens.weight
    words = sorted(
        index for token, index in known.items() if token[0] == "\u0120" and len(token) > 4 and token[1:].isalpha()
    )
    names = [name for name in NAMES if f"\u0120{name}" not in known]
    new, ids = model.model.embed_tokens.weight, tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        for name, word in zip(names, rng.sample(words, len(names)), strict=True):
            new[ids(f" {name}")] = embeddings[word]
        for name, number in THINGS:
            new[ids(f" {name} {number}")] = 0.8 * new[ids(f" {name}")] + 0.6 * new[ids(f" {number}")]
    return model


def first_turn(row: tuple[list[int], list[int]], end_of_turn: int) -> tuple[list[int], list[int]]:
    """An episode's first turn, without the system message."""
    ids, mask = row
    start, end = ids.index(end_of_turn) + 2, ids.index(end_of_turn, mask.index(1)) + 1
    return ids[start:end], mask[start:end]


def decisions(
    row: tuple[list[int], list[int]], tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> list[tuple[list[int], list[int]]]:
    """
    Turns of an episode in which something is done, and as many in which the search goes on, each right after the task:
    they are short, so that when to do what is learned quickly.

    Args:
        row (`tuple[list[int], list[int]]`):
            The episode: its ids, and 1 for those of responses.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            The policy's tokenizer.
        rng (`random.Random`):
            Draws the others.

    Returns:
        `list[tuple[list[int], list[int]]]`: rows of the same kind.
    """
    ids, mask = row
    ends = [index + 1 for index in range(len(ids)) if mask[index] and (index + 1 == len(ids) or not mask[index + 1])]
    to_ids: Any = tokenizer.convert_tokens_to_ids
    start = ids.index(to_ids("your task is to:"))
    task = slice(start, ids.index(tokenizer.eos_token_id, start) + 1)
    search = set(to_ids(["<action>go to", "<action>open"]))
    acts = [turn for turn in range(1, len(ends)) if not search.intersection(ids[ends[turn - 1] : ends[turn]])]
    others = [turn for turn in range(1, len(ends)) if turn not in acts]
    chosen = acts + rng.sample(others, min(len(acts), len(others)))
    turns = [slice(ends[turn - 1], ends[turn]) for turn in chosen]
    return [(ids[task] + ids[turn], mask[task] + mask[turn]) for turn in turns]


def small_tasks(count: int) -> list[dict[str, Any]]:
    """The training tasks of the smallest rooms, as many of each type."""
    tasks = list(AlfWorldEnv.dataset("train"))
    size = {task["game"]: len(load_game(task["game"])["pddl_problem"]) for task in tasks}
    found = []
    for task_type in TASK_TYPES:
        of_type = [task for task in tasks if task["task_type"] == task_type]
        found += sorted(of_type, key=lambda task: size[task["game"]])[: count // len(TASK_TYPES)]
    return found


def main() -> None:
    """Build the policy, save it in half precision, and print how well it plays with skills and without."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", default=policy_path("tiny-alfworld"), help="Folder to write.")
    parser.add_argument(
        "--episodes", type=int, default=900, help="Episodes of an expert, and a third more with errors."
    )
    parser.add_argument("--games", type=int, default=300, help="Games that they are of, those of the smallest rooms.")
    args = parser.parse_args()

    env, skills = AlfWorldEnv(admissible_actions=False), SkillLibrary.bundled("alfworld")
    tasks = small_tasks(args.games)
    rng = random.Random(0)

    def play(count: int, **options: Any) -> list[tuple[list[int], list[int]]]:
        games = [tasks[number % len(tasks)] for number in range(count)]
        return [row for task in games for row in scripted_episode(env, task, skills, chat, rng, **options)]

    def renamed(rows: list, times: int, places: bool = False) -> list:
        found = []
        for ids, mask in rows * times:
            new = new_names(tokenizer, rng, places)
            found.append(([new.get(token, token) for token in ids], mask))
        return found

    def cycle(rows: list, learning_rate: float = 3e-3) -> None:
        rng.shuffle(rows)
        options: dict[str, Any] = {"batch_tokens": 3_000, "observation_share": 0.3, "observation_weight": 0.1}
        warm_start(model, rows, learning_rate=learning_rate, **options)

    tokenizer = build_tokenizer(env, tasks, skills)
    model = reading_policy(tokenizer, rng)
    chat = Chat(tokenizer)
    expert = play(args.episodes, expert=True)
    openings = [first_turn(row, chat.end_of_turn_id) for row in expert]
    short = [turn for row in expert for turn in decisions(row, tokenizer, rng)]
    cycle(renamed(openings, 10, places=True))  # to copy what is asked for
    cycle(renamed(openings, 3, places=True) + renamed(short, 1))  # what is done when
    for _ in range(3):
        cycle(renamed(expert, 2) + renamed(short, 1))  # to search in order
    # Then to err, and less so with skills; a little of it in windows.
    rows = play(4 * args.episodes // 3)
    cycle(rows + play(args.episodes // 15, history=windowed(2, AlfWorldEnv.history)), 2e-3)
    model.half().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    factory = functools.partial(AlfWorldEnv, admissible_actions=False)
    print_results(args.output, factory, AlfWorldEnv.dataset("validation"), skills, policy_limits("tiny-alfworld"))


if __name__ == "__main__":
    main()
