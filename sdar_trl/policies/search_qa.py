"""The embedded policy for Search-QA: a small Qwen3, warm-started on episodes of a scripted player.

As the one for WebShop, it errs often unless the skills for its question are in its prompt.

Rebuild the shipped weights (prints how well the policy answers with skills and without):

    python -m sdar_trl.policies.search_qa
"""

import argparse
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tokenizers import AddedToken, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from ..chat import Chat
from ..envs import SearchEnv
from ..envs.search_qa.embedded import documents, facts
from ..envs.search_qa.engines import Hit
from ..history import History, growing, windowed
from ..skills import SkillLibrary, format_skills
from .names import TINY_POLICY, policy_limits, policy_path
from .scripted import played_rows, scripted_context
from .tiny import new_policy, print_results, train_tokenizer, warm_start


NAME = "tiny-search_qa"
# How often the scripted player errs: (searches without the name, answers before it knows, answers something near,
# writes no legal action), by what is in its prompt. Without the skills of its question it is poor, with them nearly an
# expert.
ERRORS = {
    "own skills": (0.02, 0.02, 0.02, 0.0),
    "other skills": (0.15, 0.3, 0.2, 0.01),
    "none": (0.2, 0.6, 0.3, 0.02),
}
MAX_TURNS = policy_limits(NAME)["max_turns"]
TAGS = [f"<{slash}{name}>" for name in ("think", "search", "answer", "information") for slash in ("", "/")]
# Kinds of steps: the query for a name, and where the answer stands in a document.
STEPS = {
    "country": ("{}", r"{} is a city in (.+?) at "),
    "calling code of": ("calling code {}", r"The economy of (.+?)\..* calling code is {}\."),
    "currency of": ("currency {}", r"The economy of (.+?)\. Its currency is the {}\."),
    "element": ("atomic number {}", r"(.+?) is a chemical .* atomic number {} "),
    "capital": ("capital {}", r"The capital of {} is (.+)\."),
    "area in square kilometres": ("area {}", r"{} has an area of (\d+) "),
    "calling code": ("calling code {}", r"The economy of {}\..* calling code is (\d+)\."),
    "currency": ("currency {}", r"The economy of {}\. Its currency is the (\w+)\."),
    "number of inhabitants": ("inhabitants {}", r"{} is a city .* with (\d+) inhabitants"),
    "atomic number": ("{}", r"{} is a chemical .* atomic number (\d+) "),
    "atomic mass": ("{}", r"{} is a chemical .* atomic mass ([\d.]+)\."),
    "further north": ("{}", r"{} is a city .* at (\d+) degrees "),
    "more neighbours": ("neighbours {}", r"{} has .* and (\d+) neighbours"),
    "the higher atomic number": ("{}", r"{} is a chemical .* atomic number (\d+) "),
}
# Kinds of questions, and their steps; a step without a name is about what the step before has found.
QUESTIONS = {
    r"Which country is (.+) in\?": ("country",),
    r"Which country has the calling code (.+)\?": ("calling code of",),
    r"Which country has as its currency the (.+)\?": ("currency of",),
    r"Which chemical element has the atomic number (.+)\?": ("element",),
    r"What is the (?P<asked>.+) of the country that (.+) is in\?": ("country", "asked"),
    r"What is the (?P<asked>.+) of the country whose currency is the (.+)\?": ("currency of", "asked"),
    r"What is the (?P<asked>.+) of (.+)\?": ("asked",),
    r"Which \w+ (?:is|has) (?P<asked>.+), (.+) or (.+)\?": ("asked", "asked"),
}


def scripted_player(env: SearchEnv, question: str, errors: tuple[float, ...], rng: random.Random) -> Callable[[], str]:
    """
    A player of the embedded questions.

    Args:
        env ([`SearchEnv`]):
            The environment.
        question (`str`):
            One of the embedded questions.
        errors (`tuple[float, ...]`):
            Probabilities of its kinds of errors.
        rng (`random.Random`):
            Draws them.

    Returns:
        `Callable[[], str]`: what it says to what the environment shows.
    """
    no_name, too_early, something_near, illegal = errors
    matched, named = next(
        (match, steps) for form, steps in QUESTIONS.items() if (match := re.fullmatch(form, question))
    )
    names = [text for text in matched.groups() if text != matched.groupdict().get("asked")]
    steps = [matched["asked"] if step == "asked" else step for step in named]
    known: list[str] = []

    def about() -> str:
        return names[len(known)] if len(known) < len(names) else known[-1]

    def respond() -> str:
        if rng.random() < illegal:
            return _tagged("think", rng.choice(names))
        if len(known) < len(steps) and (value := _read(env.hits, steps[len(known)], about())):
            known.append(value)
        thought = _tagged("think", " ".join(known)) if known else ""
        if len(known) < len(steps):
            if rng.random() < too_early:
                return _tagged("answer", known[-1] if known and len(names) == 1 else rng.choice(names))
            asked = "" if rng.random() < no_name else about()
            return thought + _tagged("search", _query(steps[len(known)], asked))
        if rng.random() < something_near:
            others = [value for hit in env.hits if (value := _read([hit], steps[-1], "")) not in (None, known[-1])]
            near = names if len(names) == 2 else others or [f"the answer is {known[-1]}"]
            return _tagged("answer", rng.choice(near))
        if len(names) == 2:
            return thought + _tagged("answer", names[int(known[1]) > int(known[0])])
        return _tagged("answer", known[-1])

    return respond


def _tagged(tag: str, text: str) -> str:
    """With a space in front of it, a text is of the same tokens as inside a document, which a small model can copy."""
    return f"<{tag}> {text}</{tag}>"


def _query(step: str, name: str) -> str:
    return STEPS[step][0].format(name).strip() or "city"


def _read(hits: list[Hit], step: str, name: str) -> str | None:
    """What the documents say to a step, about a name or, without one, about any."""
    pattern = STEPS[step][1].replace("{}", re.escape(name) if name else ".+?")
    found = (re.match(pattern, hit.document.text, re.IGNORECASE) for hit in hits)
    return next((match[1] for match in found if match), None)


def scripted_episode(
    env: SearchEnv,
    task: dict[str, Any],
    chat: Chat,
    rng: random.Random,
    skills: SkillLibrary | None = None,
    history: History = growing,
    turns: int = MAX_TURNS,
) -> list[tuple[list[int], list[int]]]:
    """
    Play one scripted episode.

    Args:
        env ([`SearchEnv`]):
            The environment.
        task (`dict`):
            A row of its dataset.
        chat ([`Chat`]):
            Renders the conversation.
        rng (`random.Random`):
            Draws prompt and errors.
        skills ([`SkillLibrary`], *optional*):
            Skills that may be in the prompt. If `None`, the player knows them and the prompt has none.
        history (`History`, *optional*, defaults to [`growing`]):
            What the player reads in each turn.
        turns (`int`, *optional*, defaults to `MAX_TURNS`):
            Most turns.

    Returns:
        `list[tuple[list[int], list[int]]]`: as [`played_rows`].
    """
    context, kind = scripted_context(skills, task["task_type"], rng) if skills is not None else ("", "own skills")
    player = scripted_player(env, task["question"], ERRORS[kind], rng)
    return played_rows(env, task, lambda _: player(), chat, context, history, turns)


def build_tokenizer(env: SearchEnv, tasks: list[dict[str, Any]], skills: SkillLibrary) -> PreTrainedTokenizerFast:
    """The policy's tokenizer, trained on the skills, the prompt and the corpus. Tags, names and numbers are single
    tokens, so that what is to be copied is one token."""
    things = sorted(f" {thing}" for thing in _names() | _numbers())
    thing = re.compile("|".join(map(re.escape, sorted(things, key=len, reverse=True))))

    def texts() -> Iterator[str]:
        for _ in range(20):
            yield from (format_skills([skill]) for skill in skills)
            yield "system\nuser\nassistant\ntool\n" + tasks[0]["prompt"][0]["content"]
            yield env.step("").observation
        for document in documents():
            yield thing.sub("", f"\ndoc (title: {document.title} {document.text}".lower())
        for task in tasks:
            yield thing.sub("", env.reset(**task).lower())

    env.reset(**tasks[0])
    tokenizer = train_tokenizer(texts(), vocab_size=2000)
    backend = tokenizer.backend_tokenizer
    # a name is the same token in a title as anywhere else, where a space is before it
    backend.normalizer = normalizers.Sequence([backend.normalizer, normalizers.Replace('(title: "', "(title: ")])
    tokenizer.add_tokens([AddedToken(text, normalized=True) for text in [*TAGS, '")', " (title:", *things]])
    return tokenizer


def _names() -> set[str]:
    """What the things in the corpus are called."""
    fields = ("name", "capital", "currency")  # of a country; others have a name alone
    entities = (entity for several in facts().values() for entity in several)
    return {entity[field].lower() for entity in entities for field in fields if field in entity}


def _numbers() -> set[str]:
    """All that it says in figures."""
    return {number for document in documents() for number in re.findall(r"\b\d+(?:\.\d+)?\b", document.text)}


def renamer(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Callable[[list[int], bool], list[int]]:
    """
    Gives the things in a conversation other names and numbers, the same thing the same all through. What a document
    says can then only be read, not remembered; else a policy would know the things of the training questions by heart,
    and none of the others.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            The policy's tokenizer.
        rng (`random.Random`):
            Draws the names.

    Returns:
        `Callable[[list[int], bool], list[int]]`: from the ids of a conversation, and whether short numbers keep their
        values since they are compared, to new ids.
    """
    ids, numbers = tokenizer.get_vocab(), _numbers()
    groups = [
        sorted(ids[f" {text}"] for text in texts)
        for texts in (
            _names(),
            {number for number in numbers if len(number) > 3},
            {number for number in numbers if 1 < len(number) < 4},  # one digit counts documents and turns
        )
    ]

    def renamed(ids: list[int], compares: bool) -> list[int]:
        new: dict[int, int] = {}
        for group in groups[:2] if compares else groups:
            used = sorted(set(ids) & set(group))
            new |= dict(zip(used, rng.sample(group, len(used)), strict=True))
        return [new.get(token, token) for token in ids]

    return renamed


def transferred(tokenizer: PreTrainedTokenizerFast, source: str = TINY_POLICY) -> Qwen3ForCausalLM:
    """
    A policy that knows from another one how to read and copy: its layers, and its embeddings of what is spelled alike.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            The new policy's tokenizer.
        source (`str`, *optional*):
            Folder of the other policy, by default the one for WebShop.

    Returns:
        [`~transformers.Qwen3ForCausalLM`]: the model.
    """
    old, known = Qwen3ForCausalLM.from_pretrained(source, dtype=torch.float32), AutoTokenizer.from_pretrained(source)
    model = new_policy(tokenizer, old.config.hidden_size, old.config.num_hidden_layers)
    weights = {name: weight for name, weight in old.state_dict().items() if "embed" not in name and "head" not in name}
    model.load_state_dict(weights, strict=False)
    embeddings, ids = old.model.embed_tokens.weight, known.get_vocab()
    spread = embeddings.std(0)
    with torch.no_grad():
        for token, index in tokenizer.get_vocab().items():
            new = embeddings[ids[token]] if token in ids else embeddings.mean(0) + spread * torch.randn(len(spread))
            model.model.embed_tokens.weight[index] = new
    return model


def main() -> None:
    """Build the policy, save it in half precision, and print how well it answers with skills and without."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", default=policy_path(NAME), help="Folder to write.")
    parser.add_argument("--episodes", type=int, default=12_000, help="Scripted episodes of the first cycle.")
    args = parser.parse_args()

    env, skills = SearchEnv(), SkillLibrary.bundled("search_qa")
    tasks = list(SearchEnv.dataset("train"))
    without_system = [{**task, "prompt": task["prompt"][1:]} for task in tasks]
    rng = random.Random(0)

    def play(count: int, skills: SkillLibrary | None = None, env: SearchEnv = env, **options: Any) -> list:
        rows = []
        for task in rng.choices(without_system if skills is None else tasks, k=count):
            for ids, mask in scripted_episode(env, task, chat, rng, skills, **options):
                rows.append((renamed(ids, task["task_type"] == "comparison"), mask))
        return rows

    def cycle(rows: list, learning_rate: float = 3e-3, batch_tokens: int = 1500) -> None:
        rng.shuffle(rows)
        warm_start(model, rows, learning_rate=learning_rate, batch_tokens=batch_tokens, observation_share=0.2)

    tokenizer = build_tokenizer(env, tasks, skills)
    model = transferred(tokenizer)
    chat, renamed = Chat(tokenizer), renamer(tokenizer, rng)
    count = args.episodes
    cycle(play(count, turns=1), batch_tokens=700)  # to copy a name into a query
    cycle(play(3 * count // 4, env=SearchEnv(topk=1)))  # to read, on short prompts and with few errors
    cycle(play(3 * count // 4))  # to choose among documents
    window = windowed(MAX_TURNS, SearchEnv.history)
    rows = play(count // 5, skills) + play(count // 25, skills, history=window)
    cycle(rows, learning_rate=2e-3, batch_tokens=2000)  # when to err
    model.half().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    print_results(args.output, SearchEnv, SearchEnv.dataset("validation"), skills, policy_limits(NAME), MAX_TURNS)


if __name__ == "__main__":
    main()
