"""The one training loop: it knows steps, gradients and files, never a model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dalle3.checkpoint import WEIGHTS, read_safetensors, write_checkpoint
from dalle3.config import option
from dalle3.data.loader import Batch, Stream, batches, collate
from dalle3.errors import ConfigError, TrainingError
from dalle3.files import partial_folder, reported, whole_folder
from dalle3.log import note, warn
from dalle3.runtime import DTYPES, generator, keep_freed_memory
from dalle3.train.endings import interruptible, lost_processes, uncompilable
from dalle3.train.memory import checkpoint_activations
from dalle3.train.optim import Average, OptimConfig, learning_rate, make_optimizer
from dalle3.train.parallel import Parallel
from dalle3.train.progress import Progress, progress
from dalle3.train.run import Beginning, Position, RunFolder, continuing, read_position, write_position
from dalle3.train.seeds import seeded
from dalle3.train.task import Task, grid
from dalle3.train.throughput import Clock, Work, count, peak

MIN_PLATEAU_RATE = 1e-6
RAW = "weights.safetensors"
BESIDE = "beside.safetensors"  # what trains beside the model: a discriminator, a history of losses


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long to train, and what to write meanwhile."""

    steps: int | None = option(None, help="optimizer steps to make (default: as many as --epochs takes)")
    epochs: float = option(20.0, help="times every sample is seen, where --steps is not given")
    batch_size: int = option(4, help="examples in a forward pass of one process")
    ga_steps: int = option(1, help="forward passes whose gradients are added up before a step")
    seed: int = option(0, help="of the weights, the order of the data and every draw")
    num_workers: int = option(0, help="processes that read data ahead")
    device: str = option("auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", help="of matrix products; weights stay float32, and float16 scales the loss as it must"
    )
    gradient_checkpointing: bool = option(False, help="keep fewer activations and compute them twice: less memory")
    compile: bool = option(False, help="compile the model by torch.compile: a slow start, then faster steps")
    flops_profiler: bool = option(False, help="print the operations of each part of the model instead of training it")
    save_every_n_steps: int = option(1000, help="steps between checkpoints")
    keep_n_checkpoints: int | None = option(None, help="newest checkpoints kept (default: all)")
    log_every_n_steps: int = option(10, help="steps between lines of metrics")
    sample_every_n_steps: int = option(500, help="steps between sample pictures; 0 for none")

    def __post_init__(self) -> None:
        """Raises ConfigError for counts that cannot be."""
        for name in ("batch_size", "ga_steps", "save_every_n_steps", "log_every_n_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("steps", "keep_n_checkpoints"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")

    def total_steps(self, num_samples: int, world: int) -> int:
        """The steps to make on a data set of `num_samples` by `world` processes together."""
        per_step = self.batch_size * self.ga_steps * world
        return self.steps if self.steps is not None else max(1, math.ceil(self.epochs * num_samples / per_step))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: its last checkpoint, and whether it made all its steps or was asked to stop."""

    checkpoint: Path
    step: int
    finished: bool


def train(
    task: Task,
    stream: Stream,
    loop: LoopConfig,
    optim: OptimConfig,
    *,
    run: RunFolder,
    start: Path | Beginning | None,
    parallel: Parallel,
) -> Outcome:
    """Trains from `start`, a checkpoint or another program's run, or anew, and returns how it ended.

    SIGTERM and Ctrl-C end it after the step it is in; what it has is saved then, as at the end.

    Raises:
        TrainingError: the loss is no longer a finite number; the last checkpoint is kept.
        ConfigError: what the loop or the optimizer is asked for cannot be had, such as a compiled model here.
        DataError: the data cannot be read on.
        OutputError: a file cannot be written.
    """
    if parallel.device.type == "cpu":
        keep_freed_memory()
    with lost_processes(run, parallel), uncompilable():
        trainer = _Trainer(task, stream, loop, optim, run=run, parallel=parallel, start=start)
        with (
            interruptible(speaks=parallel.rank == 0) as stop,
            progress(trainer.steps, done=trainer.position.step, speaks=parallel.rank == 0) as trainer.progress,
        ):
            for batch in trainer.batches():
                if trainer.finished or parallel.any(stop.is_set()):
                    break
                trainer.step(batch)
            trainer.save()
    return Outcome(
        checkpoint=run.checkpoint(trainer.position.step), step=trainer.position.step, finished=trainer.finished
    )


class _Trainer:
    def __init__(
        self,
        task: Task,
        stream: Stream,
        loop: LoopConfig,
        optim: OptimConfig,
        *,
        run: RunFolder,
        parallel: Parallel,
        start: Path | Beginning | None,
    ) -> None:
        self.task, self.stream, self.loop, self.optim = task, stream, loop, optim
        self.run, self.parallel = run, parallel
        self.steps = loop.total_steps(len(stream.source), parallel.world)
        self.position, self.skipped = _position(start), 0
        self.progress: Progress
        self.average = Average(task.model, optim.ema_decay) if optim.ema_decay else None
        if isinstance(start, Path):
            with continuing(start):
                self._load_weights(start)
        self.clock = Clock(self._work()) if parallel.rank == 0 else None
        if loop.gradient_checkpointing:
            checkpoint_activations(task.objective)
        if loop.compile:
            task.objective.compile()
        parallel.wrap(task.objective, make_optimizer(task.objective, optim))
        with continuing(start):
            self._resume(start)

    @property
    def finished(self) -> bool:
        return self.position.step >= self.steps

    def _work(self) -> Work:
        """What a sample asks of a device; says so."""
        task, world, dtype = self.task, self.parallel.world, self.loop.dtype
        operations = count(task, self.stream, seed=self.loop.seed, step=self.position.step)
        best, known = peak(self.parallel.device, DTYPES[dtype])
        weights = sum(parameter.numel() for parameter in task.model.parameters())
        devices = f"{world} devices, each of" if world > 1 else "a device of"
        note(
            f"{weights / 1e6:.4g} M weights, {operations / 1e9:.4g} GFLOP a sample and step; "
            f"{devices} {best / 1e9:.4g} GFLOP/s in {dtype} ({known})"
        )
        return Work(tokens=task.tokens_per_sample, operations=operations, peak=best * world)

    def batches(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step, from the run's position on."""
        stream = batches(
            self.stream,
            self.loop.batch_size,
            consumed=self.position.consumed,
            rank=self.parallel.rank,
            world=self.parallel.world,
            num_workers=self.loop.num_workers,
        )
        while True:
            yield [next(stream) for _ in range(self.loop.ga_steps)]

    def step(self, micro_batches: list[Batch]) -> None:
        """One optimizer step, and what is due after it."""
        self.task.objective.train()
        metrics = self._accumulate(micro_batches)
        rate = self._learning_rate()
        norm = self.parallel.step(learning_rate=rate, clip=self.optim.clip_grad_norm)
        self.position.step += 1
        self._consume(metrics["loss"])
        if not (math.isfinite(norm or 0.0) and math.isfinite(metrics["loss"])):
            raise TrainingError(self._diverged(metrics["loss"], norm))
        if self.average is not None:
            self.average.update(self._weights(), self.position.step)
        self.progress.advance()
        self._report({**metrics, **self._of_step(norm), "learning_rate": rate})
        if self.position.step % self.loop.save_every_n_steps == 0:
            self.save()

    def _of_step(self, norm: float | None) -> dict[str, float]:
        """The gradient's norm, unless float16 could not hold it; with float16, the scale of the loss."""
        found = {"grad_norm": norm, "loss_scale": self.parallel.loss_scale()}
        return {name: value for name, value in found.items() if value is not None}

    def _learning_rate(self) -> float:
        rate = learning_rate(self.position.step, self.steps, self.optim) * self.position.plateau.factor
        return rate if self.position.plateau.factor == 1 else max(rate, MIN_PLATEAU_RATE)

    def _consume(self, loss: float) -> None:
        """Moves on in the data; at the end of an epoch, the learning rate may have to follow its loss."""
        before, plateau = self.position.consumed, self.position.plateau
        self.position.consumed += self.loop.batch_size * self.loop.ga_steps * self.parallel.world
        if self.optim.lr_schedule != "plateau":
            return
        plateau.add(loss)
        length = len(self.stream.source)
        if before // length != self.position.consumed // length:
            plateau.end_epoch(self.parallel.mean({"loss": plateau.total / plateau.count})["loss"])

    def _accumulate(self, micro_batches: list[Batch]) -> dict[str, float]:
        totals: dict[str, float] = {}
        for number, batch in enumerate(micro_batches):
            self._name_skipped(batch)
            last = number == len(micro_batches) - 1
            with contextlib.nullcontext() if last else self.parallel.accumulating():
                for name, value in self._micro(batch, number).items():
                    totals[name] = totals.get(name, 0.0) + float(value) / len(micro_batches)
        return totals

    def _micro(self, batch: Batch, number: int) -> dict[str, Tensor]:
        seed, device = self.loop.seed, self.parallel.device
        first = self.position.consumed + number * self.loop.batch_size * self.parallel.world + self.parallel.rank
        with torch.no_grad():
            inputs = self.task.prepare(batch, step=self.position.step, rng=generator(seed, "prepare", first))
        with seeded(seed, "forward", first, device=device):
            loss, metrics = self.parallel.forward(inputs)
        self.parallel.backward(loss / self.loop.ga_steps)
        return {"loss": loss.detach(), **metrics}

    def _report(self, metrics: dict[str, float]) -> None:
        step, every = self.position.step, self.loop.sample_every_n_steps
        if step % self.loop.log_every_n_steps == 0 or self.finished:
            metrics = self.parallel.mean(metrics)
            if self.clock is not None:
                row = {"step": step, **metrics, **self.clock.read(self.position, self.steps)}
                self.run.log(row)
                self.progress.show(row)
        due = every and (step % every == 0 or self.finished)
        if due and self.parallel.rank == 0 and not self.parallel.splits_weights:
            self._preview()

    def _preview(self) -> None:
        examples = [self.stream[place] for place in range(8)]
        rng = generator(self.loop.seed, "preview", self.position.step)
        with self._averaged(), torch.no_grad():
            self.task.objective.eval()
            preview = self.task.preview(collate(examples), rng=rng)
        if preview.images:
            self.run.save_sample(self.position.step, grid(preview.images, preview.columns))
        if preview.metrics:
            row = {"step": self.position.step, **preview.metrics}
            self.run.log(row)
            self.progress.keep(row)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Lends the model its averaged weights."""
        if self.average is None:
            yield
            return
        raw = {name: tensor.clone() for name, tensor in self.task.model.state_dict().items()}
        self.task.model.load_state_dict(self.average.state)
        try:
            yield
        finally:
            self.task.model.load_state_dict(raw)

    def save(self) -> None:
        """Writes the checkpoint of this step, unless there is one, and removes those past their time."""
        folder, first = self.run.checkpoint(self.position.step), self.parallel.rank == 0
        if self.parallel.any(first and not folder.exists()):
            self._count_skipped()
            with whole_folder(folder) if first else contextlib.nullcontext(partial_folder(folder)) as partial:
                self._write(partial)
                self.parallel.barrier()  # all have written before the folder gets its name
            self.parallel.barrier()
        if first:
            self.run.prune(self.loop.keep_n_checkpoints)

    def _write(self, folder: Path) -> None:
        raw = self._weights()
        beside = self.parallel.whole(tensors_beside(self.task.objective, self.task.model))
        if self.parallel.rank == 0:
            checkpoint = self.task.checkpoint(raw if self.average is None else self.average.state)
            checkpoint.training = {"step": self.position.step, "seed": self.loop.seed}
            write_checkpoint(checkpoint, folder, tokenizer=self.task.tokenizer)
            (folder / "train").mkdir()
            if self.average is not None:
                _save_tensors(raw, folder / "train" / RAW)
            if beside:
                _save_tensors(beside, folder / "train" / BESIDE)
            write_position(folder, self.position)
        self.parallel.barrier()  # the folder is there
        with reported(folder):
            self.parallel.save(folder / "train")

    def _weights(self) -> dict[str, Tensor]:
        return self.parallel.whole(self.task.model.state_dict(keep_vars=True))

    def _load_weights(self, start: Path) -> None:
        raw, used = start / "train" / RAW, read_safetensors(start / WEIGHTS)
        self.task.model.load_state_dict(read_safetensors(raw) if raw.exists() else used)
        if self.average is not None:
            self.average.load(used)
        if beside := tensors_beside(self.task.objective, self.task.model):
            stored = read_safetensors(start / "train" / BESIDE)
            for name in beside.keys() & stored.keys():  # what the run did not keep yet begins now
                beside[name].detach().copy_(stored[name])

    def _resume(self, start: Path | Beginning | None) -> None:
        """Takes up a run where it was left."""
        if isinstance(start, Path):
            self.parallel.load(start / "train")
        elif start is not None:
            self.parallel.adopt([(p, start.moments.get(name)) for name, p in self.task.model.named_parameters()])
        if self.parallel.rank == 0:
            self.run.forget_after(self.position.step)
        if self.parallel.rank == 0 and start is not None:
            where = f"from {start}: " if isinstance(start, Path) else ""
            note(f"continuing {where}{self.position.step} of {self.steps} steps are done")

    def _name_skipped(self, batch: Batch) -> None:
        for line in batch.skipped:
            warn(f"skipped {line}")
        self.skipped += len(batch.skipped)

    def _count_skipped(self) -> None:
        """Adds up what all processes skipped since the last checkpoint."""
        here = self.parallel.mean({"skipped": self.skipped})["skipped"]
        self.position.skipped += round(here * self.parallel.world)
        self.skipped = 0

    def _diverged(self, loss: float, norm: float | None) -> str:
        kept = self.run.checkpoints()
        where = f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        return (
            f"step {self.position.step}: the loss is {loss} and the gradient's norm {norm}; {where}; "
            "continue from there with a lower --learning_rate, or more --warmup_steps"
        )


def _position(start: Path | Beginning | None) -> Position:
    if isinstance(start, Path):
        return read_position(start)
    return Position() if start is None else start.position


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def tensors_beside(objective: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """What changes in an objective and is not its model's: only training needs it."""
    models = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    trained = {name: tensor for name, tensor in objective.named_parameters() if tensor.requires_grad}
    stored = {name: tensor for name, tensor in objective.named_buffers() if name in objective.state_dict()}
    return {name: tensor for name, tensor in {**trained, **stored}.items() if id(tensor) not in models}
