"""The embedded policy of ALFWorld: made like the shop's, on scripted episodes of the embedded games.

Rebuild the shipped weights (two CPU cores, prints how well the policy plays with and without skills):

    python -m sdar_trl.policies.alfworld
"""

import argparse
import functools
import random
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from ..chat import Chat
from ..envs import AlfWorldEnv
from ..envs.alfworld.env import load_game
from ..envs.alfworld.rooms import HOLDS, LAMP, PICKUPABLE, TASK_TYPES
from ..history import windowed
from ..skills import SkillLibrary, format_skills
from .names import policy_limits, policy_path
from .scripted_alfworld import ERRORS, MAX_TURNS, Player, scripted_episode
from .tiny import new_policy, print_results, train_tokenizer, warm_start


# What occurs all over is one token, which keeps episodes short. A class of things is one too, the same in the task and
# wherever one of it lies, which is what a small model can match.
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
    tokenizer.add_tokens([AddedToken(text, normalized=True) for text in marks])
    return tokenizer


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
    parser.add_argument("--episodes", type=int, default=10_000, help="Scripted episodes to train on.")
    parser.add_argument("--games", type=int, default=300, help="Games that they are of, those of the smallest rooms.")
    parser.add_argument("--hidden_size", type=int, default=128, help="Width of the model.")
    parser.add_argument("--layers", type=int, default=4, help="Depth of the model.")
    args = parser.parse_args()

    env, skills = AlfWorldEnv(admissible_actions=False), SkillLibrary.bundled("alfworld")
    tasks = small_tasks(args.games)

    def play(seed: int, count: int, **options: Any) -> list[tuple[list[int], list[int]]]:
        rng = random.Random(seed)
        return [
            row for _ in range(count) for row in scripted_episode(env, rng.choice(tasks), skills, chat, rng, **options)
        ]

    tokenizer = build_tokenizer(env, tasks, skills)
    model = new_policy(tokenizer, args.hidden_size, args.layers)
    chat = Chat(tokenizer)
    # First what there is to do, from an expert; then to err, and less so with skills; a little of it in windows.
    rows = play(1, args.episodes // 2, expert=True)
    for _ in range(2):
        warm_start(model, rows, learning_rate=3e-3, batch_tokens=3_000, observation_share=0.3)
    rows = play(2, args.episodes // 2) + play(3, args.episodes // 60, history=windowed(2, AlfWorldEnv.history))
    random.Random(0).shuffle(rows)
    warm_start(model, rows, learning_rate=2e-3, batch_tokens=3_000, observation_share=0.3)
    model.half().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    factory = functools.partial(AlfWorldEnv, admissible_actions=False)
    print_results(args.output, factory, AlfWorldEnv.dataset("validation"), skills, policy_limits("tiny-alfworld"))


if __name__ == "__main__":
    main()
