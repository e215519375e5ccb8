"""What the policy reads in each turn: the conversation, or a window on it."""

import pytest
from steps import ids_and_mask
from toys import CountingEnv

from sdar_trl.chat import Chat
from sdar_trl.rollout import Rollout
from sdar_trl.rows import episode_rows


class Talker:
    """A backend that says the same words and remembers what it read."""

    def __init__(self, tokenizer, texts=("yes e<|im_end|>",)):
        self.responses = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        self.read = []

    def generate(self, ids):
        self.read.append(ids)
        response = self.responses[(len(self.read) - 1) % len(self.responses)]
        return [response] * len(ids), None

    def any_running(self, count):
        return count > 0

    def end(self):
        pass


class WordedEnv(CountingEnv):
    """Says itself how its history reads."""

    @staticmethod
    def history(first, past, observation, step):
        told = "".join(f"[{seen} -> {said}]" for seen, said in past)
        return f"({first}){told} turn {step}: {observation}"


@pytest.fixture
def play(tokenizer, tasks):
    def run(length=5, env=CountingEnv, texts=("yes e<|im_end|>",), student_context=None, **options):
        backend = Talker(tokenizer, texts)
        limits = {"max_turns": 20, "max_response_length": 8, "max_completion_length": 500, **options}
        rollout = Rollout(env, Chat(tokenizer), backend, **limits)
        [episode] = rollout.play([{**tasks[0], "length": length}], student_context)
        return episode, [tokenizer.decode(ids[0]) for ids in backend.read]

    return run


def test_a_window_longer_than_the_episode_reads_the_same_ids_as_a_growing_history(play):
    growing, _ = play()
    window, _ = play(history="window", history_window=9)
    assert ids_and_mask(window) == ids_and_mask(growing)


def test_responses_that_encode_otherwise_than_they_were_sampled_stay_as_they_were_sampled(play, tokenizer):
    spelled = "<|im_end|>".join(["system"])
    assert spelled
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "system"]
    backend_ids = [*letters, tokenizer.eos_token_id]

    class Speller(Talker):
        def __init__(self):
            self.responses, self.read = [backend_ids], []

    def run(**options):
        rollout = Rollout(
            CountingEnv,
            Chat(tokenizer),
            Speller(),
            max_turns=9,
            max_response_length=8,
            max_completion_length=500,
            **options,
        )
        return rollout.play([{"prompt": [{"role": "user", "content": "go: "}], "length": 3}])[0]

    assert ids_and_mask(run(history="window", history_window=9)) == ids_and_mask(run())


def test_beyond_the_window_turns_are_left_out_and_each_turn_is_a_row(play):
    episode, read = play(history="window", history_window=2)
    assert read[4] == (
        "<|im_start|>system\nyou count.<|im_end|>\n"
        "<|im_start|>user\ntask: count to 5\n\n[2 turns left out]\n\nnow at 2<|im_end|>\n"
        "<|im_start|>assistant\nyes e<|im_end|>\n<|im_start|>user\nnow at 3<|im_end|>\n"
        "<|im_start|>assistant\nyes e<|im_end|>\n<|im_start|>user\nnow at 4<|im_end|>\n<|im_start|>assistant\n"
    )
    # the first three turns go on from each other, then each is rendered anew
    assert [len(row.turns) for row in episode_rows(episode, 0)] == [3, 1, 1]


def test_an_environment_says_itself_how_its_history_reads(play):
    episode, read = play(env=WordedEnv, length=4, history="window", history_window=2)
    assert "task: (count to 4) turn 1: count to 4<|im_end|>" in read[0]
    assert "task: (count to 4)[now at 1 -> yes e][now at 2 -> yes e] turn 4: now at 3<|im_end|>" in read[3]
    assert read[3].count("<|im_start|>assistant") == 1
    assert [len(row.turns) for row in episode_rows(episode, 0)] == [1, 1, 1, 1]


def test_each_row_is_what_was_read_and_said(play, tokenizer):
    episode, read = play(env=WordedEnv, length=4, history="window", history_window=1)
    for row, text in zip(episode_rows(episode, 0), read, strict=True):
        assert tokenizer.decode(row.prompt_ids) == text
        assert tokenizer.decode(row.completion_ids) == "yes e<|im_end|>" and set(row.mask) == {1}


def test_a_response_cut_by_length_is_closed_in_the_next_prompt(play, tokenizer):
    for window in (9, 1):
        episode, read = play(texts=("yes e",), length=3, history="window", history_window=window)
        assert "assistant\nyes e<|im_end|>\n<|im_start|>user\nnow at 1" in read[1]
        assert all(tokenizer.eos_token_id not in turn.response_ids for turn in episode.turns)


def test_skills_that_the_student_reads_are_in_every_prompt_of_a_window(play):
    _, read = play(
        env=WordedEnv,
        length=3,
        history="window",
        student_context=lambda episodes: ["count aloud."] * len(episodes),
    )
    assert len(read) == 3 and all(text.count("count aloud.") == 1 for text in read)


def test_a_window_is_bounded_by_the_context_and_the_turns_not_by_the_length_of_the_episode(play):
    episode, _ = play(env=WordedEnv, length=15, history="window", max_completion_length=8)
    assert len(episode.turns) == 15 and episode.success
    episode, _ = play(env=WordedEnv, length=15, history="window", history_window=14, context_length=120)
    assert episode.stop_reason.value == "length"
    assert all(len(row.prompt_ids) + 8 <= 120 for row in episode_rows(episode, 0))


def test_a_window_in_the_default_wording_begins_another_row_where_one_is_full(play):
    """`max_completion_length` bounds a row there, and ends no episode."""
    for budget, rows in ((8, [1] * 6), (30, None), (500, [3, 1, 1, 1])):
        episode, _ = play(length=6, history="window", history_window=2, max_completion_length=budget)
        assert len(episode.turns) == 6 and episode.success
        found = episode_rows(episode, 0)
        assert all(len(row.completion_ids) <= budget for row in found)
        assert rows is None or [len(row.turns) for row in found] == rows


def test_a_template_that_drops_earlier_thoughts_begins_a_new_row_in_each_turn(play, tokenizer, tasks):
    """As Qwen3's does: with a window the template decides what is left of a response, and no option is needed."""
    forgetful = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    forgetful.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )

    def run(said, **options):
        backend = Talker(tokenizer, (said,))
        limits = {"max_turns": 9, "max_response_length": 30, "max_completion_length": 500, **options}
        [episode] = Rollout(CountingEnv, Chat(forgetful), backend, **limits).play([{**tasks[0], "length": 3}])
        return episode, [tokenizer.decode(ids[0]) for ids in backend.read]

    thoughtful = "<think>why e</think>yes e<|im_end|>"
    episode, read = run(thoughtful, history="window", history_window=9)
    assert [len(row.turns) for row in episode_rows(episode, 0)] == [1, 1, 1]
    assert read[2].count("assistant\nyes e<|im_end|>") == 2 and "why" not in read[2]
    assert all("why" in turn.response for turn in episode.turns)  # what was said is trained on, thoughts and all
    episode, _ = run("yes e<|im_end|>", history="window", history_window=9)
    assert [len(row.turns) for row in episode_rows(episode, 0)] == [3]
    episode, read = run(thoughtful)  # growing: nothing is rendered again, so thoughts stay
    assert [len(row.turns) for row in episode_rows(episode, 0)] == [3] and read[2].count("why") == 2
