import pytest
import torch
from torch import nn

from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage

from projects.finite_loss import FiniteLoss


class Model(nn.Module):
    """A loss that is the batch's value times a weight, and one whose gradient is infinite where the value is 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        value = torch.tensor([x["value"] for x in inputs])
        return {"loss_a": (self.weight * value).sum(), "loss_root": (self.weight * value.abs().min()).sqrt()}


def train(*batches, steps):
    model = Model()
    trainer = SimpleTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([FiniteLoss(model)])
    seen = []
    try:
        for trainer.iter in range(steps):
            seen.append(model.weight.item())
            step(trainer)
    finally:
        seen.append(model.weight.item())
    return seen


def step(trainer):
    with EventStorage(trainer.iter):
        trainer.run_step()


def batch(*values):
    return [{"value": value, "file_name": f"{value}.jpg"} for value in values]


def test_finite_losses_are_stepped_on():
    seen = train(batch(1.0, 2.0), batch(3.0), steps=2)
    assert seen[0] == 1 and len(set(seen)) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_weights_are_not_stepped_with_a_loss_that_is_not_finite(value):
    model = Model()
    trainer = SimpleTrainer(model, [batch(1.0), batch(2.0, value)], torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([FiniteLoss(model)])
    step(trainer)
    trainer.iter, before = 1, model.weight.item()
    message = rf"iteration 1: loss_a is {value}.* for the images 2.0.jpg, {value}.jpg"
    with pytest.raises(FloatingPointError, match=message):
        step(trainer)
    assert model.weight.item() == before != 1


def test_infinite_gradients_of_a_finite_loss_are_left_to_the_gradient_scaler():
    assert not all(map(torch.isfinite, map(torch.tensor, train(batch(0.0), steps=1))))


def test_forward_passes_in_evaluation_are_not_looked_at():
    model = Model()
    trainer = SimpleTrainer(model, [batch(1.0)], torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([FiniteLoss(model)])
    model.eval()
    model(batch(float("nan")))
    model.train()
    step(trainer)
    assert torch.isfinite(model.weight)
