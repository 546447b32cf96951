"""What the processes of tests/test_trainers.py do: a step of another package's trainer.

Each function takes a step on a batch of 8 rows in micro-batches, as the page Distributed shows it,
and returns how far the gradient is from that of one call on the whole batch, of its largest entry.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

import unifiedloss as ul
from unifiedloss.conformance.processes import Place

SPEC = ul.CrossEntropyLoss(from_logits=True, ignore_index=-100)
MICRO_BATCH = 2


def _as_torchrun(place: Place) -> None:
    """Set the environment that torchrun sets."""
    os.environ |= {
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.rank),
        "WORLD_SIZE": str(place.size),
        "LOCAL_WORLD_SIZE": str(place.size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(place.ports[0]),
        "TORCHELASTIC_RUN_ID": "none",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    os.chdir(place.folder)


class _Data(torch.utils.data.Dataset[Any]):
    """8 rows, of which the first four have 2 labels and the others 3."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(8, 5, generator=generator)
        self.labels = torch.randint(0, 7, (8,), generator=generator)
        self.labels[[0, 1, 5]] = -100

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"inputs": self.inputs[i], "labels": self.labels[i]}


class _Model(nn.Module):
    """A linear layer, with the outputs that the Trainer expects."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Linear(5, 7)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """The logits; the loss is that of the Trainer."""
        return {"logits": self.head(inputs)}


def _distance(gradient: Tensor) -> float:
    """The distance from the gradient of one call on the whole batch."""
    data, model = _Data(), _Model()
    whole = SPEC(model(data.inputs)["logits"], data.labels)
    (wanted,) = torch.autograd.grad(whole, model.head.weight)
    return float((gradient - wanted).abs().max() / wanted.abs().max())


def hugging_face(place: Place, mistake: bool) -> float:
    """The Trainer's `compute_loss_func`, in as many micro-batches as there are.

    Args:
        place: where this process stands.
        mistake: whether each micro-batch takes its own mean.
    """
    _as_torchrun(place)
    import transformers

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        divisor = None if mistake else num_items_in_batch
        return SPEC(outputs["logits"], labels, divisor=divisor)

    gradients = []

    class Keep(transformers.TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            gradients.append(model.head.weight.grad.clone())

    arguments = transformers.TrainingArguments(
        output_dir="output",
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=8 // MICRO_BATCH // place.size,
        max_steps=1,
        max_grad_norm=0.0,
        use_cpu=True,
        ddp_backend="gloo" if place.size > 1 else None,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    transformers.Trainer(
        model=_Model(),
        args=arguments,
        train_dataset=_Data(),
        compute_loss_func=loss,
        callbacks=[Keep()],
    ).train()
    (gradient,) = gradients
    return _distance(gradient)


def lightning(place: Place, mistake: bool) -> float:
    """A LightningModule under the strategy "ddp", or in one process; as `hugging_face`."""
    _as_torchrun(place)
    import pytorch_lightning

    gradients = []

    class Module(pytorch_lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = _Model()

        def training_step(self, batch: Any, _: int) -> Tensor:
            x, y = batch["inputs"], batch["labels"]
            if mistake:
                return SPEC(self.model(x)["logits"], y)
            divisor = self.trainer.strategy.reduce(SPEC.divisor_of(y), reduce_op="sum")
            scaled = SPEC.replace(scale=float(self.trainer.world_size))
            return scaled(self.model(x)["logits"], y, divisor=divisor)

        def on_before_optimizer_step(self, _: Any) -> None:
            gradients.append(self.model.head.weight.grad.clone())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        devices=place.size,
        strategy="ddp" if place.size > 1 else "auto",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=True,
    )
    batches = torch.utils.data.DataLoader(_Data(), batch_size=8 // place.size)
    trainer.fit(Module(), batches)
    (gradient,) = gradients
    return _distance(gradient)
