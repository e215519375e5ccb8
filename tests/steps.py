"""One step of a trainer, taken apart."""

import torch


def scored_batch(trainer, count=4):
    """One generation batch, as the trainer scores it in its first step."""
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    torch.manual_seed(0)
    rows = [dict(trainer.train_dataset[index // trainer.num_generations]) for index in range(count)]
    return trainer._generate_and_score_completions(rows)


def gradients(trainer, inputs):
    """Gradients of the loss on a batch, by parameter."""
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, inputs).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
