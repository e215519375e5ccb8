"""Episodes as they are played and as they become training rows."""

import pytest
from steps import ids_and_mask, only_row
from toys import CountingEnv
from transformers import AutoModelForCausalLM

from sdar_trl import StopReason
from sdar_trl.chat import Chat
from sdar_trl.evaluation import policy_rollout
from sdar_trl.rollout import Rollout


class Spy:
    """A policy of fixed responses that remembers every list of ids it was given and returned."""

    def __init__(self, tokenizer, texts=("e<|im_end|>",), logprobs=False):
        self.responses = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        self.calls, self.returned, self.logprobs = [], [], logprobs

    def generate(self, ids):
        self.calls.append(ids)
        sampled = [self.responses[(len(self.calls) + i) % len(self.responses)] for i in range(len(ids))]
        self.returned.append(sampled)
        return sampled, [[-0.5] * len(s) for s in sampled] if self.logprobs else None

    def any_running(self, count):
        return count > 0

    def end(self):
        pass


def make_rollout(tokenizer, generate, **limits):
    limits = {"max_turns": 10, "max_response_length": 8, "max_completion_length": 500, **limits}
    return Rollout(CountingEnv, Chat(tokenizer), generate, **limits)


def sampled_segments(row):
    """The runs of completion ids that the mask marks as sampled."""
    segments, previous = [], 0
    for token, mask in zip(row.completion_ids, row.mask, strict=True):
        if mask and not previous:
            segments.append([])
        if mask:
            segments[-1].append(token)
        previous = mask
    return segments


def test_the_mask_marks_exactly_what_generate_returned(tokenizer, tasks):
    generate = Spy(tokenizer, ["e<|im_end|>", "buy now", "three little e<|im_end|>"])
    episodes = make_rollout(tokenizer, generate).play(list(tasks))
    returned = {index: [] for index in range(len(tasks))}
    running = list(range(len(tasks)))
    for turn, sampled in enumerate(generate.returned, start=1):
        for index, ids in zip(running, sampled, strict=True):
            returned[index].append(ids)
        running = [index for index in running if tasks[index]["length"] > turn]
    for index, episode in enumerate(episodes):
        assert sampled_segments(only_row(episode)) == returned[index]


def test_no_id_is_ever_encoded_again(tokenizer, tasks):
    """What generate reads in a turn begins with all it read and returned before, id by id, and the row is the same."""
    spelled = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "system"]
    assert spelled != tokenizer("system", add_special_tokens=False)["input_ids"]  # encoding again would change it
    generate = Spy(tokenizer)
    generate.responses = [[*spelled, tokenizer.eos_token_id]]
    task = {**tasks[2], "length": 3}
    [episode] = make_rollout(tokenizer, generate).play([task])
    for before, after in zip(generate.calls, generate.calls[1:], strict=False):
        expected = before[0] + generate.responses[0]
        assert after[0][: len(expected)] == expected
    row = only_row(episode)
    assert (row.prompt_ids + row.completion_ids)[: len(generate.calls[-1][0])] == generate.calls[-1][0]


def test_the_conversation_reads_like_the_chat_template_rendered_in_one_go(tokenizer, tasks):
    generate = Spy(tokenizer, ["yes e<|im_end|>"])
    [episode] = make_rollout(tokenizer, generate).play([{**tasks[0], "length": 3}])
    messages = [
        {"role": "system", "content": "you count."},
        {"role": "user", "content": "task: count to 3"},
        {"role": "assistant", "content": "yes e"},
        {"role": "user", "content": "now at 1"},
        {"role": "assistant", "content": "yes e"},
        {"role": "user", "content": "now at 2"},
        {"role": "assistant", "content": "yes e"},
    ]
    row = only_row(episode)
    text = tokenizer.decode(row.prompt_ids + row.completion_ids)
    assert text + "\n" == tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_response_cut_before_its_end_is_closed_by_the_environments_text(tokenizer, tasks):
    generate = Spy(tokenizer, ["cut"])
    [episode] = make_rollout(tokenizer, generate).play([{**tasks[0], "length": 2}])
    assert episode.turns[1].new_ids[0] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in episode.turns[0].response_ids


def test_finished_episodes_leave_the_batch(tokenizer, tasks):
    generate = Spy(tokenizer)
    make_rollout(tokenizer, generate).play([{**tasks[0], "length": length} for length in (1, 2, 4)])
    assert [len(call) for call in generate.calls] == [3, 2, 1, 1]


def test_an_episode_says_why_it_ended(tokenizer, tasks):
    task = tasks[0]

    def reason(length, text="e<|im_end|>", fails_at=None, **limits):
        row = {**task, "length": length, "fails_at": fails_at}
        return make_rollout(tokenizer, Spy(tokenizer, [text]), **limits).play([row])[0].stop_reason

    assert reason(1) is StopReason.WON
    assert reason(1, "x<|im_end|>") is StopReason.LOST
    assert reason(9, max_turns=3) is StopReason.MAX_TURNS
    assert reason(99, max_turns=99, max_completion_length=60) is StopReason.LENGTH
    assert reason(5, fails_at=3) is StopReason.ENV_ERROR
    assert reason(5, fails_at=0) is StopReason.ENV_ERROR


def test_an_episode_never_outgrows_its_budget_or_the_context(tokenizer, tasks):
    task = {**tasks[0], "length": 99}
    [episode] = make_rollout(tokenizer, Spy(tokenizer), max_turns=99, max_completion_length=60).play([task])
    assert 30 <= len(only_row(episode).completion_ids) <= 60
    [episode] = make_rollout(tokenizer, Spy(tokenizer), max_turns=99, context_length=100).play([task])
    row = only_row(episode)
    assert 60 <= len(row.prompt_ids) + len(row.completion_ids) <= 100


def test_a_prompt_that_leaves_no_room_for_a_response_is_an_error_with_the_lengths(tokenizer, tasks):
    with pytest.raises(ValueError, match=r"context of 20 tokens; got \d+ tokens.*'count/0'"):
        make_rollout(tokenizer, Spy(tokenizer), context_length=20).play([tasks[0]])


def test_a_failed_environment_costs_its_own_episode_only(tokenizer, tasks):
    rows = [{**tasks[0], "length": 5, "fails_at": fails_at} for fails_at in (None, 3, 0, None)]
    episodes = make_rollout(tokenizer, Spy(tokenizer)).play(rows)
    assert [episode.stop_reason.value for episode in episodes] == ["won", "env_error", "env_error", "won"]
    assert sum(only_row(episodes[1]).mask) == 0
    assert only_row(episodes[2], 7).completion_ids == [7]
    assert ids_and_mask(episodes[0]) == ids_and_mask(episodes[3])


def test_environments_are_reused_but_never_after_a_failure(tokenizer, tasks):
    made = []

    def factory():
        made.append(CountingEnv())
        return made[-1]

    rollout = Rollout(
        factory, Chat(tokenizer), Spy(tokenizer), max_turns=9, max_response_length=8, max_completion_length=500
    )
    rollout.play([tasks[0], tasks[1]])
    rollout.play([{**tasks[0], "fails_at": 1}, tasks[1]])
    assert len(made) == 2
    rollout.play([tasks[0], tasks[1]])
    assert len(made) == 3


def test_logprobs_of_the_backend_stay_with_their_tokens(tokenizer, tasks):
    [episode] = make_rollout(tokenizer, Spy(tokenizer, logprobs=True)).play([{**tasks[0], "length": 2}])
    row = only_row(episode)
    assert [logprob == -0.5 for logprob in row.logprobs] == [mask == 1 for mask in row.mask]


def test_a_prompt_that_is_no_conversation_is_refused(tokenizer):
    with pytest.raises(ValueError, match="list of messages"):
        make_rollout(tokenizer, Spy(tokenizer)).play([{"prompt": "text", "length": 1}])


def test_several_environments_are_told_apart_by_name(tokenizer, tasks):
    limits = {"max_turns": 9, "max_response_length": 8, "max_completion_length": 500}
    rollout = Rollout({"a": CountingEnv, "b": CountingEnv}, Chat(tokenizer), Spy(tokenizer), **limits)
    assert rollout.play([{**tasks[0], "environment": "b"}])[0].success
    with pytest.raises(ValueError, match="environment='c'"):
        rollout.play([{**tasks[0], "environment": "c"}])


def test_a_real_model_plays_and_greedy_play_repeats_itself(tokenizer, random_model_folder, tasks):
    model = AutoModelForCausalLM.from_pretrained(random_model_folder)
    rollout = policy_rollout(model, tokenizer, CountingEnv, temperature=0, max_response_length=8)
    first, second = rollout.play(list(tasks)), rollout.play(list(tasks))
    assert [ids_and_mask(e) for e in first] == [ids_and_mask(e) for e in second]
    assert [len(e.turns) for e in first] == [task["length"] for task in tasks]


def test_a_template_without_a_special_token_after_the_assistant_is_refused(tokenizer):
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    plain = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    plain.chat_template = template
    with pytest.raises(ValueError, match="end an assistant turn with a special token"):
        make_rollout(plain, Spy(tokenizer))
