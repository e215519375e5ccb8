"""One step of a trainer, taken apart; and the rows of an episode."""

import torch

from sdar_trl.rows import episode_rows


def only_row(episode, pad_token_id=0):
    """The one training row of an episode with a growing history."""
    [row] = episode_rows(episode, pad_token_id)
    return row


def ids_and_mask(episode):
    """What an episode trains on, to compare."""
    row = only_row(episode)
    return row.prompt_ids, row.completion_ids, row.mask


def teacher_prompts_of(trainer):
    """Messages that the teacher read before each of the last episodes."""
    texts = trainer.teacher_context(trainer.episodes)
    chat = trainer.teacher.chat
    return [chat.with_context(e.prompt, text) for e, text in zip(trainer.episodes, texts, strict=True)]


def scored_batch(trainer, count=4, rows=None):
    """One generation batch, as the trainer scores it in its first step."""
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    torch.manual_seed(0)
    if rows is None:
        rows = [dict(trainer.train_dataset[index // trainer.num_generations]) for index in range(count)]
    return trainer._generate_and_score_completions(rows)


def gradients(trainer, inputs):
    """Gradients of the loss on a batch, by parameter."""
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, inputs).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
